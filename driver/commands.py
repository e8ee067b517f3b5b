"""The commands of --stages that are no part of a run: evaluate_rm and explain. Never skipped, need no role.

Called by driver/stages.py. What a user brought and cannot be used ends a command with one message.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from common.config.config import Config
from common.errors import RunError
from driver.cluster.run import Run
from driver.evaluate_rm.command import evaluate_reward_model
from driver.explain.command import explain_responses


class CommandError(RunError):
    """A command that cannot finish; says which and why."""


def run_evaluate_rm(run: Run) -> None:
    """Judges a reward model on labelled pairs."""
    _run("evaluate_rm", evaluate_reward_model, run)


def run_explain(run: Run) -> None:
    """Takes the scores of responses apart."""
    _run("explain", explain_responses, run)


def _run(name: str, command: Callable[[Config, Path], None], run: Run) -> None:
    try:
        command(run.config, run.directory)
    except ValueError as error:  # models, tokenizers, texts and scores that cannot be used
        raise CommandError(f"{name}: {error}") from error
