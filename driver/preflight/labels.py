"""The reward model's labels, checked before any model is loaded: ratings, pairs, and what each objective learns from.

Called by the preflight. Reads rows and runs the programs on the first of them; waits for the disk only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from common.config.config import Config
from common.data.data import PreferencePair, RatedResponse, read_pairs, read_ratings
from common.data.label_sources import (
    ProgramError,
    load_programs,
    rate,
    unknown_objectives,
    untrained_heads,
)
from driver.preflight.findings import Findings
from driver.preflight.inputs import is_small, read_rows
from driver.preflight.models import TRIED_ROWS, check_template


def check_labels(config: Config, stages: Sequence[str], tokenizer: Any, findings: Findings) -> None:
    """Ratings and pairs are well-formed, each objective has one source of labels, and the programs rate, where a stage reads
    them; conversations can be rendered by the reward model's tokenizer (None where it is not on this machine). Stage collect
    replaces these files."""
    adapts = "iterate" in stages and config.adaptation.enabled
    ratings, pairs = [], []
    if ("reward_model" in stages or adapts) and "collect" not in config.stages:
        ratings, pairs = _check_files(config, findings)
    if tokenizer is not None and {"reward_model", "iterate"} & set(stages):
        check_template(tokenizer, ratings, pairs, config.rewarder.max_tokens, findings)


def _check_files(config: Config, findings: Findings) -> tuple[list[RatedResponse], list[PreferencePair]]:
    """What could be read of them."""
    data, before = config.data, len(findings.problems)
    pairs = read_rows("data.preferences", data.preferences, read_pairs, findings) if data.preferences else []
    ratings = read_rows("data.ratings", data.ratings, read_ratings, findings) if data.ratings else []
    if len(findings.problems) > before or not (data.preferences or data.ratings):
        return ratings, pairs  # what is wrong with the files is said already
    _check_sources(config, ratings, pairs, findings)
    _try_programs(config, ratings, pairs, findings)
    return ratings, pairs


def _check_sources(
    config: Config, ratings: Sequence[RatedResponse], pairs: Sequence[PreferencePair], findings: Findings
) -> None:
    """What is missing only where all rows were read: what the first ones lack, later ones may have."""
    data, rewarder = config.data, config.rewarder
    if rewarder.objectives:
        findings.problems.extend(unknown_objectives(ratings, rewarder.objectives))
    if rewarder.model or not rewarder.objectives:
        return
    if all(is_small(source) for source in (data.preferences, data.ratings) if source):
        sources = ratings, rewarder.programs, rewarder.preference, len(pairs)
        fraction = config.learner.reward_model.held_out_fraction
        findings.problems.extend(untrained_heads(rewarder.objectives, *sources, fraction))


def _try_programs(
    config: Config, ratings: Sequence[RatedResponse], pairs: Sequence[PreferencePair], findings: Findings
) -> None:
    try:
        programs = load_programs(config.rewarder.programs)
    except Exception:  # check_functions has said why; the user's module may raise anything while it is imported
        return
    tried = [(pair.messages, response) for pair in pairs[:TRIED_ROWS] for response in (pair.chosen, pair.rejected)]
    tried += [(row.messages, row.response) for row in ratings[:TRIED_ROWS]]
    try:
        for messages, response in tried:
            rate(programs, messages, response)
    except ProgramError as error:
        findings.problem(str(error))
