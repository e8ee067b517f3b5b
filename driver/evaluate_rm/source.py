"""Which reward model the commands evaluate_rm and explain look at. Called by the commands and by the preflight; no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from common.config.config import Config
from common.models import absolute
from driver.record import checkpoint

FIRST = Path("rm") / "version_0"
BASELINE = Path("rm") / "baseline"


@dataclass(frozen=True)
class ModelSource:
    """A directory or Hub id, its revision (Hub only), and where it comes from, in words."""

    name: str
    revision: str | None
    origin: str


def serving(config: Config) -> ModelSource | None:
    """The version that serves in the run of this name (by its newest checkpoint; version 0 before the first), else
    rewarder.model; None where there is neither."""
    run, adapted = config.run_dir, _adapted(config.run_dir)
    if adapted:
        return ModelSource(str((run / adapted).resolve()), None, f"the run's {adapted}")
    if (run / FIRST / "config.json").is_file():
        return ModelSource(str((run / FIRST).resolve()), None, f"the run's {FIRST}")
    if config.rewarder.model is None:
        return None
    return ModelSource(absolute(config.rewarder.model), config.rewarder.revision, "rewarder.model")


def baseline(config: Config) -> ModelSource | None:
    """evaluate_rm.baseline, else the one that the run of this name trained (learner.reward_model.baseline); None where there
    is neither."""
    section, own = config.evaluate_rm, config.run_dir / BASELINE
    if section.baseline is not None:
        return ModelSource(absolute(section.baseline), section.baseline_revision, "evaluate_rm.baseline")
    if (own / "config.json").is_file():
        return ModelSource(str(own.resolve()), None, f"the run's {BASELINE}")
    return None


def _adapted(run: Path) -> str:
    """The adapted version that the newest checkpoint names, relative to the run; empty without one."""
    steps = checkpoint.steps(run / "checkpoints")
    if not steps:
        return ""
    return str(checkpoint.read_state(run / "checkpoints" / f"step_{steps[-1]}").get("reward_model", ""))
