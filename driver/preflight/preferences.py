"""What stage `preferences` needs of its data, checked before any model is loaded.

Called by the preflight. Reads and renders every row; waits for the disk only.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.config.config import Config
from common.config.preference_checks import too_few
from common.data.data import PreferencePair, read_pairs
from common.data.rows import Rows
from common.data.sides import pair_sides
from common.data.strengths import read_strengths
from driver.preflight.findings import Findings
from driver.preflight.inputs import Tokenizers, is_local, read_rows, try_rows
from driver.preflight.models import check_template
from driver.preflight.rows import Use, answers


def check_preferences(config: Config, stages: Sequence[str], tokenizers: Tokenizers, findings: Findings) -> None:
    """There are enough pairs and prompts that can be rendered by the policy's tokenizer (None where it is not on this machine),
    where the stage runs on a file; data.strengths, where it is named, is of the pairs of data.preferences that are used."""
    if not config.data.preferences:
        return
    if "preferences" in stages:
        _check_pairs(config, config.data.preferences, tokenizers.policy, findings)
    if "reward_model" in stages and config.data.strengths:
        _check_strengths(config, config.data.strengths, config.data.preferences, tokenizers.reward_model, findings)


def _check_pairs(config: Config, source: str, tokenizer: Any, findings: Findings) -> None:
    before = len(findings.problems)
    usable = tokenizer is None or check_template(tokenizer, config.rewarder.max_tokens, findings)
    pairs = _used(config, source, tokenizer if usable else None, findings)
    if len(findings.problems) == before and is_local(source):
        findings.problems.extend(
            too_few(pairs, config.learner.preferences, config.learner.reward_model.held_out_fraction)
        )


def _check_strengths(config: Config, strengths: str, source: str, tokenizer: Any, findings: Findings) -> None:
    if not Path(strengths).is_file():
        findings.problem(f"data.strengths: no such file {strengths}; give the pairs.jsonl that stage preferences wrote")
    elif is_local(source) and (pairs := _used(config, source, tokenizer, Findings())):  # said by check_labels
        try:
            read_strengths(strengths, pairs)
        except ValueError as error:
            findings.problems.extend(f"data.strengths: {problem}" for problem in str(error).splitlines())


def _used(config: Config, source: str, tokenizer: Any, findings: Findings) -> Rows[PreferencePair]:
    """The pairs that the stage does not leave out."""
    pairs = read_rows("data.preferences", source, read_pairs, findings)
    use = Use("the reward model", tokenizer, config.rewarder.max_tokens, answers(pair_sides))
    return try_rows("data.preferences", pairs, [use], findings)
