"""All rows of a source through one parser: what was used, what was left out and why, and every problem at once.

Called by the readers of common/data. The law that holds for each of them: rows that are returned + rows that were left out, by
reason, = rows in the file; a row that is neither is a DataError with its place. Holds no torch.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from common.data.markup import with_turns
from common.data.sources import DataError, Fields, fields_of, raw_rows

MAX_PROBLEMS = 20
Row = TypeVar("Row")


class LeftOut(str):
    """Why a row is not used, though nothing is wrong with the file: a parser returns it in place of the row."""


class Rows(list[Row]):
    """The rows of a source in their order, and what has to be said of the others.

    numbers: the line (JSONL) or row of each, from 1; left_out: how many rows were not used, by reason; notes: how many rows
    were read in another form than they have, by what was done."""

    def __init__(
        self,
        source: str,
        rows: Iterable[Row] = (),
        numbers: Iterable[int] = (),
        left_out: Mapping[str, int] | None = None,
        notes: Mapping[str, int] | None = None,
    ):
        super().__init__(rows)
        self.source, self.numbers = source, list(numbers)
        self.left_out, self.notes = Counter(left_out or {}), Counter(notes or {})

    def place(self, index: int) -> str:
        """file:line of the row at `index`."""
        return f"{self.source}:{self.numbers[index]}"

    def keep(self, wanted: Sequence[str | None]) -> Rows[Row]:
        """The rows without a reason, the others counted by theirs: `wanted` has one entry a row."""
        kept = [index for index, reason in enumerate(wanted) if reason is None]
        left_out = self.left_out + Counter(reason for reason in wanted if reason is not None)
        numbers = [self.numbers[index] for index in kept]
        return Rows(self.source, [self[index] for index in kept], numbers, left_out, self.notes)

    def counts(self) -> str:
        """How many rows there are, how many are left out for what reason, and what was done to others."""
        found = [f"{len(self) + self.left_out.total()} rows, {len(self)} used"]
        found += [f"{count} left out: {reason}" for reason, count in self.left_out.items()]
        return "; ".join([*found, *(f"{count} {note}" for note, count in self.notes.items())])


def read_checked(source: str | Path, parse: Callable[[Fields], Row | LeftOut], limit: int | None) -> Rows[Row]:
    """Parses every row (or the first `limit`), so that one DataError can name every bad line (the first MAX_PROBLEMS)."""
    found, problems = Rows[Row](str(source)), list[str]()
    for number, raw in itertools.islice(raw_rows(str(source)), limit):
        try:
            fields, markup = with_turns(fields_of(raw))
            row = parse(fields)
        except DataError as error:
            problems.append(f"{source}:{number}: {error}")
            if len(problems) == MAX_PROBLEMS:
                problems.append(f"{source}: reading stopped after {MAX_PROBLEMS} bad lines")
                break
            continue
        if markup is not None:
            found.notes[f"with turns written as {markup}, read as turns"] += 1
        if isinstance(row, LeftOut):
            found.left_out[row] += 1
        else:
            found.append(row)
            found.numbers.append(number)
    if problems:
        raise DataError("\n".join(problems))
    if not found and not found.left_out:
        raise DataError(f"{source}: the file is empty; wanted at least one row (formats: docs/data.md)")
    return found
