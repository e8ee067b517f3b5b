"""What a round of the reward model adds to an iteration of the loop, by tier and method.

    python -m benchmarks.rm_round [--steps N] [--updates N] [--repeats N] [--seed N] [--out DIR]

One iteration of the sandbox's loop in this process, as the studies run it (studies/loop.py: the engine, the rewarder and the
learner as they are; the engine's start and the references are not counted). Then rounds on that iteration's own groups, all
from the model that scored them: which pairs, gold's labels of them, the updates, and the rest of the adapter's work (loading,
states, weighing). All of it `--repeats` times, so that a share is of the iteration just before. Settings are those of study
adaptation, the same number of updates for every tier. What the seed's models need is made first where it is not in
data/studies.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import median

import torch

from benchmarks.measure import Row, publish
from common.config.config import Config
from common.config.file import load_config
from common.data.label_sources import LabelFiles
from common.types import ScoredGroup
from driver.judges.label_book import LabelBook, make_judge
from learner.adaptation.worker import RmAdapter, Round, Versions
from studies import artifacts, making
from studies.catalog import ROUNDS
from studies.lab import Lab, learner_of
from studies.loop import Loop, Rewards
from studies.prompts import held_out_prompts
from studies.worlds import SANDBOX

CASES = (
    *(("gate", "labelled"), ("heads", "labelled"), ("lora", "labelled"), ("top", "labelled"), ("full", "labelled")),
    *(("full", "literal"), ("full", "look_ahead")),
)
MIB = 2**20


@dataclass(frozen=True)
class Spent:
    """Seconds of a round's parts, and by how much the process grew at its peak: `fit` is its updates, `weigh` all else that the
    adapter does with the labels (loading, states, both sides' weighing)."""

    propose_s: float
    judge_s: float
    fit_s: float
    weigh_s: float
    growth_mib: float

    @property
    def whole_s(self) -> float:
        """The seconds of a whole round."""
        return self.propose_s + self.judge_s + self.fit_s + self.weigh_s


class Timed(RmAdapter):
    """Notes when its updates were done."""

    def __init__(self, config: Config):
        super().__init__(0, config)
        self.ends: list[float] = []

    def _report(self, *values: object, **named: object) -> None:
        self.ends.append(time.perf_counter())

    @property
    def updates_s(self) -> float:
        """All updates; the first one, whose start is not seen, is as long as the others' mean."""
        count = len(self.ends)
        assert count > 1, "a fit has two updates at least: raise --updates, or --steps where nothing was fitted"
        return (self.ends[-1] - self.ends[0]) * count / (count - 1)


def main() -> None:
    """Measures and prints every row."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=25, help="of the iteration, at most the configuration's")
    parser.add_argument("--updates", type=int, default=60, help="of each fit")
    parser.add_argument("--repeats", type=int, default=3, help="of the iteration, each with its rounds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("data/benchmarks"))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    lab, config = Lab(), config_of(asked.seed, asked.steps, asked.updates)
    prepare(config, lab)
    with tempfile.TemporaryDirectory() as scratch:
        rows = measure(config, lab, asked.steps, asked.repeats, Path(scratch))
    lab.close()
    publish("rm_round", {name: value for name, value in vars(asked).items() if name != "out"}, rows, asked.out)


def config_of(seed: int, steps: int, updates: int) -> Config:
    """The settings are those of study adaptation; few steps have few prompts, of which half give evidence."""
    config = load_config(SANDBOX.configs[0], [*ROUNDS, f"run.seed={seed}", f"adaptation.steps={updates}"])
    enough = min(config.adaptation.min_pairs, max(1, steps * config.learner.groups_per_step // 4))
    return replace(config, adaptation=replace(config.adaptation, min_pairs=enough))


def prepare(config: Config, lab: Lab) -> None:
    """The sandbox, the SFT policy and the reward model of this seed, where they are not there."""
    SANDBOX.write(config)
    for artifact in (artifacts.sft_of(config), artifacts.reward_model_of(config)):
        if not artifact.is_made():
            making.make(artifact, config, lab, lambda what, done, total: print(f"making {what}: {done} of {total}"))


def measure(config: Config, lab: Lab, steps: int, repeats: int, scratch: Path) -> list[Row]:
    """The rows of all repeats of an iteration with its rounds."""
    anchor, rm = artifacts.sft_of(config).directory, artifacts.reward_model_of(config).directory
    served = scratch / "version_0"
    rewards = Rewards(config, anchor, rm, served)
    iterations, spent = list[list[float]](), {case: list[Spent]() for case in CASES}
    for repeat in range(repeats):
        groups, seconds = iterate(config, lab, anchor, rewards, steps)
        iterations.append(seconds)
        for tier, method in CASES[:: -1 if repeat % 2 else 1]:
            adaptation = replace(config.adaptation, tier=tier, method=method)
            with tempfile.TemporaryDirectory(dir=scratch) as directory:
                chosen = replace(config, adaptation=adaptation), artifacts.label_files(rm), served, groups
                spent[tier, method].append(hold(*chosen, Path(directory)))
    return rows_of(iterations, spent)


def iterate(
    config: Config, lab: Lab, anchor: Path, rewards: Rewards, steps: int
) -> tuple[list[ScoredGroup], list[float]]:
    """The groups of an iteration from the anchor on, and the seconds of each step."""
    learner = learner_of(config)
    learner.load_policy(str(anchor), None)
    lab.start(config, anchor)
    probe = held_out_prompts(config, anchor)
    loop, groups, seconds = Loop(config, lab, learner, anchor, rewards.score), list[ScoredGroup](), list[float]()
    for step in range(min(steps, config.iteration.steps)):
        started = time.perf_counter()
        lab.publish(learner, step, probe)
        groups += loop.step(step)
        seconds.append(time.perf_counter() - started)
    return groups, seconds


def hold(config: Config, files: LabelFiles, served: Path, groups: Sequence[ScoredGroup], directory: Path) -> Spent:
    """One round, as studies/adaptation.py holds it; its candidate serves nowhere."""
    before = reset_peak()
    adapter, times = Timed(config), [time.perf_counter()]
    adapter.set_original(files)
    proposal = adapter.propose_from(0, groups)
    times.append(time.perf_counter())
    fitted = proposal.fit if config.adaptation.method == "labelled" else ()
    judge = make_judge(replace(config.judge, labeler=None), config.run.seed)
    labels = LabelBook(directory / "labels.jsonl").buy([*fitted, *proposal.evidence], judge)
    times.append(time.perf_counter())
    adapter.fit(Round(0, proposal, labels), Versions(str(served), None, 1, str(directory / "candidate")))
    times.append(time.perf_counter())
    propose, judged, rest = (end - start for start, end in pairwise(times))
    return Spent(propose, judged, adapter.updates_s, rest - adapter.updates_s, memory_mib("VmHWM") - before)


def rows_of(iterations: Sequence[Sequence[float]], spent: dict[tuple[str, str], list[Spent]]) -> list[Row]:
    """`iterations` has the seconds of each step, and `spent` a round of each case, of the same repeats."""
    totals, steps = [sum(seconds) for seconds in iterations], [one for seconds in iterations for one in seconds]
    rows = [_row(f"iteration of {len(iterations[0])} steps", totals, "s"), _row("a step", steps, "s")]
    for (tier, method), rounds in spent.items():
        name = f"tier {tier}, {method}"
        whole = [one.whole_s for one in rounds]
        rows.append(_row(f"{name}: round", whole, "s"))
        shares = [s / (total + s) for total, s in zip(totals, whole, strict=True)]
        rows.append(_row(f"{name}: share", shares, "of iteration and round"))
        for part in ("propose", "judge", "fit", "weigh"):
            rows.append(_row(f"{name}: {part}", [getattr(one, f"{part}_s") for one in rounds], "s"))
        rows.append(_row(f"{name}: peak growth", [one.growth_mib for one in rounds], "MiB"))
    return rows


def _row(what: str, values: Sequence[float], unit: str) -> Row:
    return Row(what, median(values), unit, min(values), max(values))


def reset_peak() -> float:
    """Forgets the process's peak (Linux), and says what it holds now, MiB."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    return memory_mib("VmRSS")


def memory_mib(name: str) -> float:
    """A line of /proc/self/status."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[name].split()[0]) * 1024 / MIB


if __name__ == "__main__":
    main()
