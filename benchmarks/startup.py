"""How long a run takes from the command to its first step, by part.

    python -m benchmarks.startup [--repeats N] [--against CHECKOUT] [--out DIR]

Runs the real command, `python launch.py`, in the sandbox with models that are ready (a random policy and a random reward model,
made here), for one step. The parts end where the command says so, so that they add up to the whole. Beside them stand the CPU
seconds of each kind of process: they depend less on what else the machine does. With --against another checkout is
measured in turns with this one, every other repeat the other way round.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median

import psutil
import torch
from transformers import AutoTokenizer

from benchmarks.measure import Row, publish
from common.config.config import Config
from common.config.file import load_config
from driver.record.progress import say
from examples.sandbox.prepare import prepare
from rewarder.aggregation import aggregation_of
from rewarder.calibrate import Calibration, calibration_report
from rewarder.model import GatedRewardModel

HERE = Path(__file__).resolve().parents[1]
CONFIG = HERE / "configs" / "quickstart.yaml"
# A part, and how the line begins that ends it. What comes after the last line is the end of the run.
PARTS = (
    ("driver's imports, preflight, Ray", "Ray dashboard"),
    ("roles' imports, learner", "stage iterate"),
    ("the rest of the engine's start, models", "iteration 1/1"),
    ("references, first evaluation", "gold after step 0"),
    ("first step", "step 1/1"),
)
END = "end of the run"
WHOLE = "from the command to the first step"
# How the command line of a process of each kind is known; the first that fits.
KINDS = (
    ("driver", "launch.py"),
    ("actor", "ray::ActorWorker"),
    ("rewarder", "ray::RewarderWorker"),
    ("learner", "ray::LearnerWorker"),
    ("engine's processes", "multiprocessing"),
    ("engine's processes", "VLLM::"),
)
POLL_S = 0.2


@dataclass
class Start:
    """One run: seconds of each part, CPU seconds of each kind of process, and the machine's load before it."""

    parts: dict[str, float] = field(default_factory=dict)
    cpu: dict[str, float] = field(default_factory=dict)
    load: float = 0.0

    @property
    def first_step_s(self) -> float:
        """Seconds from the command to its first step."""
        return sum(seconds for part, seconds in self.parts.items() if part != END)


def main() -> None:
    """Measures, prints the table and writes startup.json."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--against", type=Path, help="another checkout, measured in turns with this one")
    parser.add_argument("--out", type=Path, default=Path("data/benchmarks"))
    asked = parser.parse_args()
    checkouts = {"": HERE} | ({"against: ": asked.against.resolve()} if asked.against else {})
    with tempfile.TemporaryDirectory() as scratch:
        overrides = ready_made(Path(scratch))
        starts = in_turns(checkouts, overrides, Path(scratch), asked.repeats)
    settings = {
        "repeats": asked.repeats,
        "load before, greatest": max(s.load for each in starts.values() for s in each),
    }
    publish("startup", settings, [row for name, each in starts.items() for row in rows_of(name, each)], asked.out)


def ready_made(directory: Path) -> list[str]:
    """Makes the models and the data; the overrides of a run of one step with them."""
    prepare(directory / "sandbox", 0)
    data = {name: directory / "sandbox" / f"{name}.jsonl" for name in ("prompts", "eval_prompts", "demonstrations")}
    overrides = [f"data.{name}={path}" for name, path in data.items()]
    overrides += [f"policy.model={directory / 'sandbox' / 'model'}", f"rewarder.model={directory / 'rm'}"]
    overrides += ["stages=[iterate]", "iteration.num=1", "iteration.steps=1", "evaluate.prompts=32"]
    make_reward_model(load_config(CONFIG, overrides), directory / "rm")
    return [*overrides, "learner.groups_per_step=4", "aggregation.references_per_prompt=4"]


def make_reward_model(config: Config, target: Path) -> None:
    """A reward model with random heads on the policy, calibrated for the configuration's aggregation."""
    settings, objectives = config.learner.reward_model, config.rewarder.objectives
    assert config.policy.model is not None, "the overrides name it"
    gate = settings.gate_hidden, settings.gate_layers, settings.gate_temperature, settings.initial_scale
    model = GatedRewardModel.from_policy(config.policy.model, objectives, *gate, seed=0)
    aggregation = aggregation_of(config.aggregation, objectives)
    terms = aggregation.calibrated_terms(objectives)
    report = calibration_report(torch.tensor([1.0, -1.0]), torch.tensor([1.0, 0.0]), 1.0)
    fitted = Calibration((1.0,) * len(terms), (report,) * len(terms), aggregation.kind, terms)
    model.info = replace(model.info, calibration=fitted)
    model.save(target, AutoTokenizer.from_pretrained(config.policy.model))


def in_turns(
    checkouts: dict[str, Path], overrides: Sequence[str], scratch: Path, repeats: int
) -> dict[str, list[Start]]:
    """The starts of each checkout. The first run of each warms the disk's cache and is not counted."""
    starts: dict[str, list[Start]] = {name: [] for name in checkouts}
    for repeat in range(repeats + 1):
        for name in list(checkouts)[:: -1 if repeat % 2 else 1]:
            arguments = [*overrides, f"run.dir={scratch / 'runs'}", f"run.name=start-{repeat}-{len(name)}"]
            start = measure(checkouts[name], arguments)
            counted = "warm-up" if repeat == 0 else f"repeat {repeat} of {repeats}"
            say(f"{name}{counted}: {start.first_step_s:.1f} s to the first step, {start.parts[END]:.1f} s to end")
            if repeat:
                starts[name].append(start)
    return starts


def measure(checkout: Path, arguments: Sequence[str]) -> Start:
    """Runs the command once in a checkout, with what is not installed there taken from it."""
    start = Start(load=os.getloadavg()[0])
    environment = {**os.environ, "PYTHONPATH": str(checkout), "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "launch.py", "--config", "configs/quickstart.yaml", *arguments]
    began = time.perf_counter()
    run = subprocess.Popen(
        command, cwd=checkout, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert run.stdout is not None, "it was asked for"
    watch = CpuWatch(run.pid)
    start.parts = parts_of(run.stdout, began)
    assert run.wait() == 0, f"{' '.join(command)} ended with {run.returncode}; run it by hand to see why"
    start.cpu = watch.end()
    return start


def parts_of(lines: Iterator[str] | Sequence[str], began: float) -> dict[str, float]:
    """Seconds of each part, from the command's output while it comes; the end lasts until the output does."""
    left, parts, last = list(PARTS), dict[str, float](), began
    for line in lines:
        if left and line.strip().startswith(left[0][1]):
            now = time.perf_counter()
            parts[left.pop(0)[0]], last = now - last, now
    assert not left, f"the command never said {left[0][1]!r}; it failed before, or its output has changed"
    parts[END] = time.perf_counter() - last
    return parts


class CpuWatch(threading.Thread):
    """Looks at a process and all that it started, until it ends."""

    def __init__(self, pid: int):
        super().__init__(daemon=True)
        self._root, self._over = psutil.Process(pid), threading.Event()
        self._seen: dict[int, tuple[str, float]] = {}
        self.start()

    def run(self) -> None:
        """Looks until `end` is called."""
        while not self._over.wait(POLL_S):
            for process in self._family():
                self._look(process)

    def end(self) -> dict[str, float]:
        """CPU seconds of each kind of process, as far as they were seen."""
        self._over.set()
        self.join()
        spent: dict[str, float] = {}
        for kind, seconds in self._seen.values():
            spent[kind] = spent.get(kind, 0.0) + seconds
        return spent

    def _family(self) -> list[psutil.Process]:
        try:
            return [self._root, *self._root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def _look(self, process: psutil.Process) -> None:
        try:
            times, command = process.cpu_times(), " ".join(process.cmdline())
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            return
        self._seen[process.pid] = kind_of(command), times.user + times.system


def kind_of(command: str) -> str:
    """What a process is, by its command line."""
    return next((kind for kind, sign in KINDS if sign in command), "Ray's own processes")


def rows_of(name: str, starts: Sequence[Start]) -> list[Row]:
    """Medians and ranges: the whole, each part with its median share of the whole, and CPU seconds of the processes."""
    whole = [start.first_step_s for start in starts]
    rows = [_row(f"{name}{WHOLE}", whole, "s")]
    for part in [*(part for part, _ in PARTS), END]:
        seconds = [start.parts[part] for start in starts]
        share = median(s / w for s, w in zip(seconds, whole, strict=True))
        rows.append(_row(f"{name}{part}" + ("" if part == END else f" ({share:.0%})"), seconds, "s"))
    for kind in sorted({kind for start in starts for kind in start.cpu}):
        rows.append(_row(f"{name}CPU: {kind}", [start.cpu.get(kind, 0.0) for start in starts], "CPU s"))
    return [*rows, _row(f"{name}CPU: all", [sum(start.cpu.values()) for start in starts], "CPU s")]


def _row(what: str, values: Sequence[float], unit: str) -> Row:
    return Row(what, median(values), unit, min(values), max(values))


if __name__ == "__main__":
    main()
