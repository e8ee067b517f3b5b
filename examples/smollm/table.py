"""The command `python -m examples.smollm.table RUN`: what training changed on held-out prompts, and what it did not.

Reads the answers that the loop judged before training and after it, has the frozen model and a second reward model look at
them, and writes RUN/changes.json and RUN/changes.md. Every line is a paired difference over prompts with its 95 % interval.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import yaml

from common.errors import RunError
from common.metrics import read_rows
from driver.record.progress import Progress, say
from examples.smollm.constraints import FAMILIES
from examples.smollm.frozen import FrozenModel, Say
from examples.smollm.measures import Change, Row, change, of_source, scores
from examples.smollm.second import SecondModel
from learner.reward_model.held_out import wilson_interval

SAMPLES = 10
SOURCES = {"topics": "own topics, held out", "mt_bench": "MT-bench questions", "hh": "HH prompts"}


class TableError(RunError):
    """A run that has nothing to compare."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m examples.smollm.table", description=__doc__)
    parser.add_argument("run", type=Path, help="directory of a finished run of configs/smollm.yaml")
    arguments = parser.parse_args()
    try:
        write_table(arguments.run)
    except RunError as error:
        parser.exit(2, f"{error}\n")


def write_table(run: Path) -> None:
    """Writes and prints the table. Raises TableError for a run that has no two evaluations."""
    config = yaml.safe_load((run / "config.yaml").read_text())
    before, after = _evaluations(run)
    frozen = FrozenModel(config["policy"]["model"])
    pairs = Path(config["data"]["prompts"]).with_name("second.jsonl")
    people, accuracy = _second(frozen, pairs, before, after)
    changes = [
        *judged(before, after),
        *_read_by_frozen(frozen, config["actors"]["temperature"], before, after),
        *people,
    ]
    text = "\n".join([*_lines(changes), "", accuracy, "", *samples(before, after)])
    record = {"changes": [asdict(item) for item in changes], "second": accuracy}
    (run / "changes.json").write_text(json.dumps(record, indent=1, allow_nan=False) + "\n")
    (run / "changes.md").write_text(text + "\n")
    say(text)


def _evaluations(run: Path) -> tuple[Sequence[Row], Sequence[Row]]:
    found = sorted((run / "evaluations").glob("step_*.jsonl"), key=lambda path: int(path.stem.removeprefix("step_")))
    if len(found) < 2:
        raise TableError(
            f"{run} has {len(found)} evaluations; want one before training and one after it: finish the run"
        )
    first, last = read_rows(found[0]), read_rows(found[-1])
    if [row["messages"] for row in first] != [row["messages"] for row in last]:
        raise TableError(f"{found[0].name} and {found[-1].name} are of different prompts; evaluate the same ones")
    return first, last


def judged(before: Sequence[Row], after: Sequence[Row]) -> list[Change]:
    """What the programs say: all constraints of a prompt at once by source of the prompt, each family, style, and length."""
    found: list[Change] = []
    for source, name in SOURCES.items():
        if places := of_source(before, source):
            first, last = [before[i] for i in places], [after[i] for i in places]
            found.append(change(f"all constraints met: {name}", scores(first, "gold"), scores(last, "gold")))
    found += [change(f"met: {name}", scores(before, name), scores(after, name)) for name in FAMILIES]
    found += [change(f"program: {name}", scores(before, name), scores(after, name)) for name in ("language", "brevity")]
    found.append(change("response tokens", _lengths(before), _lengths(after)))
    found.append(change("cut off at the limit", _cut(before), _cut(after)))
    return [item for item in found if item.prompts]


def _lengths(rows: Sequence[Row]) -> list[float]:
    return [float(len(row["token_ids"])) for row in rows]


def _cut(rows: Sequence[Row]) -> list[float]:
    return [float(row["finish_reason"] == "length") for row in rows]


def _read_by_frozen(
    frozen: FrozenModel, temperature: float, before: Sequence[Row], after: Sequence[Row]
) -> list[Change]:
    """Language quality under the frozen model, and the KL to it as sampled (k1, nats a response; before training it is the
    difference of two programs that compute the same numbers)."""
    read = [
        frozen.log_probs(frozen.sequences(rows), temperature, _bar(f"frozen model, {name}"))
        for name, rows in (("before", before), ("after", after))
    ]
    kl = [
        [row["logprob"] - own for row, own in zip(rows, sums, strict=True)]
        for rows, (_, sums) in zip((before, after), read, strict=True)
    ]
    return [
        change("log-prob under the frozen model, nats a token", read[0][0], read[1][0]),
        change("KL, nats a response", kl[0], kl[1]),
    ]


def _second(frozen: FrozenModel, pairs: Path, before: Sequence[Row], after: Sequence[Row]) -> tuple[list[Change], str]:
    """What a second reward model says, which was trained on other people's pairs and reads another layer; with its accuracy."""
    if not pairs.is_file():
        return [], "No second reward model: people's pairs could not be had, so nothing is said of harmlessness."
    second = SecondModel.fit(frozen, pairs, _bar)
    found: list[Change] = []
    for source, name in SOURCES.items():
        if places := of_source(before, source):
            first, last = (second.score([rows[i] for i in places], _bar) for rows in (before, after))
            found.append(change(f"second reward model: {name}", first, last))
    share, (low, high) = (
        second.right / second.num_pairs,
        wilson_interval(second.right / second.num_pairs, second.num_pairs),
    )
    line = (
        f"The second reward model (layer {second.layer}, {second.num_pairs} pairs that the first one never saw) orders "
        f"{share:.3f} [{low:.3f}, {high:.3f}] of them as people did, by cross-validation"
    )
    return found, f"{line}; that holds .5, so its lines decide nothing." if low <= 0.5 else f"{line}."


def _bar(name: str) -> Say:
    bars: list[Progress] = []

    def show(done: int, total: int) -> None:
        if not bars:
            bars.append(Progress(name, total, "responses"))
        bars[0].reach(done)

    return show


def _lines(changes: Sequence[Change]) -> list[str]:
    rows = [
        f"| {item.name} | {item.prompts} | {item.before:.3f} | {item.after:.3f} | {item.difference:+.3f} "
        f"[{item.low:+.3f}, {item.high:+.3f}] | {item.verdict} |"
        for item in changes
    ]
    return [
        "| held-out prompts | n | before | after | difference, 95 % interval | |",
        "|---|--:|--:|--:|---|---|",
        *rows,
    ]


def samples(before: Sequence[Row], after: Sequence[Row]) -> list[str]:
    """The first SAMPLES held-out prompts of the project's own topics, with both answers."""
    lines = [f"The first {SAMPLES} held-out prompts, before and after:"]
    for place in of_source(before, "topics")[:SAMPLES]:
        kept = ["all met" if rows[place]["scores"]["gold"] else "not met" for rows in (before, after)]
        lines += ["", f"**{before[place]['prompt']}**"]
        lines += [f"- before ({kept[0]}): {_quoted(before[place])}", f"- after ({kept[1]}): {_quoted(after[place])}"]
    return lines


def _quoted(row: Row) -> str:
    """A response on one line, as code, so that no mark in it is read as markup."""
    text = json.dumps(row["response"], ensure_ascii=False).replace("`", "'")
    return f"`{text}`" + (" (cut off)" if row["finish_reason"] == "length" else "")


if __name__ == "__main__":
    main()
