"""The reward model's labels, checked before any model is loaded: ratings, pairs, and what each objective learns from.

Called by the preflight. Reads rows and runs the programs on the first of them; waits for the disk only.
"""

from __future__ import annotations

from collections.abc import Sequence

from common.config import Config
from common.data import PreferencePair, RatedResponse, read_pairs, read_ratings
from common.label_sources import ProgramError, load_programs, rate, rated_objectives, wrong_sources
from driver.findings import Findings
from driver.inputs import is_small, read_rows

TRIED_ROWS = 100  # responses that the programs are tried on


def check_labels(config: Config, stages: Sequence[str], findings: Findings) -> None:
    """Ratings and pairs are well-formed, each objective has one source of labels, and the programs rate, where a stage reads
    them. Stage collect replaces these files."""
    adapts = "iterate" in stages and config.adaptation.enabled
    if not ("reward_model" in stages or adapts) or "collect" in config.stages:
        return
    data, before = config.data, len(findings.problems)
    pairs = read_rows("data.preferences", data.preferences, read_pairs, findings) if data.preferences else []
    ratings = read_rows("data.ratings", data.ratings, read_ratings, findings) if data.ratings else []
    if len(findings.problems) > before or not (data.preferences or data.ratings):
        return  # what is wrong with the files is said already
    _check_sources(config, ratings, pairs, findings)
    _try_programs(config, ratings, pairs, findings)


def _check_sources(
    config: Config, ratings: Sequence[RatedResponse], pairs: Sequence[PreferencePair], findings: Findings
) -> None:
    """Only where all rows were read: what the first ones lack, later ones may have."""
    data, rewarder = config.data, config.rewarder
    if rewarder.model or not rewarder.objectives:
        return
    if all(is_small(source) for source in (data.preferences, data.ratings) if source):
        problems = wrong_sources(
            rewarder.objectives, rated_objectives(ratings), rewarder.programs, rewarder.preference, len(pairs)
        )
        findings.problems.extend(problems)


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
