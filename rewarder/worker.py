"""One rewarder: a Ray actor that scores rollout groups. The only file of the rewarder that knows the queue.

A thread takes groups from `{run}:rollouts`, scores each by the reward model in place, hands it on to `{run}:scored`.
A group shares no forward pass with another, so its scores do not depend on which other groups were waiting: repeated runs
are bit-identical. The driver brings the references of each iteration, and switches reward models between groups: while it
has scoring paused, so that no group is scored by one version against the references of another.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer

from common.config.aggregations import term_names
from common.config.config import AggregationConfig, RewarderConfig
from common.later import Later
from common.queue.address import QueueAddress
from common.queue.codec import EncodeError
from common.queue.queue import Queue, RolloutItem
from common.types import BoolArray, FloatArray, Message, Reward, RolloutGroup, ScoredGroup
from rewarder.aggregate import center_and_scale, combined_scores, rewards
from rewarder.aggregation import Aggregation, aggregation_of, check_live_groups
from rewarder.model import GatedRewardModel
from rewarder.pause import Pause
from rewarder.references import covers_unseen, reference_value
from rewarder.scoring import ConversationTooLong, score_responses

logger = logging.getLogger(__name__)
BLOCK_S = 1.0


@dataclass(frozen=True)
class ReferenceSamples:
    """K responses of the anchor to one prompt."""

    prompt_id: str
    messages: tuple[Message, ...]
    responses: tuple[str, ...]


@dataclass(frozen=True)
class ScoredReference:
    """r_ref [M] of a prompt, and the anchor's samples against it: z [K, M], centred and calibrated as a response is, and
    covered [K, M], whether each is at or below the r_ref that the other samples give (a canned response: than that)."""

    value: FloatArray
    z: FloatArray
    covered: BoolArray


@dataclass(frozen=True)
class Served:
    """What groups are scored with between two switches: the reward model, the aggregation over its objectives, the
    temperatures [M] and the debiasing matrix [K, K]."""

    model: GatedRewardModel
    tokenizer: Any
    aggregation: Aggregation
    temperature: torch.Tensor
    matrix: torch.Tensor


class RewarderWorker:
    """Scores groups until it is stopped. A failure of the loop is raised by the next `health`."""

    def __init__(self, name: str, config: RewarderConfig, aggregation: AggregationConfig, device: str):
        self._name, self._config, self._settings, self._device = name, config, aggregation, device
        self._references: Mapping[str, FloatArray] = {}
        self._reference_version = ""
        self._lock = threading.Lock()
        self._pause = Pause()
        self._failure: BaseException | None = None
        self._busy_s, self._groups = 0.0, 0
        self._served: Later[Served] = Later("load")
        self._queue: Later[Queue] = Later("serve")
        torch.set_num_threads(config.threads)

    def load(self, directory: str, revision: str | None) -> int:
        """Puts the reward model of `directory` in place, between groups; returns its rm_version."""
        objectives = self._config.objectives
        model = GatedRewardModel.load(directory, self._config.dtype, revision, objectives).to(self._device)
        if model.info.calibration is None:
            raise ValueError(
                f"{directory}: the reward model has no calibration, and the transform needs one; run stage "
                "reward_model with data.ratings or data.preferences (it calibrates a given rewarder.model without training it)"
            )
        aggregation = aggregation_of(self._settings, model.objectives)
        matrix = model.reward_transform_matrix.detach().cpu()
        check_live_groups(matrix, aggregation, model.objectives)
        terms = aggregation.calibrated_terms(model.objectives)
        if problem := model.info.calibration.mismatch(aggregation.kind, terms):
            raise ValueError(f"{directory}: {problem}; run stage reward_model again under this aggregation")
        temperature = torch.tensor(model.info.calibration.temperatures)
        with self._lock:
            tokenizer = AutoTokenizer.from_pretrained(directory, revision=revision)
            self._served.set(Served(model.eval(), tokenizer, aggregation, temperature, matrix))
        return model.info.rm_version

    def score_references(self, samples: Sequence[ReferenceSamples]) -> dict[str, ScoredReference]:
        """prompt_id -> its reference under the reward model in place."""
        with self._lock:
            return {sample.prompt_id: self._reference(sample) for sample in samples}

    def set_references(self, references: Mapping[str, FloatArray], version: str) -> None:
        """The references of the iteration that starts; `version` is their key."""
        with self._lock:
            self._references, self._reference_version = references, version

    def pause(self) -> None:
        """Once this returns, no group is scored until `resume`: one in hand was finished and handed on, others wait."""
        self._pause.begin()

    def resume(self) -> None:
        """Scoring goes on after a pause."""
        self._pause.end()

    def serve(self, queue: QueueAddress) -> None:
        """Starts scoring in a thread."""
        self._queue.set(queue.connect())
        threading.Thread(target=self._run, daemon=True, name="scoring").start()

    def health(self) -> dict[str, float]:
        """Raises the failure of the scoring loop, if any; else how much was scored and how long that took."""
        if self._failure is not None:
            raise self._failure
        return {"groups": float(self._groups), "busy_s": self._busy_s}

    def score(self, group: RolloutGroup) -> ScoredGroup:
        """Rewards of one group's responses by the reward model in place; between groups of the scoring thread, if any.

        Raises ValueError for a prompt without references where the aggregation needs them and for a score that is not
        finite, and ConversationTooLong."""
        responses = [rollout.response for rollout in group.rollouts]
        with self._lock, torch.no_grad():
            reference = self._reference_of(group.prompt.prompt_id)
            scores, gate = self._raw_scores(group.prompt.messages, responses)
            served = self._served.value
            terms, weights = rewards(scores, gate, served.matrix, reference, served.temperature, served.aggregation)
            versions = served.model.info.rm_version, self._reference_version
        weights = weights.expand_as(terms)  # min weighs each response's terms by itself, the others the prompt's
        parts = [
            Reward(
                scores=scores[g].numpy(),
                gate_weights=gate.numpy(),
                terms=terms[g].numpy(),
                weights=weights[g].numpy(),
                penalty=self._config.truncation_penalty if rollout.finish_reason == "length" else 0.0,
            )
            for g, rollout in enumerate(group.rollouts)
        ]
        return ScoredGroup(group, tuple(parts), *versions)

    def _run(self) -> None:
        try:
            while True:
                self._pause.wait()  # what is taken and not scored goes to another rewarder in time, as if this one were dead
                for item in self._queue.value.take_rollouts(self._name, 1, BLOCK_S):
                    with self._pause.work():
                        self._score_item(item)
        except BaseException as error:  # the thread's boundary: the driver asks `health` and stops the run
            logger.exception("rewarder %s stopped scoring", self._name)
            self._failure = error

    def _score_item(self, item: RolloutItem) -> None:
        started = time.monotonic()
        try:
            scored = self.score(item.group)
        except (ConversationTooLong, ValueError) as error:  # this group's fault, not the rewarder's: dead-letter it
            self._queue.value.drop(item, f"scoring: {error}")
            return
        try:
            self._queue.value.push_scored(item, scored)
        except EncodeError as error:
            self._queue.value.drop(item, str(error))
        self._busy_s += time.monotonic() - started
        self._groups += 1

    def _reference_of(self, prompt_id: str) -> torch.Tensor:
        """r_ref [M] of a prompt; zeros where nothing is centred on them."""
        aggregation = self._served.value.aggregation
        if not aggregation.needs_reference:
            return torch.zeros(aggregation.num_terms)
        reference = self._references.get(prompt_id)
        if reference is None:
            raise ValueError(f"prompt {prompt_id} has no references in {self._reference_version}")
        return torch.from_numpy(np.array(reference))

    def _raw_scores(self, messages: Sequence[Message], responses: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        served, limits = self._served.value, (self._config.max_tokens, self._config.batch_tokens)
        return score_responses(served.model, served.tokenizer, messages, responses, *limits)

    def _reference(self, sample: ReferenceSamples) -> ScoredReference:
        settings, served, count = self._settings, self._served.value, len(sample.responses)
        with torch.no_grad():
            responses = [*sample.responses, *settings.canned.values()]
            scores, gate = self._raw_scores(sample.messages, responses)
            combined = combined_scores(scores, gate, served.matrix, served.aggregation)
        value = reference_value(combined[:count], settings.quantile, settings.estimator)
        covered = covers_unseen(combined[:count], settings.quantile, settings.estimator)
        names = term_names(asdict(settings), served.model.objectives)
        for row, term in enumerate(settings.canned, count):
            column = names.index(term)
            value[column] = combined[row, column]
            covered[:, column] = combined[:count, column] <= value[column]
        z = center_and_scale(combined[:count], value, served.temperature)
        return ScoredReference(value.numpy(), z.numpy(), covered.numpy())
