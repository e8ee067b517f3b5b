"""The reward model adapter: a Ray actor of its own that turns the policy's scored samples into a candidate reward model.

Called by the driver alone (driver/adaptation.py), at the end of an iteration: `propose` says which pairs should be judged,
`fit` trains a candidate on half of the labels, weighs it on the other half, and writes it only if it is accepted. Reads
`{run}:scored` by a cursor of its own, outside the ledger: it acknowledges nothing, and what was trimmed before it looked is
gone for it. One process, one rank, its own optimizer; it holds no model between calls.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from common.address import QueueAddress
from common.config import Config
from common.judge import PairItem, Preference
from common.label_sources import LabelFiles
from common.ledger import START
from common.types import ScoredGroup
from learner import reward_data
from learner.adapt import Data, Method, adapt
from learner.calibration import preference_column
from learner.candidates import Proposal, judged_sets, propose
from learner.engine import init_single_rank
from learner.evidence import Decision
from learner.progress import Watched
from learner.reward_data import PromptSet
from rewarder.aggregation import aggregation_of
from rewarder.model import GatedRewardModel

READ_RECORDS = 256
GROUPS_PER_PAIR = 4  # kept for each pair of a round: some have no two different whole responses, or one side is full
MOST_ORIGINAL_PROMPTS = 2000  # of each, training and held out: bounds the passes of a round over a large original set


class RmAdapter(Watched):
    """Proposes, fits and weighs; one round at a time."""

    def __init__(self, config: Config):
        self._config = config
        self._settings, self._rewarder = config.adaptation, config.rewarder
        self._device = torch.device("cuda" if self._settings.gpus else "cpu")
        self._pairs = self._settings.fit_pairs, self._settings.evidence_pairs
        self._cursor = START
        self._groups: dict[int, ScoredGroup] = {}
        self._proposal = Proposal((), (), None)
        self._iteration = 0

    def connect(self, queue: QueueAddress, files: LabelFiles) -> None:
        """Opens the scored stream; the files are the original data that the served model was made from."""
        torch.set_num_threads(self._settings.threads)
        init_single_rank()
        self._queue = queue.connect()
        self._files = files

    def propose(self, iteration: int, first_slot: int) -> list[PairItem]:
        """Pairs of this iteration's newest samples (slots from first_slot on), to be judged before `fit`."""
        self._read(first_slot)
        fraction = self._config.learner.reward_model.held_out_fraction
        groups = list(self._groups.values())
        self._proposal = propose(groups, *self._pairs, fraction, self._seed(iteration))
        self._iteration = iteration
        return self._proposal.items

    def fit(
        self, preferences: Mapping[str, Preference], served: str, revision: str | None, version: int, directory: str
    ) -> Decision:
        """Fits a candidate to the model of directory (or Hub id) `served`, weighs it, and writes it as rm_version `version`
        to `directory` if it is accepted. What is served is only read."""
        objectives = self._rewarder.objectives
        model = GatedRewardModel.load(served, self._rewarder.dtype, revision, objectives).to(self._device)
        tokenizer = AutoTokenizer.from_pretrained(served, revision=revision)
        data = self._data(preferences, model.objectives, tokenizer)
        learner = self._config.learner
        seed, weight = self._seed(self._iteration), learner.reward_model.regression_weight
        preference, checkpointing = preference_column(self._rewarder, model.objectives), learner.gradient_checkpointing
        method = Method(self._settings, weight, preference, learner.micro_batch_tokens, seed, checkpointing)
        aggregation = aggregation_of(self._config.aggregation, model.objectives)
        decision = adapt(model, data, aggregation, method, self._report)
        if decision.accepted:
            model.info = replace(model.info, rm_version=version)
            model.save(Path(directory), tokenizer)
        return replace(decision, numbers=decision.numbers | self._facts(data, preferences))

    def _read(self, first_slot: int) -> None:
        """Takes in what the stream has gained, and keeps the newest groups from first_slot on up to a bound."""
        while records := self._queue.read_scored(self._cursor, READ_RECORDS, 0.0):
            for self._cursor, record in records:
                if isinstance(record, ScoredGroup):
                    self._groups[record.group.slot] = record
            self._forget(first_slot)
        self._forget(first_slot)

    def _forget(self, first_slot: int) -> None:
        newest = sorted(slot for slot in self._groups if slot >= first_slot)
        kept = newest[-GROUPS_PER_PAIR * sum(self._pairs) :]
        self._groups = {slot: self._groups[slot] for slot in kept}

    def _data(
        self, preferences: Mapping[str, Preference], objectives: Sequence[str], tokenizer: PreTrainedTokenizerBase
    ) -> Data:
        most, training = self._rewarder.max_tokens, self._config.learner.reward_model
        original = reward_data.read_sides(self._files, objectives, tokenizer, self._rewarder, training)
        bounded = (self._bounded(sets) for sets in original)
        fit, evidence = (
            judged_sets(items, preferences, objectives, tokenizer, most)
            for items in (self._proposal.fit, self._proposal.evidence)
        )
        return Data(fit, evidence, *bounded)

    def _bounded(self, sets: list[PromptSet]) -> list[PromptSet]:
        """The same MOST_ORIGINAL_PROMPTS of them in every round."""
        if len(sets) <= MOST_ORIGINAL_PROMPTS:
            return sets
        order = np.random.default_rng(self._config.run.seed).permutation(len(sets))
        return [sets[index] for index in sorted(order[:MOST_ORIGINAL_PROMPTS])]

    def _facts(self, data: Data, preferences: Mapping[str, Preference]) -> dict[str, float | None]:
        """What the decision rests on: numbers of pairs, and how old the policy was that sampled them."""
        oldest = self._proposal.oldest_version
        return {
            "judged_pairs": float(len(preferences)),
            "ties": float(sum(preference == "tie" for preference in preferences.values())),
            "fit_pairs": float(len(data.fit)),
            "held_out_prompts": float(len(data.held_out)),
            "oldest_policy_version": None if oldest is None else float(oldest),
        }

    def _seed(self, iteration: int) -> int:
        return self._config.run.seed * 1009 + iteration
