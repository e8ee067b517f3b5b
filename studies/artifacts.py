"""What units of one seed share, made once: the SFT policy, and the reward model with its labelled samples and references.

Each is a directory under data/studies, named by the hash of what it depends on, written aside and renamed: it is whole or it
is not there. Called by the runner, which makes them before the units that need them.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from actors.prompts import shard, tokenize_prompts
from common.config import Config
from common.data import read_prompts, write_jsonl
from common.judge import label_samples, load_function
from common.label_sources import LabelFiles
from common.types import Prompt
from examples.sandbox.prepare import prepare
from examples.sandbox.version import world_hash
from studies.lab import Lab, Report, learner_of
from studies.study import digest, explicit

ROOT = Path("data") / "studies"
PROBE_PROMPTS = 64


@dataclass(frozen=True)
class Artifact:
    """One shared directory: `kind` says what it holds, `key` what it depends on."""

    kind: str
    seed: int
    key: str

    @property
    def name(self) -> str:
        return f"{self.kind}/seed {self.seed}/{self.key}"

    @property
    def directory(self) -> Path:
        return ROOT / f"{self.kind}-seed{self.seed}-{self.key}"

    def is_made(self) -> bool:
        return self.directory.is_dir()


def sft_of(config: Config) -> Artifact:
    """The SFT policy of this configuration's seed."""
    return Artifact("sft", config.run.seed, _key(config, ("policy.", "data.", "learner.sft.")))


def reward_model_of(config: Config) -> Artifact:
    """Labelled samples of the SFT policy, the reward model trained on them (calibrated for aggregation grouped), and the
    anchor's responses to the prompts of all iterations. Arms with another aggregation calibrate a copy."""
    parts = ("judge.", "rewarder.", "learner.reward_model.", "iteration.", "learner.groups_per_step", "actors.")
    return Artifact("reward_model", config.run.seed, _key(config, ("policy.", "data.", "learner.sft.", *parts)))


KINDS: dict[str, Callable[[Config], Artifact]] = {
    "sft": sft_of,
    "reward_model": reward_model_of,
}  # in the order of need


def write_world(config: Config) -> None:
    """The sandbox of this configuration's seed, where it is not there: every task reads some of it."""
    assert config.data.demonstrations is not None, "studies have demonstrations"
    prepare(Path(config.data.demonstrations).parent, config.run.seed)


def make(artifact: Artifact, config: Config, lab: Lab, report: Report) -> None:
    """Makes the artifact aside and renames it into place."""
    aside = artifact.directory.with_name(f".{artifact.directory.name}.{os.getpid()}")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    MAKERS[artifact.kind](config, lab, aside, report)
    aside.rename(artifact.directory)


def make_sft(config: Config, lab: Lab, directory: Path, report: Report) -> None:
    assert config.policy.model is not None, "studies start from a model"
    report("sft", 0, 1)
    learner_of(config).sft(config.policy.model, str(directory))


def make_reward_model(config: Config, lab: Lab, directory: Path, report: Report) -> None:
    anchor = sft_of(config).directory
    learner = learner_of(config)
    learner.load_anchor(str(anchor))
    lab.start(config, anchor)
    lab.publish_anchor(learner, anchor, training_prompts(config, anchor, PROBE_PROMPTS))
    report("collect", 0, 3)
    _collect(config, lab, anchor, directory)
    report("references", 1, 3)
    _references(config, lab, anchor, directory)
    report("reward model", 2, 3)
    plain = str(directory / "baseline") if config.learner.reward_model.baseline else None
    learner.reward_model(str(anchor), label_files(directory), str(directory / "model"), plain)


def label_files(directory: Path) -> LabelFiles:
    """The labels that a reward model's artifact holds."""
    return LabelFiles(str(directory / "ratings.jsonl"), str(directory / "preferences.jsonl"))


MAKERS: dict[str, Callable[[Config, Lab, Path, Report], None]] = {
    "sft": make_sft,
    "reward_model": make_reward_model,
}


def training_prompts(config: Config, anchor: Path, limit: int | None = None) -> list[Prompt]:
    """data.prompts through the anchor's chat template."""
    return _prompts(config, config.data.prompts, anchor, limit)


def held_out_prompts(config: Config, anchor: Path, limit: int | None = None) -> list[Prompt]:
    """The first `limit` (default: evaluate.prompts) of data.eval_prompts."""
    return _prompts(config, config.data.eval_prompts, anchor, limit or config.evaluate.prompts)


def shards(config: Config, anchor: Path) -> list[list[Prompt]]:
    """The prompts of each iteration, as driver/loop.py cuts them."""
    prompts, size = training_prompts(config, anchor), config.iteration.steps * config.learner.groups_per_step
    return [shard(prompts, i, config.iteration.num, config.run.seed)[:size] for i in range(config.iteration.num)]


def reference_responses(directory: Path) -> dict[str, tuple[str, ...]]:
    """prompt_id -> the anchor's responses."""
    lines = (directory / "references.jsonl").read_text().splitlines()
    return {row["prompt_id"]: tuple(row["responses"]) for row in map(json.loads, lines)}


def _prompts(config: Config, source: str | None, anchor: Path, limit: int | None) -> list[Prompt]:
    assert source is not None, "studies have prompts"
    tokenizer = Lab.tokenizer(anchor)
    rows = read_prompts(source, limit)
    return tokenize_prompts(rows, tokenizer, config.data.max_prompt_tokens, config.data.long_prompts)[0]


def _collect(config: Config, lab: Lab, anchor: Path, directory: Path) -> None:
    judge, seed = config.judge, config.run.seed
    assert judge.labeler is not None, "studies have a labeler"
    prompts = training_prompts(config, anchor, judge.collect_prompts)
    sampled = lab.sample(prompts, judge.collect_responses, seed, "collect")
    ratings, pairs = label_samples(load_function(judge.labeler), prompts, sampled, seed)
    write_jsonl(directory / "ratings.jsonl", ratings)
    write_jsonl(directory / "preferences.jsonl", pairs)


def _references(config: Config, lab: Lab, anchor: Path, directory: Path) -> None:
    prompts = [prompt for part in shards(config, anchor) for prompt in part]
    sampled = lab.sample(prompts, config.aggregation.references_per_prompt, config.run.seed, "references")
    rows = zip(prompts, sampled, strict=True)
    write_jsonl(
        directory / "references.jsonl",
        [{"prompt_id": prompt.prompt_id, "responses": [r.response for r in rollouts]} for prompt, rollouts in rows],
    )


def _key(config: Config, prefixes: tuple[str, ...]) -> str:
    told = explicit(config)
    parts = {name: value for name, value in told.items() if name.startswith(prefixes) and name != "rewarder.model"}
    return digest([parts, config.run.seed, world_hash()])
