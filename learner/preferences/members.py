"""The members of stage `preferences`: Bradley-Terry models of one scalar head, trained on the pairs that each is given.

    heads       score = w . h_R on hidden states that are computed once: AdamW on w alone, mini-batches of shuffled pairs
    lora, full  the baseline's way (learner/reward_model/backbone_fit.py): low-rank updates of the backbone, or all of it

Called by learner/preferences/worker.py, one member after the other. A member is made of its number and the run's seed: which
process trains it, and after which others, changes nothing. No calibration, no gate but 1, no ratings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from common.config.config import Config, LearnerConfig, PreferencesConfig, RewardTrainingConfig
from common.data.data import PreferencePair
from common.data.split import prompt_key
from learner.policy.source import revision_of
from learner.ranks.losses import bradley_terry
from learner.ranks.progress import Report
from learner.reward_model.backbone_fit import Seeds, fit_backbone
from learner.reward_model.data import PromptSet, flatten, prompt_sets
from learner.reward_model.training import BLOCK_ROWS, descend, extract_features
from rewarder.bradley_terry import OBJECTIVE, new_scalar_model
from rewarder.model import GatedRewardModel
from rewarder.scoring import batches, pad_conversations

ORDER = 13  # stream of the seed: a head's mini-batches


@dataclass(frozen=True)
class Pairs:
    """The P rows, their prompts, and the two conversations [P, 2] of each row among the N of the prompts, flattened."""

    rows: Sequence[PreferencePair]
    sets: list[PromptSet]
    sides: Tensor
    tokenizer: PreTrainedTokenizerBase
    max_tokens: int

    def sets_of(self, indices: NDArray[np.int64]) -> list[PromptSet]:
        """The prompts of these rows alone; a row that is there twice is two pairs."""
        return sets_of([self.rows[index] for index in indices], self.tokenizer, self.max_tokens)


@dataclass(frozen=True)
class Member:
    """What a trained member is worth, and it: differences [P] of every row; head [H]; the model, where it has a backbone of its
    own."""

    differences: Tensor
    head: Tensor
    model: GatedRewardModel | None


Train = Callable[[int, NDArray[np.int64], Report], Member]  # (member, indices of its rows, progress)


def paired(rows: Sequence[PreferencePair], tokenizer: PreTrainedTokenizerBase, max_tokens: int) -> Pairs:
    """The rows with their conversations. Raises ConversationTooLong for a pair beyond max_tokens."""
    sets = sets_of(rows, tokenizer, max_tokens)
    sides = torch.empty(len(rows), 2, dtype=torch.long)
    sides[torch.from_numpy(_in_sets(rows))] = flatten(sets)[2]
    return Pairs(rows, sets, sides, tokenizer, max_tokens)


def sets_of(rows: Sequence[PreferencePair], tokenizer: PreTrainedTokenizerBase, max_tokens: int) -> list[PromptSet]:
    """The pairs as sets of prompts that training reads."""
    return list(prompt_sets([], rows, [OBJECTIVE], tokenizer, max_tokens).values())


def _in_sets(rows: Sequence[PreferencePair]) -> NDArray[np.int64]:
    """The rows' indices in the order that prompt_sets gives their pairs: by the prompt's first row, then as they came."""
    keys = [prompt_key(row.messages) for row in rows]
    first = {key: at for at, key in reversed(list(enumerate(keys)))}
    return np.argsort([first[key] for key in keys], kind="stable")


class Start:
    """Where members start: a copy of the policy's decoder, and a head whose seed is the member's or shared."""

    def __init__(self, config: Config, policy: str):
        self._policy, self._vary = policy, config.learner.preferences.vary_seed
        self._revision, self._run_seed = revision_of(policy, config.policy), config.run.seed
        trained = config.learner.preferences.train == "full"  # a frozen backbone computes as it will serve
        self._dtype = "float32" if trained else config.rewarder.dtype

    def seeds(self, member: int) -> Seeds:
        """The seeds of one member."""
        own = self._run_seed * 1009 + 1 + member
        return Seeds(own, own if self._vary else self._run_seed)

    def model(self, member: int) -> GatedRewardModel:
        """Raises CheckpointError."""
        return new_scalar_model(self._policy, self.seeds(member).start, self._dtype, self._revision)


# ---- heads ------------------------------------------------------------------------------------------------------------


def heads_on(pairs: Pairs, start: Start, learner: LearnerConfig, device: torch.device) -> Train:
    """Trains heads on the backbone's hidden states, which are computed here, or read from the cache."""
    model, cache = start.model(0).to(device), learner.reward_model.feature_cache
    states = extract_features(model, pairs.sets, learner.micro_batch_tokens, 0, device, cache).response
    settings = learner.preferences

    def train(member: int, indices: NDArray[np.int64], report: Report) -> Member:
        seeds = start.seeds(member)
        head = new_head(states.shape[1], seeds.start).to(device)
        fit_head(head, states, pairs.sides[torch.from_numpy(indices)], settings, seeds.order, _named(report, member))
        with torch.no_grad():
            scores = torch.cat([_score(head, block.to(device)).cpu() for block in states.split(BLOCK_ROWS)])
        return Member(_differences(scores, pairs.sides), head.weight.detach()[0].cpu(), None)

    return train


def new_head(hidden: int, seed: int) -> nn.Linear:
    """The head that new_scalar_model gives with this seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Linear(hidden, 1, bias=False, dtype=torch.float32)


def fit_head(
    head: nn.Linear,
    states: Tensor,
    sides: Tensor,
    settings: PreferencesConfig,
    seed: int,
    progress: Callable[[int, int, float], None],
) -> None:
    """AdamW with cosine, `epochs` times over the pairs [p, 2] of rows of states [N, H] in an order of the seed."""
    order, device = _mini_batches(len(sides), settings, seed), head.weight.device

    def loss_of() -> Tensor:
        chosen, rejected = (_score(head, states[rows].to(device)) for rows in sides[next(order)].unbind(1))
        return bradley_terry(chosen - rejected).mean()

    steps = settings.epochs * -(-len(sides) // settings.batch_size)
    descend(head.parameters(), loss_of, steps, settings.learning_rate, progress)


def _score(head: nn.Linear, states: Tensor) -> Tensor:
    return head(states)[:, 0]


def _mini_batches(num: int, settings: PreferencesConfig, seed: int) -> Iterator[Tensor]:
    generator = np.random.default_rng([seed, ORDER])
    for _ in range(settings.epochs):
        yield from torch.from_numpy(generator.permutation(num)).split(settings.batch_size)


def _named(report: Report, member: int) -> Callable[[int, int, float], None]:
    return lambda done, total, loss: report(f"member {member}", done, total, {"preference": loss})


# ---- lora, full -------------------------------------------------------------------------------------------------------


def backbones_on(pairs: Pairs, start: Start, learner: LearnerConfig, device: torch.device) -> Train:
    """Trains a backbone, or updates of one, for each member anew."""
    one_rank = replace(learner, zero_stage=0)  # there is nothing to shard over

    def train(member: int, indices: NDArray[np.int64], report: Report) -> Member:
        def said(_: str, done: int, total: int, losses: dict[str, float]) -> None:
            report(f"member {member}", done, total, {"preference": losses["preference"]})

        model, sets = start.model(member).to(device), pairs.sets_of(indices)
        settings = _stage_1_settings(learner, sets)
        fit_backbone(model, sets, one_rank, settings, None, start.seeds(member), 0, device, said)
        scores = scores_of(model, pairs.sets, learner.micro_batch_tokens)
        head = model.regression_layer.weight.detach()[0].cpu()
        return Member(_differences(scores, pairs.sides), head, model)

    return train


def _stage_1_settings(learner: LearnerConfig, sets: Sequence[PromptSet]) -> RewardTrainingConfig:
    """Those of the baseline with the members' own numbers; a batch is counted in conversations there."""
    settings = learner.preferences
    conversations = sum(len(prompt.conversations) for prompt in sets)
    per_pair = conversations / sum(len(prompt.pairs) for prompt in sets)
    return replace(
        learner.reward_model,
        epochs=settings.epochs,
        patience=None,
        batch_size=max(1, round(settings.batch_size * per_pair)),
        learning_rate=settings.learning_rate,
        lora_rank=settings.lora_rank if settings.train == "lora" else None,
        regression_weight=0.0,
        contrastive=replace(learner.reward_model.contrastive, kind="none"),
    )


@torch.no_grad()
def scores_of(model: GatedRewardModel, sets: Sequence[PromptSet], micro_batch_tokens: int) -> Tensor:
    """Scores every conversation, [N]."""
    rendered = flatten(sets)[0]
    scores = torch.empty(len(rendered))
    for rows in batches([len(row.ids) for row in rendered], micro_batch_tokens):
        scores[rows] = model(*pad_conversations([rendered[row] for row in rows], model.device)).scores[:, 0].cpu()
    return scores


def _differences(scores: Tensor, sides: Tensor) -> Tensor:
    return scores[sides[:, 0]] - scores[sides[:, 1]]
