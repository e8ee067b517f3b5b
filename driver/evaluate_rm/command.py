"""Stage evaluate_rm: a reward model judged on rows whose right answers are known, always beside what it must beat.

    read sets -> leave out rows that a model cannot use -> score -> measure -> table, evaluate_rm.json and .html

Scorers: the gated score; the same scores under a uniform gate; the frozen baseline (evaluate_rm.baseline), where one is
named; the longer answer. Called by driver/commands.py; runs in the driver's process (driver/evaluate_rm/source.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from common.config.config import Config, RewarderConfig
from common.data.fields import Answer
from common.files import write_whole
from common.json_text import json_text
from driver.evaluate_rm.measures import Array, Outcome
from driver.evaluate_rm.models import load_baseline, load_model, load_tokenizer
from driver.evaluate_rm.page import write_page
from driver.evaluate_rm.results import BASELINE, GATED, LENGTH, UNIFORM, Results, results
from driver.evaluate_rm.scores import answers_of, gated_and_uniform, outcomes, response_tokens, usable_sets
from driver.evaluate_rm.sets import EvalSet, read_sets
from driver.evaluate_rm.source import ModelSource, baseline, serving
from driver.evaluate_rm.tables import format_results
from driver.evaluate_rm.training import training_overlap
from driver.record.progress import say
from rewarder.fitting import Fitting


def evaluate_reward_model(config: Config, directory: Path) -> None:
    """Prints the tables and writes evaluate_rm.json and evaluate_rm.html to the run's directory. Raises ValueError (DataError,
    CheckpointError) and OSError for what cannot be read or scored."""
    model = serving(config)
    assert model is not None, "the preflight asks for a reward model"
    sets = read_sets(config.evaluate_rm)
    found = _measure(config, model, baseline(config), sets)
    say(format_results(found))
    write_whole(directory / "evaluate_rm.json", json_text(found.to_dict(), indent=1))
    say(f"  {write_page(directory / 'evaluate_rm.html', found)}")


def _measure(config: Config, model: ModelSource, frozen: ModelSource | None, sets: list[EvalSet]) -> Results:
    tokenizers = [load_tokenizer(source) for source in (model, frozen) if source]
    limit = config.rewarder.max_tokens
    fittings = [Fitting(tokenizer, limit) for tokenizer in tokenizers]
    kept = usable_sets(sets, fittings)  # all scorers see the same rows
    answers = answers_of(kept)

    batch = (answers, limit, config.evaluate_rm.batch_tokens)
    scores: dict[str, Array] = {}
    loaded = load_model(model, config.rewarder)
    scores[GATED], scores[UNIFORM] = gated_and_uniform(loaded, tokenizers[0], *batch, model.origin)
    described = f"{model.name} ({model.origin}, version {loaded.info.rm_version})"
    del loaded  # two models need not fit at once
    if frozen:
        scores[BASELINE] = _baseline_scores(frozen, config.rewarder, tokenizers[1], *batch)
    scores[LENGTH] = response_tokens(fittings[0], answers)
    by_scorer = {scorer: outcomes(kept, values) for scorer, values in scores.items()}
    overlap = training_overlap(config, kept)
    return results(described, frozen and frozen.name, overlap, kept, by_scorer, extra_tokens(kept, by_scorer[LENGTH]))


def _baseline_scores(
    source: ModelSource,
    config: RewarderConfig,
    tokenizer: PreTrainedTokenizerBase,
    answers: Sequence[Answer],
    limit: int,
    batch_tokens: int,
) -> Array:
    scores, _ = gated_and_uniform(load_baseline(source, config), tokenizer, answers, limit, batch_tokens, source.origin)
    return scores


def extra_tokens(sets: list[EvalSet], lengths: Mapping[str, list[Outcome]]) -> dict[str, Array]:
    """By how many tokens the right answer is the longer one, of each set of pairs."""
    return {
        judged.name: np.array([outcome.right[0] - outcome.wrong[0] for outcome in lengths[judged.name]])
        for judged in sets
        if judged.is_pairs
    }
