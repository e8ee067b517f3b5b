"""What the run's reward model was trained on, held against the sets of stage evaluate_rm.

Called by driver/evaluate_rm/command.py. Waits for the disk only (and the network for Hub data).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

from common.config.config import Config
from common.data.data import read_pairs, read_ratings
from common.data.fields import messages_of
from common.data.label_sources import LabelFiles, label_files
from common.data.rows import read_checked
from common.data.sources import DataError
from common.data.split import is_held_out
from common.types import Message
from driver.evaluate_rm.overlap import Overlap, overlapping
from driver.evaluate_rm.sets import EvalSet

Prompt = tuple[Message, ...]


def training_overlap(config: Config, sets: Sequence[EvalSet]) -> Overlap:
    """Rows of each set that share a 13-gram of their prompt with a prompt that the run's reward model was trained on: the
    training side of its labels, and what rounds had judged. Nothing is counted for a given rewarder.model, or where a file is
    gone; `training` says so."""
    if config.rewarder.model is not None:
        return Overlap("not known: rewarder.model was trained elsewhere", {})
    judged = config.run_dir / "labels.jsonl"  # of the rounds; it may not be there
    made = config.run_dir / "collected" if "collect" in config.stages else None
    files = label_files(config.data.ratings, config.data.preferences, made)
    try:
        prompts = [*_labelled(config, files), *(_judged(judged) if judged.is_file() else [])]
    except DataError as error:  # the numbers of the evaluation do not need them
        return Overlap(f"not compared: {str(error).splitlines()[0]}", {})
    if not prompts:
        return Overlap("not known: no data.preferences, data.ratings or stage collect", {})
    hits = iter(overlapping([row.right[0].messages for found in sets for row in found.rows], prompts))
    rows = {found.name: sum(next(hits) for _ in found.rows) for found in sets}
    return Overlap(f"{len(set(prompts))} prompts", rows)


def _labelled(config: Config, files: LabelFiles) -> Iterator[Prompt]:
    fraction = config.learner.reward_model.held_out_fraction
    rated = (read_ratings(file) for file in (files.ratings, files.collected_ratings) if file)
    compared = (read_pairs(file) for file in (files.pairs, files.collected_pairs) if file)
    rows = chain.from_iterable(chain(rated, compared))
    return (row.messages for row in rows if not is_held_out(row.messages, fraction))


def _judged(path: Path) -> list[Prompt]:
    return read_checked(path, messages_of, None)
