"""Weights from the learner to the engines, and the proof that they arrived (law 1).

    learner.weights -> every engine loads -> every engine answers the probe -> equal to the learner's? -> serve

An engine whose log-probs differ is torn: it stays behind its closed gate, is loaded once more, and if it still differs the
run stops. A version counts as published only when all engines hold it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.models import tensor_names
from common.types import FloatArray, IntArray, Prompt
from driver.cluster.calls import RoleError, Stored
from driver.cluster.doors import Actors, Learners

PROBE_TOKENS = 64


@dataclass(frozen=True)
class Published:
    """What a version's publication showed on the probe: the largest |learner - engine| log-prob over all engines, and how far
    the learner itself moved since the last publication (None at the first). A missed update shows only if the step is larger
    than the tolerance."""

    max_logprob_diff: float
    step_size: float | None


class Publisher:
    """Publishes policy versions and the anchor to all engines."""

    def __init__(self, learners: Learners, actors: Actors, anchor: Path, prompts: Sequence[Prompt], tolerance: float):
        self._learners, self._actors, self._anchor, self._tolerance = learners, actors, anchor, tolerance
        self._probe = probe_tokens(prompts)
        self._anchor_weights: Stored[list[bytes]] | None = None
        self._before: FloatArray | None = None

    def policy(self, version: int) -> Published:
        """Publishes the learner's weights as `version` and lets the engines serve it."""
        shards, names = self._learners.weights()
        published = self._load(version, self._actors.store(shards), names, anchor=False)
        self._actors.serve(version)
        return published

    def anchor(self) -> Published:
        """Loads the anchor (version 0) into the engines, verified but not serving: references are sampled from it."""
        if self._anchor_weights is None:
            shards = [file.read_bytes() for file in sorted(self._anchor.glob("*.safetensors"))]
            self._anchor_weights = self._actors.store(shards)
        return self._load(0, self._anchor_weights, tensor_names(self._anchor), anchor=True)

    def _load(self, version: int, shards: Stored[list[bytes]], names: Sequence[str], anchor: bool) -> Published:
        expected = self._learners.probe(self._probe, anchor)
        self._actors.load_weights(version, shards, names)
        differences = self._differences(expected)
        if torn := [i for i, difference in enumerate(differences) if not difference <= self._tolerance]:
            self._actors.load_weights(version, shards, names, only=torn)
            differences = self._differences(expected)
        if not (worst := float(np.max(differences))) <= self._tolerance:  # np.max keeps a NaN, max() may drop it
            raise RoleError(
                f"actor-{int(np.argmax(differences))} holds other weights than version {version}: log-probs of the probe "
                f"differ by {worst:.3g}, actors.sync_tolerance is {self._tolerance:g}, and loading again did not help. "
                "The engine is not allowed to sample. With a bfloat16 engine a larger model may need a larger tolerance; a "
                "mixture of experts cannot be reloaded by vLLM on a CPU (docs/limits.md)."
            )
        step_size = None if self._before is None else float(np.abs(expected - self._before).max())
        self._before = expected
        return Published(worst, step_size)

    def _differences(self, expected: FloatArray) -> list[float]:
        return [float(np.abs(answer - expected).max()) for answer in self._actors.probe(self._probe)]


def probe_tokens(prompts: Sequence[Prompt]) -> IntArray:
    """The fixed probe sequence: the first prompts' tokens in a row, at most PROBE_TOKENS and at most a longest prompt."""
    longest = max(len(prompt.token_ids) for prompt in prompts)
    joined = np.concatenate([prompt.token_ids for prompt in prompts[:PROBE_TOKENS]])
    return joined[: max(2, min(PROBE_TOKENS, longest))]
