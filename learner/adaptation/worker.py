"""The reward model adapter: Ray actors of its own that turn the policy's scored samples into a candidate reward model.

Called by the driver alone (driver/rounds/reward_models.py): `propose`, of rank 0, says which pairs should be judged and
which samples are used without labels; `fit`, of every rank, trains a candidate, weighs it on the evidence, and writes it
only if it is accepted. Rank 0 reads `{run}:scored` by a cursor of its own, outside the ledger: it acknowledges nothing, and
what was trimmed before it looked is gone for it. Its own process group and optimizer; it holds no model between calls.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from common.config.config import Config
from common.data.label_sources import LabelFiles
from common.data.split import is_validation
from common.judge import PairItem, Preference
from common.later import Later
from common.queue.address import QueueAddress
from common.queue.ledger import START
from common.queue.queue import Queue
from common.ratings import RateItem, Rating
from common.types import ScoredGroup
from learner.adaptation.candidates import (
    Proposal,
    fresh_groups,
    judged_sets,
    propose,
    round_seed,
    unlabelled_sets,
)
from learner.adaptation.disagreement import of_ensemble, of_pairs
from learner.adaptation.evidence import Decision
from learner.adaptation.fit import Method
from learner.adaptation.round import Data, adapt
from learner.ranks.engine import init_process_group
from learner.ranks.own_host import own_host
from learner.ranks.progress import Watched
from learner.reward_model import data as reward_data
from learner.reward_model.calibration import preference_column
from learner.reward_model.data import PromptSet
from rewarder.aggregation import aggregation_of
from rewarder.model import GatedRewardModel

READ_RECORDS = 256
GROUPS_PER_PAIR = 4  # kept for each pair of a round: some have no two different whole responses, or one side is full
MOST_ORIGINAL_PROMPTS = 2000  # of each, training and held out: bounds the passes of a round over a large original set


@dataclass(frozen=True)
class Round:
    """What a fit rests on: the proposal with its labels, its number (which seeds it), the weights of the losses of the original
    pairs, in the file's order, where the method has any (ocrm), and labelled pairs and responses of earlier rounds to fit on
    too."""

    number: int
    proposal: Proposal
    preferences: Mapping[str, Preference]
    pair_weights: Sequence[float] | None = None
    earlier: Sequence[PairItem] = ()
    ratings: Mapping[str, Rating] = field(default_factory=dict)
    earlier_ratings: Sequence[RateItem] = ()


@dataclass(frozen=True)
class Versions:
    """The model that serves (directory or Hub id, and its revision), and the directory and rm_version of a candidate."""

    served: str
    revision: str | None
    version: int
    directory: str


class RmAdapter(Watched):
    """One rank: proposes, fits and weighs; one round at a time."""

    def __init__(self, rank: int, config: Config):
        self._rank, self._config = rank, config
        self._settings, self._rewarder = config.adaptation, config.rewarder
        self._device = torch.device("cuda" if self._settings.gpus else "cpu")
        settings = self._settings
        self._pairs = settings.fit_pairs if settings.fits_pairs else 0, settings.evidence_pairs
        self._ratings = (settings.fit_ratings, settings.evidence_ratings) if settings.fits_ratings else (0, 0)
        self._cursor = START
        self._groups: dict[int, ScoredGroup] = {}
        self._files: Later[LabelFiles] = Later("set_original")
        self._queue: Later[Queue] = Later("connect")

    def address(self) -> tuple[str, int]:
        """A host and free port of rank 0's node, for the process group."""
        with socket.socket() as free:
            free.bind(("", 0))
            return "127.0.0.1" if self._config.cluster.address is None else own_host(), free.getsockname()[1]

    def join(self, host: str, port: int) -> None:
        """Joins the adapter's process group; every rank must call it."""
        torch.set_num_threads(self._settings.threads)
        init_process_group(self._rank, self._settings.ranks, host, port, self._settings.gpus)

    def set_original(self, files: LabelFiles) -> None:
        """The original data that the served model was made from."""
        self._files.set(files)

    def connect(self, queue: QueueAddress) -> None:
        """Opens the scored stream."""
        self._queue.set(queue.connect())

    def propose(self, number: int, first_slot: int) -> Proposal:
        """Pairs of the newest samples (slots from first_slot on), to be judged before `fit`, and samples without labels."""
        self._read(first_slot)
        return self.propose_from(number, list(self._groups.values()))

    def propose_from(self, number: int, groups: Sequence[ScoredGroup]) -> Proposal:
        """Proposes pairs of the groups given."""
        fraction = self._config.learner.reward_model.held_out_fraction
        doubt = self._doubt if self._settings.select == "disagreement" else None
        fresh = fresh_groups(groups, self._settings.fresh_steps)
        return propose(fresh, *self._pairs, fraction, self._seed(number), doubt, *self._ratings)

    def fit(self, chosen: Round, versions: Versions) -> Decision:
        """Fits a candidate to the served model, weighs it, and writes it if it is accepted. What is served is only read."""
        served, revision, rewarder = versions.served, versions.revision, self._rewarder
        model = GatedRewardModel.load(served, rewarder.dtype, revision, rewarder.objectives).to(self._device)
        tokenizer = AutoTokenizer.from_pretrained(served, revision=revision)
        data = self._data(chosen, model.objectives, tokenizer)
        aggregation = aggregation_of(self._config.aggregation, model.objectives)
        method = self._method(model.objectives, chosen.number)
        decision = adapt(model, data, aggregation, method, self._config.learner, self._report)
        if decision.accepted and self._rank == 0:
            model.info = replace(model.info, rm_version=versions.version)
            model.save(Path(versions.directory), tokenizer)
        return replace(decision, numbers=decision.numbers | _facts(data, chosen))

    def _method(self, objectives: Sequence[str], number: int) -> Method:
        learner = self._config.learner
        return Method(
            self._settings,
            learner.reward_model.regression_weight,
            preference_column(self._rewarder, objectives),
            learner.micro_batch_tokens,
            self._seed(number),
            learner.gradient_checkpointing,
            self._rank,
        )

    def _doubt(self, pairs: Sequence[PairItem]) -> Sequence[float]:
        assert self._settings.ensemble is not None, "the configuration asks for an ensemble"
        return of_pairs(pairs, self._settings.ensemble, self._rewarder, self._device).tolist()

    def disagreement(self, first_slot: int) -> float | None:
        """How far adaptation.ensemble's members differ on the newest groups from first_slot on; None where there are none."""
        self._read(first_slot)
        newest, ensemble = sorted(self._groups)[-self._settings.drift.pairs :], self._settings.ensemble
        assert ensemble is not None, "the configuration asks for an ensemble"
        return of_ensemble([self._groups[slot] for slot in newest], ensemble, self._rewarder, self._device)

    def _read(self, first_slot: int) -> None:
        """Takes in what the stream has gained, and keeps the newest groups from first_slot on up to a bound."""
        while records := self._queue.value.read_scored(self._cursor, READ_RECORDS, 0.0):
            for self._cursor, record in records:
                if isinstance(record, ScoredGroup):
                    self._groups[record.group.slot] = record
            self._forget(first_slot)
        self._forget(first_slot)

    def _forget(self, first_slot: int) -> None:
        newest = sorted(slot for slot in self._groups if slot >= first_slot)
        kept = newest[-GROUPS_PER_PAIR * sum((*self._pairs, *self._ratings)) :]
        self._groups = {slot: self._groups[slot] for slot in kept}

    def _data(self, chosen: Round, objectives: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> Data:
        most, training, proposal = self._rewarder.max_tokens, self._config.learner.reward_model, chosen.proposal
        rest = objectives, tokenizer
        settings = self._rewarder, training, chosen.pair_weights
        original = reward_data.read_sides(self._files.value, objectives, tokenizer, *settings)
        bounded = (self._bounded(sets) for sets in original)
        labels, ratings = chosen.preferences, chosen.ratings
        fresh = [*proposal.fit], [*proposal.fit_ratings]
        older = [*chosen.earlier], [*chosen.earlier_ratings]
        if not self._settings.batch_older:
            fresh, older = (fresh[0] + older[0], fresh[1] + older[1]), ([], [])

        def judged(pairs: Sequence[PairItem], rated: Sequence[RateItem]) -> list[PromptSet]:
            return judged_sets(pairs, labels, *rest, most, rated, ratings)

        fitted, validation = self._parted(judged(*fresh))
        return Data(
            fitted,
            judged(proposal.evidence, []),
            unlabelled_sets(proposal.unlabelled, *rest, most),
            *bounded,
            older=judged(*older),
            validation=validation,
            rated=judged([], proposal.evidence_ratings),
        )

    def _parted(self, fresh: list[PromptSet]) -> tuple[list[PromptSet], list[PromptSet]]:
        """(fitted on, looked at), by a hash of the prompt; all are fitted on where a fit does not stop early."""
        settings = self._settings
        if settings.patience is None:
            return fresh, []
        seen = [is_validation(prompt.messages, settings.validation_fraction) for prompt in fresh]
        sides = ([p for p, one in zip(fresh, seen, strict=True) if one is kept] for kept in (False, True))
        fitted, validation = sides
        return fitted, validation

    def _bounded(self, sets: list[PromptSet]) -> list[PromptSet]:
        """Takes MOST_ORIGINAL_PROMPTS of them, the same ones in every round."""
        if len(sets) <= MOST_ORIGINAL_PROMPTS:
            return sets
        order = np.random.default_rng(self._config.run.seed).permutation(len(sets))
        return [sets[index] for index in sorted(order[:MOST_ORIGINAL_PROMPTS])]

    def _seed(self, number: int) -> int:
        return round_seed(self._config.run.seed, number)


def _facts(data: Data, chosen: Round) -> dict[str, float | None]:
    """What the decision rests on: numbers of pairs, and how old the policy was that sampled them."""
    oldest = chosen.proposal.oldest_version
    rated = [item for item in chosen.proposal.rated if item.key in chosen.ratings]
    preferences = [chosen.preferences[item.key] for item in chosen.proposal.items if item.key in chosen.preferences]
    return {
        "judged_pairs": float(len(preferences)),
        "ties": float(sum(preference == "tie" for preference in preferences)),
        "earlier_pairs": float(len(chosen.earlier)),
        "rated_responses": float(sum(bool(chosen.ratings[i.key].scores) for i in rated)),
        "unrated_responses": float(sum(not chosen.ratings[i.key].scores for i in rated)),
        "earlier_ratings": float(len(chosen.earlier_ratings)),
        "validation_prompts": float(len(data.validation)),
        "fit_pairs": float(sum(len(prompt.pairs) for prompt in data.fit)),
        "unlabelled_prompts": float(len(data.meta)),
        "held_out_prompts": float(len(data.held_out)),
        "oldest_policy_version": None if oldest is None else float(oldest),
    }
