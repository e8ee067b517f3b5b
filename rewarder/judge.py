"""A reward model as a judge of pairs, or of single responses: a Ray actor beside the rewarders, with a model of its own.

Called by the driver alone (driver/judges/judges.py). A pair is scored by itself, as a group is, so that its answer does not
depend on which other pairs were asked about: a repeated round gets the same labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoTokenizer

from common.config.config import RewarderConfig
from common.judge import TOO_LONG, PairItem, Verdict
from common.later import Later
from common.ratings import RateItem, Rating
from rewarder.aggregate import debias
from rewarder.bradley_terry import load_gated_or_classifier
from rewarder.model import GatedRewardModel
from rewarder.scoring import ConversationTooLong, score_responses


class RewardJudge:
    """Compares pairs by the debiased gated score of a gated model, or the score of a classifier with one label."""

    def __init__(self, config: RewarderConfig, threads: int, device: str):
        self._config, self._device = config, device
        self._model: Later[GatedRewardModel] = Later("load")
        self._tokenizer: Later[Any] = Later("load")
        torch.set_num_threads(threads)

    def load(self, source: str, revision: str | None) -> None:
        """Puts the model of a directory or Hub id in place. Raises CheckpointError and OSError."""
        self._model.set(load_gated_or_classifier(source, self._config.dtype, revision).to(self._device).eval())
        self._tokenizer.set(AutoTokenizer.from_pretrained(source, revision=revision))

    def compare(self, items: Sequence[PairItem]) -> list[Verdict]:
        """What the scores say of each pair: equal scores are a tie, and so is a pair that is too long for the model. Raises
        ValueError for a score that is not finite."""
        return [self._compare(item) for item in items]

    def rate(self, items: Sequence[RateItem], objectives: Sequence[str]) -> list[Rating]:
        """The model's raw scores of these objectives, within [0, 1] (a linear head goes a little beyond). A response that is
        too long is not rated, with the reason. Raises ValueError where the model has none of the objectives."""
        return [self._rate(item, objectives) for item in items]

    def _rate(self, item: RateItem, objectives: Sequence[str]) -> Rating:
        names = self._model.value.objectives
        if not (shared := [name for name in objectives if name in names]):
            raise ValueError(
                f"judge.model scores {', '.join(names)}, none of the objectives {', '.join(objectives)}, so it cannot rate; "
                "name another model, or set adaptation.labels: pairs"
            )
        limits = self._config.max_tokens, self._config.batch_tokens
        try:
            scores, _ = score_responses(
                self._model.value, self._tokenizer.value, item.messages, [item.response], *limits
            )
        except ConversationTooLong:
            return Rating({}, TOO_LONG)
        row = scores[0].clamp(0, 1).tolist()
        return Rating({name: row[names.index(name)] for name in shared})

    def _compare(self, item: PairItem) -> Verdict:
        limits = self._config.max_tokens, self._config.batch_tokens
        responses = [item.first, item.second]
        try:
            scores, gate = score_responses(self._model.value, self._tokenizer.value, item.messages, responses, *limits)
        except ConversationTooLong:  # by this model's tokens; a cut response would be another one
            return Verdict("tie", TOO_LONG)
        matrix = self._model.value.reward_transform_matrix.detach().cpu()
        first, second = (debias(scores, matrix) * gate).sum(-1).tolist()
        if first == second:
            return Verdict("tie")
        return Verdict("first" if first > second else "second")
