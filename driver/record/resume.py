"""Which checkpoint a run goes on from, and what becomes of those that it cannot go on from.

Asked once by driver/stages.py, before a model is loaded. `checkpoint.resume` says what to do where the newest one is broken:
auto goes back to the newest good one and says so, must stops, never begins again at step 0 and keeps the old ones beside. A run
that had a checkpoint and has none left never begins again by itself. Reads every byte of what it accepts; waits for the disk.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from common.queue.ledger import Ledger
from driver.record import checkpoint
from driver.record.checkpoint import CheckpointError
from driver.record.dead_letters import FILE as DEAD_LETTERS
from driver.record.loop_state import read_loop_state
from driver.record.progress import say

AGAIN = "checkpoint.resume=never begins again at step 0"


def settle(run: Path, groups_per_step: int, policy: str) -> Path | None:
    """The checkpoint to go on from, verified; None: the run begins at step 0. Broken ones that are passed over are renamed to
    `step_N.broken`. Raises CheckpointError."""
    root = run / "checkpoints"
    if policy == "never":
        return _begin_again(run, root)
    broken = dict[Path, str]()
    for step in reversed(checkpoint.steps(root)):
        path = root / f"step_{step}"
        if (problem := problem_of(path, groups_per_step)) is None:
            return _pass_over(broken, path)
        broken[path] = problem
        if policy == "must":
            raise CheckpointError(f"{problem}. checkpoint.resume=auto goes back to the newest good one")
    if broken:
        raise CheckpointError(f"no checkpoint can be used: {'; '.join(broken.values())}. Restore one; {AGAIN}")
    _refuse_to_forget(run, root)
    return None


def problem_of(path: Path, groups_per_step: int) -> str | None:
    """What is wrong with a checkpoint, in one line that names it; None where it can be resumed from."""
    try:
        checkpoint.verify(path)
        return _disagreement(path, groups_per_step)
    except CheckpointError as error:
        return str(error)
    except OSError as error:
        return f"{path} cannot be read: {error}"
    except (
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
    ) as error:  # a whole file of another form: of other code, or by hand
        return (
            f"{path}: {checkpoint.STATE} or learner.json is not of this code's form ({type(error).__name__}: {error})"
        )


def _disagreement(path: Path, groups_per_step: int) -> str | None:
    """Whether the driver's state and the learner's ledger tell of the same step: each step trains groups_per_step slots."""
    state = read_loop_state(path)
    ledger = Ledger.from_dict(checkpoint.read_json(path / "learner.json")["ledger"])
    step = int(path.name.removeprefix("step_"))
    if state.step != step:
        return f"{path}: {checkpoint.STATE} is of step {state.step}"
    if len(ledger.trained) != step * groups_per_step:
        return (
            f"{path}: learner.json has {len(ledger.trained)} slots trained, and {step} steps of {groups_per_step} groups make "
            f"{step * groups_per_step}"
        )
    if (last := max(ledger.trained.values(), default=0)) != step:
        return f"{path}: learner.json is of step {last}"
    if unknown := sorted(state.dropped.keys() - ledger.dropped.keys()):
        return f"{path}: {checkpoint.STATE} knows dropped slots that learner.json does not: {unknown[:10]}"
    return None


def _pass_over(broken: dict[Path, str], good: Path) -> Path:
    for path, problem in broken.items():
        aside = path.with_name(f"{path.name}.broken")
        if aside.exists():
            aside = path.with_name(f"{path.name}.broken.{time.time_ns()}")
        path.rename(aside)
        say(f"warning: {problem}; the run goes back to {good.name}, and it is {aside.name} now")
    return good


def _begin_again(run: Path, root: Path) -> None:
    if checkpoint.steps(root):
        aside = run / f"checkpoints.left.{time.time_ns()}"
        root.rename(aside)
        say(f"warning: checkpoint.resume is never: the run begins again at step 0; its checkpoints are in {aside}")
    for of_old in (checkpoint.NEWEST, DEAD_LETTERS):
        (run / of_old).unlink(missing_ok=True)


def _refuse_to_forget(run: Path, root: Path) -> None:
    record = run / checkpoint.NEWEST
    if record.is_file():
        had: Any = checkpoint.read_json(record).get("step")
        raise CheckpointError(f"{root} is empty, and the run had a checkpoint of step {had}. Put it back; {AGAIN}")
