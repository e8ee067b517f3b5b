"""What stage `preferences` needs of its data, checked before any model is loaded.

Called by the preflight. Reads rows and renders the first of them; waits for the disk only.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.config.config import Config
from common.config.preference_checks import too_few
from common.data.data import PreferencePair, read_pairs
from common.data.strengths import read_strengths
from driver.preflight.findings import Findings
from driver.preflight.inputs import is_small, read_rows
from driver.preflight.models import check_template


def check_preferences(config: Config, stages: Sequence[str], tokenizer: Any, findings: Findings) -> None:
    """There are enough pairs and prompts, and the first can be rendered by the policy's tokenizer (None where it is not on this
    machine), where the stage runs on a file; data.strengths, where it is named, is of data.preferences."""
    if "collect" in config.stages or not config.data.preferences:
        return
    if "preferences" in stages:
        _check_pairs(config, config.data.preferences, tokenizer, findings)
    if "reward_model" in stages and config.data.strengths:
        _check_strengths(config.data.strengths, config.data.preferences, findings)


def _check_pairs(config: Config, source: str, tokenizer: Any, findings: Findings) -> None:
    before = len(findings.problems)
    pairs: list[PreferencePair] = read_rows("data.preferences", source, read_pairs, findings)
    if len(findings.problems) == before and is_small(source):
        findings.problems.extend(
            too_few(pairs, config.learner.preferences, config.learner.reward_model.held_out_fraction)
        )
    if tokenizer is not None:
        check_template(tokenizer, [], pairs, config.rewarder.max_tokens, findings)


def _check_strengths(strengths: str, source: str, findings: Findings) -> None:
    if not Path(strengths).is_file():
        findings.problem(f"data.strengths: no such file {strengths}; give the pairs.jsonl that stage preferences wrote")
    elif (
        is_small(strengths)
        and is_small(source)
        and (pairs := read_rows("data.preferences", source, read_pairs, findings))
    ):
        try:
            read_strengths(strengths, pairs)
        except ValueError as error:
            findings.problems.extend(f"data.strengths: {problem}" for problem in str(error).splitlines())
