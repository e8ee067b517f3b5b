"""A reward model's directory and chat template, held against the configuration before any weight is read.

Called by the preflight. Reads config.json and the headers of the safetensors files; waits for the disk only.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.types import Message
from driver.preflight.findings import Findings, first_line

PROBE: tuple[Sequence[Message], str] = ((Message("user", "hello"),), "hello")


def check_reward_model(
    key: str, directory: Path, objectives: Sequence[str], findings: Findings, classifiers: bool = False
) -> None:
    """Every tensor of the heads is there, in the sizes of config.json, and `objectives` (none: any) names as many as there are.
    With `classifiers` a classifier with one label will do too."""
    from rewarder.bradley_terry import is_classifier  # seconds to import, and needed for a given model alone
    from rewarder.layout import CheckpointError, read_layout

    try:
        if classifiers and is_classifier(directory):
            return
        read_layout(directory, objectives, revision=None)
    except CheckpointError as error:
        findings.problem(f"{key}: {error}")
    except Exception as error:  # damaged files fail in many ways; each becomes the user's one line
        findings.problem(f"{key}: {directory} cannot be read: {first_line(error)}; download or export it again")


def check_template(tokenizer: Any, max_tokens: int, findings: Findings, whose: str = "the reward model") -> bool:
    """Whether the template of the reward model that `whose` names ends a prompt where its conversation goes on: only then can
    rows be tried under it."""
    from rewarder.scoring import check_length, render  # seconds to import

    before = len(findings.problems)
    try:
        check_length(render(tokenizer, *PROBE), max_tokens)
    except ValueError as error:
        findings.problem(f"{whose}'s tokenizer: {error}")
    except Exception as error:  # a template may raise anything
        findings.problem(f"{whose}'s chat template fails: {first_line(error)}")
    return len(findings.problems) == before
