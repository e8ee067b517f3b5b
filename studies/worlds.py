"""The worlds that studies are made in: the configuration that every unit starts from, and what writes and versions its data.

Two: the sandbox, where the truth is known and a unit takes minutes, and the real model of docs/smollm.md, where a unit is a
whole run of launch.py. Called by study.py, runner.py and worker.py.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from common.config.config import Config
from examples.sandbox.prepare import prepare
from examples.sandbox.version import world_hash

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parent
SMOLLM_SOURCES = (
    "constraints.py",
    "fetch.py",
    "frozen.py",
    "gold.py",
    "labels.py",
    "measures.py",
    "people.py",
    "prepare.py",
    "prompts.py",
    "second.py",
    "topics.py",
)
SMOLLM, SMOLLM_PAIRS = PROJECT / "configs" / "smollm.yaml", PROJECT / "configs" / "smollm_pairs.yaml"
# A guess in seconds until the first unit has been measured: what surrounds the steps, and a step of 16 samples.
SMOLLM_AROUND_S, SMOLLM_STEP_S = 900.0, 45.0


@dataclass(frozen=True)
class World:
    """`configs` are the files that a unit may start from, and `config_of` names that of a seed, by its data; `version` is a
    hash of what draws and judges the world; `write` writes the data of a configuration's seed where they are not there;
    `at_once` is how many units the machine can run side by side; `guess_s` is the length of a unit before one was measured."""

    configs: tuple[Path, ...]
    config_of: Callable[[int], Path]
    version: Callable[[], str]
    write: Callable[[Config], None]
    guess_s: Callable[[Config], float]
    at_once: int = 2

    def label(self, config: Path) -> str:
        """What a row says of its world: the version, after the configuration's name where there are several."""
        return self.version() if len(self.configs) == 1 else f"{config.stem}:{self.version()}"


def write_sandbox(config: Config) -> None:
    """The sandbox of this configuration's seed, where it is not there: every task reads some of it."""
    assert config.data.demonstrations is not None, "studies of the sandbox have demonstrations"
    prepare(Path(config.data.demonstrations).parent, config.run.seed)


def write_smollm(config: Config) -> None:
    """Model, prompts and, where they can be had, people's pairs. Raises ValueError where the command fails; it says why."""
    assert config.data.prompts is not None, "the real model's configuration has prompts"
    out, seed = Path(config.data.prompts).parent, config.run.seed
    command = [sys.executable, "-m", "examples.smollm", "--out", str(out), "--seed", str(seed)]
    if code := subprocess.run(command, check=False).returncode:
        raise ValueError(f"`python -m examples.smollm --out {out} --seed {seed}` ended with code {code}; see above")


def smollm_config(seed: int) -> Path:
    """With people's pairs where examples.smollm found some."""
    return SMOLLM_PAIRS if (Path("data") / f"smollm-{seed}" / "preferences.jsonl").is_file() else SMOLLM


def smollm_version() -> str:
    """16 hex digits over the source of everything that draws, judges or compares the answers of examples/smollm."""
    sources = PROJECT / "examples" / "smollm"
    return hashlib.sha256(b"\0".join((sources / name).read_bytes() for name in SMOLLM_SOURCES)).hexdigest()[:16]


def smollm_guess_s(config: Config) -> float:
    """Labels, reward model, two evaluations, export and table, and the steps."""
    return SMOLLM_AROUND_S + SMOLLM_STEP_S * config.iteration.num * config.iteration.steps


SANDBOX = World(
    (HERE / "study.yaml",), lambda seed: HERE / "study.yaml", world_hash, write_sandbox, guess_s=lambda config: 120.0
)
# Each role has two threads and they take turns: a second unit beside it would double the memory and win no time.
REAL_MODEL = World(
    (SMOLLM, SMOLLM_PAIRS), smollm_config, smollm_version, write_smollm, guess_s=smollm_guess_s, at_once=1
)
