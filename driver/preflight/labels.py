"""The reward model's labels, checked before any model is loaded: ratings, pairs, and what each objective learns from.

Called by the preflight. Reads and renders every row and runs the programs on it; waits for the disk only.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from common.config.config import Config
from common.data.data import PreferencePair, RatedResponse, read_pairs, read_ratings
from common.data.label_sources import (
    ProgramError,
    doubled_sources,
    load_programs,
    rate,
    rated_objectives,
    unknown_objectives,
    untrained_heads,
)
from common.data.rows import Rows
from common.data.sides import pair_sides, rating_sides
from driver.preflight.findings import Findings
from driver.preflight.inputs import Tokenizers, is_local, read_rows, try_rows
from driver.preflight.models import check_template
from driver.preflight.rows import Use, answers, as_learned_pair
from driver.record.progress import Progress


def check_labels(config: Config, stages: Sequence[str], tokenizers: Tokenizers, findings: Findings) -> None:
    """Ratings and pairs are well-formed, each objective has one source of labels, and the programs rate, where a stage reads
    them; conversations can be rendered by the tokenizers that will. Stage collect adds to these files."""
    adapts = "iterate" in stages and config.adaptation.enabled
    tokenizer, most = tokenizers.reward_model, config.rewarder.max_tokens
    renders = tokenizer is not None and bool({"reward_model", "iterate"} & set(stages))
    usable = check_template(tokenizer, most, findings) if renders else True
    if "reward_model" in stages or adapts:
        read_by_policy = adapts and config.adaptation.method == "ocrm"
        _check_files(config, tokenizer if usable else None, tokenizers.policy if read_by_policy else None, findings)


def _check_files(config: Config, tokenizer: Any, policy: Any, findings: Findings) -> None:
    """Reads and renders every row by the reward model's tokenizer; pairs by the policy's too, where it is given."""
    data, before, most = config.data, len(findings.problems), config.rewarder.max_tokens
    pairs, ratings = Rows[PreferencePair](""), Rows[RatedResponse]("")
    scored = [Use("the reward model", tokenizer, most, answers(pair_sides))]
    if data.preferences:
        pairs = read_rows("data.preferences", data.preferences, read_pairs, findings)
        pairs = try_rows("data.preferences", pairs, [*scored, Use("the policy", policy, 0, as_learned_pair)], findings)
    if data.ratings:
        ratings = read_rows("data.ratings", data.ratings, read_ratings, findings)
        uses = [Use("the reward model", tokenizer, most, answers(rating_sides))]
        ratings = try_rows("data.ratings", ratings, uses, findings)
    if len(findings.problems) > before or not (data.preferences or data.ratings):
        return  # what is wrong with the files is said already
    _check_sources(config, ratings, pairs, findings)
    _try_programs(config, ratings, pairs, findings)


def _check_sources(
    config: Config, ratings: Sequence[RatedResponse], pairs: Sequence[PreferencePair], findings: Findings
) -> None:
    """What is missing only where the files are here and no stage adds to them: what is not read may have it."""
    data, rewarder = config.data, config.rewarder
    if rewarder.objectives:
        findings.problems.extend(unknown_objectives(ratings, rewarder.objectives))
    if rewarder.model or not rewarder.objectives:
        return
    if "collect" in config.stages:
        rated = rated_objectives(ratings)
        findings.problems.extend(doubled_sources(rewarder.objectives, rated, rewarder.programs, rewarder.preference))
        return
    if all(is_local(source) for source in (data.preferences, data.ratings) if source):
        sources = ratings, rewarder.programs, rewarder.preference, len(pairs)
        fraction = config.learner.reward_model.held_out_fraction
        findings.problems.extend(untrained_heads(rewarder.objectives, *sources, fraction))


def _try_programs(
    config: Config, ratings: Sequence[RatedResponse], pairs: Sequence[PreferencePair], findings: Findings
) -> None:
    """Every program on every response: what it says of the last one is as good as of the first."""
    try:
        programs = load_programs(config.rewarder.programs)
    except Exception:  # check_functions has said why; the user's module may raise anything while it is imported
        return
    responses = [(pair.messages, response) for pair in pairs for response in (pair.chosen, pair.rejected)]
    responses += [(row.messages, row.response) for row in ratings]
    progress = Progress("rewarder.programs", len(responses), "responses", to=sys.stderr)
    try:
        for messages, response in responses if programs else ():
            rate(programs, messages, response)
            progress.advance(1)
    except ProgramError as error:
        findings.problem(str(error))
