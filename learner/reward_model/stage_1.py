"""Stage 1 of the reward model by gradient: backbone, heads and gate together, on micro-batches of whole prompts.

    loss = regression_weight * masked MSE of the objectives + Bradley-Terry of the gated score
         + Bradley-Terry of the head that rewarder.preference names (pairs are that objective's labels)
         + weight * contrastive loss of two views of each response, where one is asked for; the rest is then the views' mean

The backbone may be low-rank updates of it (learner/reward_model/lora.py). Called by learner/reward_model/stage.py, on every
rank; the baseline (learner/reward_model/baseline.py) trains by it too. Sources: ArmoRM (2406.12845); the joint
Bradley-Terry term as in SMORM (2507.07375); the contrastive term as in 2401.06080, section 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from common.config.config import RewardTrainingConfig
from learner.ranks.batch import rank_micro_batches
from learner.ranks.engine import Engine, num_ranks, reduce_sum
from learner.ranks.losses import masked_regression
from learner.ranks.progress import Report
from learner.ranks.schedule import cosine
from learner.reward_model.data import PromptSet, check_finite_rows, flatten
from learner.reward_model.stopping import Best, Plateau
from learner.reward_model.training import gated_score, head_losses, pair_losses
from learner.reward_model.views import NUM_VIEWS, Contrast
from rewarder.model import GatedRewardModel, RewardOutput
from rewarder.scoring import pad_conversations

WARMUP = 0.03  # of all steps, where their number is known


@dataclass(frozen=True)
class MicroBatch:
    """The conversations of one pass: prompts, and the indices of their conversations in the step. A rank that has none left
    runs the pass that ZeRO-3 waits for, on another's, with weight 0."""

    sets: list[PromptSet]
    rows: Tensor
    weight: float


class Stage1:
    """Trains `model`, which `engine` wraps; `preference` is the column of the objective that the pairs train, if any."""

    def __init__(
        self,
        engine: Engine,
        model: GatedRewardModel,
        config: RewardTrainingConfig,
        preference: int | None,
        micro_batch_tokens: int,
        seed: int,
        rank: int,
    ):
        self._engine, self._model, self._config, self._column = engine, model, config, preference
        self._budget, self._seed, self._rank = micro_batch_tokens, seed, rank
        self._contrast = None if config.contrastive.kind == "none" else Contrast(config, model, seed, rank)
        self._num_views = 1 if self._contrast is None else NUM_VIEWS

    def train(self, sets: Sequence[PromptSet], validation: Sequence[PromptSet], progress: Report) -> None:
        """Prompts as units, about batch_size conversations a step. Without `patience` the rate falls by a cosine over `epochs`.
        With it the loss on `validation` says when the rate falls and when training ends, and the weights of the lowest stay."""
        config, best = self._config, Best(self._model)
        plateau = None if config.patience is None else Plateau(config.patience)
        mean_size = max(1.0, float(np.mean([len(prompt.conversations) for prompt in sets])))
        per_step = max(1, round(config.batch_size / mean_size))
        steps, done, shown = -(-len(sets) // per_step), 0, dict[str, float]()
        total = config.epochs * steps
        for epoch in range(config.epochs):
            order = np.random.default_rng([self._seed, 1, epoch]).permutation(len(sets))
            for start in range(0, len(sets), per_step):
                losses = self._accumulate([sets[index] for index in order[start : start + per_step]], done)
                self._step(cosine(done, total, WARMUP) if plateau is None else plateau.rate(done, steps))
                done += 1
                progress("reward model", done, total, losses | shown)
            if plateau is not None:
                shown = {"held_out": self.loss(validation)}
                if plateau.look(shown["held_out"]):
                    best.keep()
                if plateau.is_over:
                    break
        best.put_back()

    def loss(self, sets: Sequence[PromptSet]) -> float:
        """The whole loss of these prompts, but for a contrastive term; nothing is trained. Collective."""
        counts, total = self._counts(sets), torch.zeros(1, dtype=torch.float64)
        for part in self._cut(sets):
            with torch.no_grad():
                losses = self._losses(part, self._forward(part), counts)
            total += part.weight * self._weighted(losses).double().cpu()
        return float(reduce_sum(total))

    def _step(self, scale: float) -> None:
        self._engine.step(scale)
        if self._contrast is not None:
            self._contrast.step(scale)

    def _accumulate(self, sets: Sequence[PromptSet], step: int) -> dict[str, float]:
        """Adds the gradient of this rank's share of a step; the losses of the whole step."""
        parts = self._cut(sets)
        pull, losses = (None, {}) if self._contrast is None else self._pull(self._contrast, sets, parts, step)
        counts, totals = self._counts(sets), torch.zeros(3, dtype=torch.float64)
        for number, part in enumerate(parts):
            for index in range(self._num_views):
                with self._view(step, number, index):
                    output = self._forward(part)
                    values = self._losses(part, output, counts) / self._num_views
                    loss = self._weighted(values)
                    if pull is not None:
                        loss = loss + (pull[index, part.rows] * output.response_state).sum()
                    self._engine.backward(part.weight * loss * num_ranks())
                totals += part.weight * values.detach().double().cpu()
        regression, gated, head = reduce_sum(totals).tolist()
        losses |= {"regression": regression, "preference": gated}
        return losses | ({} if self._column is None else {"preference_head": head})

    def _weighted(self, losses: Tensor) -> Tensor:
        """One loss of those of stage_1_losses."""
        return self._config.regression_weight * losses[0] + losses[1] + losses[2]

    def _counts(self, sets: Sequence[PromptSet]) -> tuple[Tensor, int]:
        """What the losses of a batch are divided by: its ratings of each objective [K], and its pairs."""
        num_known = torch.from_numpy(sum(np.isfinite(prompt.ratings).sum(0) for prompt in sets))
        return num_known.to(self._model.device), max(1, sum(len(prompt.pairs) for prompt in sets))

    def _cut(self, sets: Sequence[PromptSet]) -> list[MicroBatch]:
        """This rank's micro-batches of a step."""
        sizes = [len(prompt.conversations) for prompt in sets]
        rows = torch.arange(sum(sizes)).split(sizes)
        lengths = [sum(len(c.ids) for c in prompt.conversations) for prompt in sets]
        cut = rank_micro_batches(lengths, self._budget, self._rank, num_ranks())
        return [
            MicroBatch([sets[i] for i in part or [0]], torch.cat([rows[i] for i in part or [0]]), float(bool(part)))
            for part in cut
        ]

    def _forward(self, part: MicroBatch) -> RewardOutput:
        rendered = [conversation for prompt in part.sets for conversation in prompt.conversations]
        with self._engine.precision():
            output = self._engine.module(*pad_conversations(rendered, self._model.device))
        check_finite_rows("scores or gate weights", (output.scores.detach(), output.gate_weights.detach()), part.sets)
        return output

    def _losses(self, part: MicroBatch, output: RewardOutput, counts: tuple[Tensor, int]) -> Tensor:
        _, *labels, _ = flatten(part.sets)
        ratings, pairs, pair_labels = (values.to(self._model.device) for values in labels)
        matrix = self._model.reward_transform_matrix
        return stage_1_losses(output, matrix, ratings, pairs, pair_labels, *counts, self._column)

    # ---- the contrastive term -----------------------------------------------------------------------------------------

    def _view(self, step: int, micro_batch: int, index: int) -> AbstractContextManager[None]:
        return nullcontext() if self._contrast is None else self._contrast.view(step, micro_batch, index)

    def _pull(
        self, contrast: Contrast, sets: Sequence[PromptSet], parts: Sequence[MicroBatch], step: int
    ) -> tuple[Tensor, dict[str, float]]:
        """The gradient of the contrastive loss by both views' states of all responses of the step, and that loss."""
        rendered, _, pairs, *_ = flatten(sets)
        states = torch.zeros(NUM_VIEWS, len(rendered), self._model.sizes.hidden, device=self._model.device)
        for number, part in enumerate(parts):
            for index in range(NUM_VIEWS):
                with torch.no_grad(), contrast.view(step, number, index):
                    states[index, part.rows] += part.weight * self._forward(part).response_state
        gradient, loss = contrast.pull(reduce_sum(states), pairs.to(states.device))
        return gradient, {"contrastive": loss}


def stage_1_losses(
    output: RewardOutput,
    matrix: Tensor,
    ratings: Tensor,
    pairs: Tensor,
    pair_labels: Tensor,
    num_known: Tensor,
    num_pairs: int,
    column: int | None,
    scale: float = 1.0,
) -> Tensor:
    """[3]: masked MSE of the ratings, Bradley-Terry of the gated score over `scale`, and of the head in `column` (0 without
    one), of a micro-batch with ratings [B, K] (NaN where there is none), pairs [P, 2] and their labels [P, 4] (target, margin,
    weight, of_preference); num_known [K] and num_pairs are of the whole batch."""
    regression = masked_regression(output.scores, ratings.nan_to_num(), ratings.isfinite(), num_known)
    gated = pair_losses(gated_score(output, matrix) / scale, pairs, pair_labels).sum() / num_pairs
    if column is None:
        return torch.stack([regression, gated, torch.zeros_like(gated)])
    head = head_losses(output.scores[:, column], pairs, pair_labels).sum() / num_pairs
    return torch.stack([regression, gated, head])
