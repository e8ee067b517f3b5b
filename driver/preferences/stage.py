"""Stage `preferences`: how strongly many reward models prefer each pair's chosen response (docs/preferences.md).

    pairs -> members (learner/preferences/worker.py, side by side) -> differences [M, P] -> mean and std of each pair
          -> preferences/pairs.jsonl, report.json, page.html; with keep_models the members and their average too

Called by driver/stages.py. The files are written last, pairs.jsonl last of all; a stage that was cut off is done again from the
start.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from common.data.data import PreferencePair, read_pairs, write_jsonl
from common.files import write_whole
from common.json_text import json_text
from driver.cluster.run import STRENGTHS, Run
from driver.preferences.page import write_page
from driver.preferences.results import Strength, record, results, rows
from driver.record.progress import say
from learner.preferences.folds import left_out
from learner.preferences.worker import Fitted


def run_preferences(run: Run) -> None:
    """Trains the members, and writes the strength of every pair, the report and the page."""
    config, source = run.config, run.labelled.pairs
    assert source is not None, "the preflight asks for pairs"
    for path in (run.anchor, source):
        run.cluster.disks.share(path)
    directory = (run.directory / STRENGTHS).parent
    shutil.rmtree(directory, ignore_errors=True)
    fitted = _train(run, source, directory)
    pairs, fraction = _used(source, fitted[0].numbers), config.learner.reward_model.held_out_fraction
    plan = left_out(pairs, config.learner.preferences, fraction, config.run.seed)
    found = results(config.learner.preferences, pairs, _by_member([part.differences for part in fitted], fitted), plan)
    _write(found, directory, record(found, config.run.seed, fraction))
    say("\n".join(f"  {line}" for line in [f"{source}: {fitted[0].counts}", *_lines(found, directory)]))


def _train(run: Run, source: str, directory: Path) -> list[Fitted]:
    """The members, by worker; and the models that are kept."""
    cluster, settings = run.cluster, run.config.learner.preferences
    cluster.make_preference_workers()
    workers = cluster.preference_workers
    with cluster.disks.writing(directory) as target:
        fitted = workers.fit(run.anchor, source, target)
    if settings.keep_models and settings.train == "heads":
        with (
            cluster.disks.writing(directory / "average") as mean,
            cluster.disks.writing(directory / "ensemble") as all_of,
        ):
            heads = _by_member([part.heads for part in fitted], fitted)
            workers.write_heads(run.anchor, heads, mean, all_of)
    elif settings.keep_models:
        members = [str((directory / f"member_{member}").resolve()) for member in range(settings.members)]
        for member in members:
            cluster.disks.share(member)
        with cluster.disks.writing(directory / "average") as mean:
            workers.write_average(members, mean)
    workers.end()
    return fitted


def _used(source: str, numbers: Sequence[int]) -> list[PreferencePair]:
    """The pairs of these numbers in the file: a worker has left out what its tokenizer cannot use."""
    rows, used = read_pairs(source), set(numbers)
    return [pair for pair, number in zip(rows, rows.numbers, strict=True) if number in used]


def _by_member(parts: Sequence[NDArray[np.float32]], fitted: Sequence[Fitted]) -> NDArray[np.float32]:
    """The workers' rows in the members' order."""
    numbers = [member for part in fitted for member in part.members]
    assert sorted(numbers) == list(range(len(numbers))), f"members {numbers} came back"
    return np.concatenate(parts)[np.argsort(numbers)]


def _write(found: Strength, directory: Path, report: dict[str, object]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    write_whole(directory / "report.json", json_text(report, indent=1))
    write_page(directory / "page.html", found)
    write_jsonl(directory / STRENGTHS.name, rows(found))


def _lines(found: Strength, directory: Path) -> list[str]:
    settings, held_out = found.settings, int(found.held_out.sum())
    lines = [
        f"{len(found.pairs)} pairs ({held_out} held out: they train no member), {settings.members} members of "
        f"{settings.train}, folds {settings.folds}; strength below 0: {found.share_below_0:.1%}"
    ]
    lines += [
        f"{name}, of training pairs: below 0 {said.share_below_0:.1%}, accuracy of a member {said.accuracy:.3f}, correlation "
        f"of two members {said.agreement.mean:.2f}"
        for name, said in found.compared.items()
    ]
    lines += [f"warning: {line}" for line in found.warnings]
    return [*lines, f"{directory / 'page.html'}"]
