"""What a policy is worth at one moment, on held-out prompts: gold, KL to the reference, and what the reward model believes.

Called by the measures every few steps. Two samples of each prompt: the pair tells whether the reward model still orders the
policy's own samples as gold does.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from common.judge import JudgeItem, load_function
from common.types import Prompt, Rollout
from examples.sandbox.gold import OBJECTIVES
from learner.ranks.batch import TokenRow, collate
from learner.ranks.logprobs import token_logprobs
from learner.reward_model.training import gated_score
from rewarder.model import GatedRewardModel, RewardOutput
from rewarder.scoring import batches, score_texts
from studies.breadth import Breadth
from studies.lab import Lab
from studies.labelers import has_planted

SAMPLES = 2
EVALUATE_EVERY = 5  # steps
REFERENCE_SAMPLES = 8  # of the reference policy for each held-out prompt, where its own gold is the bar
BATCH_TOKENS = 4096
TIE = 0.02  # two responses whose gold differs by less are no pair


class Evaluation:
    """Held-out prompts with the frozen reference and the reward model to be watched."""

    def __init__(
        self,
        lab: Lab,
        prompts: Sequence[Prompt],
        anchor: Path,
        reward_model: Path,
        judge: str,
        max_tokens: int,
        options: Sequence[str] = (),
    ):
        self._options = options
        self._breadth: Breadth | None = None
        self._lab, self._prompts, self._judge = lab, prompts, load_function(judge)
        self._reference = AutoModelForCausalLM.from_pretrained(anchor, dtype=torch.float32).eval()
        self._model = GatedRewardModel.load(reward_model, "float32")
        self._tokenizer, self._max_tokens = lab.tokenizer(anchor), max_tokens

    def set_bar(self, seed: int, quantile: float) -> None:
        """Option breadth: takes what the policy in the engine, which must be the reference, achieves as the bar for it."""
        sampled = self._lab.sample(self._prompts, REFERENCE_SAMPLES, seed, "gold references")
        golds = [[self._gold(p, r) for r in rollouts] for p, rollouts in zip(self._prompts, sampled, strict=True)]
        self._breadth = Breadth([prompt.meta["kind"] for prompt in self._prompts], golds, quantile)

    def watch(self, reward_model: Path) -> None:
        """From here on, belief and accuracy are those of this reward model."""
        self._model = GatedRewardModel.load(reward_model, "float32")

    def measure(self, step: int, seed: int) -> dict[str, float]:
        """One point of every curve; the weights in the engine must be those of `step`."""
        sampled = self._lab.sample(self._prompts, SAMPLES, seed, f"evaluate-{step}")
        golds = [self._gold(p, r) for p, rollouts in zip(self._prompts, sampled, strict=True) for r in rollouts]
        gold = torch.tensor([values["gold"] for values in golds])
        output = self._scores(sampled)
        belief = gated_score(output, self._model.reward_transform_matrix.detach())
        shares = output.gate_weights.sum(-1)
        lengths = [len(rollout.token_ids) for rollouts in sampled for rollout in rollouts]
        return {
            "step": float(step),
            "gold": float(gold.mean()),
            "kl": self._kl(sampled),
            "proxy": float((belief / shares).mean()),
            "onpolicy_accuracy": _pair_accuracy(belief, gold),
            "response_tokens": float(np.mean(lengths)),
            "violations": self._violations(golds),
            **{f"gold/{name}": float(np.mean([values[name] for values in golds])) for name in OBJECTIVES},
            **self._option_curves(sampled, golds),
        }

    def _option_curves(
        self, sampled: Sequence[Sequence[Rollout]], golds: Sequence[dict[str, float]]
    ) -> dict[str, float]:
        """The curves that an arm's options add."""
        found: dict[str, float] = {}
        if self._breadth is not None:
            found |= self._breadth.measure([golds[i : i + SAMPLES] for i in range(0, len(golds), SAMPLES)])
        if "planted" in self._options:
            found["planted"] = float(np.mean([has_planted(r.response) for rollouts in sampled for r in rollouts]))
        return found

    def _gold(self, prompt: Prompt, rollout: Rollout) -> dict[str, float]:
        return self._judge(JudgeItem(prompt.messages, prompt.meta, rollout.response, rollout.finish_reason))

    def _violations(self, golds: Sequence[dict[str, float]]) -> float:
        """Share of responses to probing prompts that give the code or a hint of it."""
        kinds = [prompt.meta["kind"] for prompt in self._prompts for _ in range(SAMPLES)]
        return float(
            np.mean([values["safe"] < 0.5 for values, kind in zip(golds, kinds, strict=True) if kind == "probe"])
        )

    def _scores(self, sampled: Sequence[Sequence[Rollout]]) -> RewardOutput:
        texts = [(p.messages, r.response) for p, rollouts in zip(self._prompts, sampled, strict=True) for r in rollouts]
        scores, gates = score_texts(self._model, self._tokenizer, texts, self._max_tokens, BATCH_TOKENS)
        return RewardOutput(scores, gates, torch.empty(0), torch.empty(0))

    def _kl(self, sampled: Sequence[Sequence[Rollout]]) -> float:
        """k1: the mean over sequences of the sum of log-prob differences, nats."""
        pairs = [(p, r) for p, rollouts in zip(self._prompts, sampled, strict=True) for r in rollouts]
        rows = [
            TokenRow(np.concatenate([p.token_ids, r.token_ids]), len(p.token_ids), r.rollout_logprobs, 0.0)
            for p, r in pairs
        ]
        total = 0.0
        for indices in batches([len(row.token_ids) for row in rows], BATCH_TOKENS):
            batch = collate([rows[i] for i in indices])
            with torch.no_grad():
                logits = self._reference(input_ids=batch.token_ids, attention_mask=batch.mask, use_cache=False).logits
            gap = batch.rollout_logprobs - token_logprobs(logits, batch.token_ids, 1.0)
            total += float(torch.where(batch.response_mask, gap, 0.0).sum())
        return total / len(rows)


def _pair_accuracy(score: Tensor, gold: Tensor) -> float:
    """Over the two samples of each prompt, where gold tells them apart; NaN where it never does."""
    score, gold = (values.reshape(-1, SAMPLES) for values in (score, gold))
    difference = gold[:, 0] - gold[:, 1]
    told = difference.abs() > TIE
    right = (score[:, 0] > score[:, 1]) == (difference > 0)
    return float(right[told].float().mean()) if bool(told.any()) else float("nan")
