"""r_ref of the iteration's shard in every rewarder, under the reward model in place.

    begin   an iteration starts: the anchor's samples, sampled or found, scored or found
    again   another version serves in the middle of it: the same samples under that one

The anchor's samples do not depend on the reward model, so they are kept apart from their values: a changed version costs passes
of the reward model and no sampling. Owned by driver/loop/loop.py. An aggregation that centres on nothing has no references.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from common.config.aggregations import term_names
from common.config.config import Config
from common.types import Prompt
from driver.cluster.doors import Actors, Rewarders
from driver.loop.publish import Publisher
from driver.loop.references import (
    Facts,
    References,
    keep_references,
    keep_samples,
    load_references,
    load_samples,
    sample_shard,
    samples_key,
    score_samples,
    shard_facts,
    values_key,
)
from rewarder.aggregation import aggregation_of
from rewarder.worker import ReferenceSamples

NO_REFERENCES = "none"  # the reference version of an aggregation that centres on nothing


class ReferencePass:
    """The references of one run's iterations, one after the other."""

    def __init__(
        self, config: Config, actors: Actors, rewarders: Rewarders, publisher: Publisher, run: Path, anchor: str
    ):
        self._config, self._actors, self._rewarders, self._publisher = config, actors, rewarders, publisher
        self._directory, self._anchor = run / "references", anchor
        self._needed = aggregation_of(config.aggregation, config.rewarder.objectives).needs_reference
        self._shard: Sequence[Prompt] = ()
        self._facts: Facts = {}
        self.coverage: dict[str, float] = {}  # by term, of the version in place; empty where nothing is centred

    def begin(self, shard: Sequence[Prompt], reward_model: str) -> None:
        """References of a shard. Loads the anchor into the engines where its samples are not there yet."""
        self._shard = shard
        self._facts = shard_facts(self._config, shard, self._anchor) if self._needed else {}
        self.again(reward_model)

    def again(self, reward_model: str) -> None:
        """References of the same shard under another reward model, which is in place."""
        references, key = self._find(reward_model) if self._needed else (References(), NO_REFERENCES)
        terms = term_names(asdict(self._config.aggregation), self._config.rewarder.objectives)
        self.coverage = dict(zip(terms, references.coverage, strict=False))
        self._rewarders.set_references(references.values, key)

    def _find(self, reward_model: str) -> tuple[References, str]:
        """r_ref of each prompt and their key; kept ones, else scored and kept."""
        key = values_key(self._config, self._facts, reward_model)
        found = load_references(self._directory, key)
        if found is None:
            found = score_samples(self._rewarders, self._config, self._samples())
            keep_references(self._directory, key, found)
        return found, key

    def _samples(self) -> list[ReferenceSamples]:
        """The anchor's samples of the shard; kept ones, else sampled and kept."""
        key = samples_key(self._facts)
        found = load_samples(self._directory, key, self._shard)
        if found is None:
            found = sample_shard(self._actors, self._publisher, self._config, self._shard)
            keep_samples(self._directory, key, found)
        return found
