"""What units of one seed share, made once: the SFT policy, the reward model with its labelled samples and references, and
samples of a policy that has left the SFT policy's distribution.

Each is a directory under data/studies, named by the hash of what it depends on: it is whole or it is not there. Says what they
are called and reads them; making.py makes them. Called by the runner, which has them made before the units that need them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from common.config.config import Config
from common.data.label_sources import LabelFiles
from common.queue.codec import decode_scored
from common.types import ScoredGroup
from examples.sandbox.version import world_hash
from studies.study import digest, explicit

ROOT = Path("data") / "studies"
SHIFTED_PROMPTS, SHIFTED_SAMPLES = 400, 4
SHIFTED_FILE = "samples.jsonl"
GROUPS_FILE, POINTS_FILE = "groups.bin", "points.jsonl"


@dataclass(frozen=True)
class Artifact:
    """One shared directory: `kind` says what it holds, `key` what it depends on."""

    kind: str
    seed: int
    key: str

    @property
    def name(self) -> str:
        """What messages call it."""
        return f"{self.kind}/seed {self.seed}/{self.key}"

    @property
    def directory(self) -> Path:
        """Where it lies or will lie."""
        return ROOT / f"{self.kind}-seed{self.seed}-{self.key}"

    def is_made(self) -> bool:
        """Whether it is there already."""
        return self.directory.is_dir()


def sft_of(config: Config) -> Artifact:
    """The SFT policy of this configuration's seed."""
    return Artifact("sft", config.run.seed, _key(config, ("policy.", "data.", "learner.sft.")))


def reward_model_of(config: Config) -> Artifact:
    """Labelled samples of the SFT policy, the reward model trained on them (calibrated for aggregation grouped), and the
    anchor's responses to the prompts of all iterations. Arms with another aggregation calibrate a copy."""
    parts = ("judge.", "rewarder.", "learner.reward_model.", "iteration.", "learner.groups_per_step", "actors.")
    return Artifact("reward_model", config.run.seed, _key(config, ("policy.", "data.", "learner.sft.", *parts)))


def label_files(directory: Path) -> LabelFiles:
    """The labels that a reward model's artifact holds."""
    return LabelFiles(str(directory / "ratings.jsonl"), str(directory / "preferences.jsonl"))


def shifted_of(config: Config) -> Artifact:
    """Samples of the policy after the first iteration's steps, on the frozen reward model by this configuration's aggregation:
    SHIFTED_SAMPLES to each of SHIFTED_PROMPTS held-out prompts. Arm `frozen` of study sandbox passes through this policy."""
    parts = ("policy.", "data.", "judge.", "rewarder.", "aggregation.", "learner.", "iteration.", "actors.")
    return Artifact("shifted", config.run.seed, _key(config, parts, SHIFTED_PROMPTS, SHIFTED_SAMPLES))


def frozen_run_of(config: Config) -> Artifact:
    """The whole loop on the frozen reward model, which the arms of study adaptation share as far as they change nothing: what
    was measured on the way, and at the end of each iteration but the last the learner's checkpoint and the scored groups."""
    parts = ("policy.", "data.", "judge.", "rewarder.", "aggregation.", "learner.", "actors.", "evaluate.")
    sizes = config.iteration.steps, config.iteration.num
    return Artifact("frozen_run", config.run.seed, _key(config, parts, *sizes))


def iteration_in(directory: Path, number: int) -> Path:
    """Where a frozen run keeps the end of its number-th iteration, from 1."""
    return directory / f"iteration_{number}"


KINDS: dict[str, Callable[[Config], Artifact]] = {
    "sft": sft_of,
    "reward_model": reward_model_of,
    "shifted": shifted_of,
    "frozen_run": frozen_run_of,
}  # in the order of need


def reference_responses(directory: Path) -> dict[str, tuple[str, ...]]:
    """prompt_id -> the anchor's responses."""
    lines = (directory / "references.jsonl").read_text().splitlines()
    return {row["prompt_id"]: tuple(row["responses"]) for row in map(json.loads, lines)}


def scored_groups(directory: Path) -> list[ScoredGroup]:
    """The groups of an iteration, in slot order."""
    data, found = (directory / GROUPS_FILE).read_bytes(), list[ScoredGroup]()
    while data:
        end = 4 + int.from_bytes(data[:4], "little")
        record = decode_scored(data[4:end])
        assert isinstance(record, ScoredGroup), "a study drops no slot"
        found.append(record)
        data = data[end:]
    return found


def points(directory: Path) -> list[dict[str, float]]:
    """What was measured along a frozen run."""
    return [json.loads(line) for line in (directory / POINTS_FILE).read_text().splitlines()]


def _key(config: Config, prefixes: tuple[str, ...], *sizes: int) -> str:
    told = explicit(config)
    parts = {name: value for name, value in told.items() if name.startswith(prefixes) and name != "rewarder.model"}
    return digest([parts, config.run.seed, world_hash(), *sizes])
