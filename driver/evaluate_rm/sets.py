"""What stage evaluate_rm judges a reward model on: the sets that the configuration names, read and checked.

Called by driver/evaluate_rm/command.py and by the preflight; waits for the disk only (and the network for Hub data). No torch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from common.config.config import EvaluateRmConfig
from common.data.judged import Judged, read_judged
from common.data.rows import Rows
from common.data.sources import DataError
from rewarder.rewardbench import SUBSETS, SUBSETS_2, TIES, split_tie_id

V1, V2, PRIOR = "rewardbench", "rewardbench2", "prior/"
SUBSET = "subset"  # RewardBench's column
Reader = Callable[[str], Rows[Judged]]


@dataclass(frozen=True)
class EvalSet:
    """One source: its rows, how many were left out, by reason, and how many were read in another form, by what was done."""

    name: str
    rows: Sequence[Judged]
    skipped: Mapping[str, int]
    notes: Mapping[str, int] = field(default_factory=dict)

    @property
    def is_pairs(self) -> bool:
        """Whether every row has one right and one wrong answer."""
        return all(len(row.answers) == 2 for row in self.rows)


def read_sets(section: EvaluateRmConfig) -> list[EvalSet]:
    """Every set, whole. Raises DataError."""
    read = [(name, reader(source)) for _, name, source, reader in sources(section)]
    return [EvalSet(name, rows, rows.left_out, rows.notes) for name, rows in read]


def sources(section: EvaluateRmConfig) -> Iterator[tuple[str, str, str, Reader]]:
    """(key, name of the set, source, reader) of everything that is to be judged."""
    pairs = partial(_read_pairs, slice_key=section.slice)
    for name, source in section.pairs.items():
        yield f"evaluate_rm.pairs.{name}", name, source, pairs
    if section.rewardbench:
        yield "evaluate_rm.rewardbench", V1, section.rewardbench, read_version_1
    for name, source in section.prior_sets.items():
        yield f"evaluate_rm.prior_sets.{name}", f"{PRIOR}{name}", source, partial(_read_pairs, slice_key=None)
    if section.rewardbench2:
        yield "evaluate_rm.rewardbench2", V2, section.rewardbench2, read_version_2


def read_version_1(source: str) -> Rows[Judged]:
    """RewardBench's rows: pairs of known subsets. Raises DataError."""
    rows = read_judged(source, SUBSET)
    if any(len(row.answers) != 2 for row in rows):
        raise DataError(f"{source}: RewardBench v1 has one chosen and one rejected answer a row; this is another file")
    _check_subsets(rows, SUBSETS, "RewardBench")
    return rows


def read_version_2(source: str) -> Rows[Judged]:
    """RewardBench 2's rows: one right answer, but for Ties, whose ids name reference and tied prompts. Raises DataError."""
    rows = read_judged(source, SUBSET)
    _check_subsets(rows, SUBSETS_2, "RewardBench 2")
    for row in rows:
        if row.slice != TIES and len(row.right) != 1:
            raise DataError(
                f"{source}: a row of {row.slice} has {len(row.right)} chosen answers; wanted 1 (only Ties has more)"
            )
    kinds = [_tie_id(source, row.row_id) for row in rows if row.slice == TIES]
    if twice := [kind for kind, count in Counter(kinds).items() if count > 1]:
        raise DataError(f"{source}: the id {':'.join(twice[0])!r} of Ties is there twice; wanted one row for each id")
    both = {n for kind, n in kinds if kind == "ref"} & {n for kind, n in kinds if kind == "tied"}
    if kinds and not both:
        raise DataError(f'{source}: no row of Ties has a partner; wanted the ids "ref:n" and "tied:n" of the same n')
    return rows


def _tie_id(source: str, row_id: str) -> tuple[str, str]:
    try:
        return split_tie_id(row_id)
    except ValueError as error:  # which knows no file
        raise DataError(f"{source}: {error}") from error


def _check_subsets(rows: Rows[Judged], known: tuple[str, ...], benchmark: str) -> None:
    for index, row in enumerate(rows):
        if row.slice not in known:
            got = "a row without a subset" if row.slice is None else f"subset {row.slice!r}"
            raise DataError(
                f"{rows.place(index)}: {got} is none of {benchmark}'s ({', '.join(known)}); "
                "other data go into evaluate_rm.pairs"
            )


def _read_pairs(source: str, slice_key: str | None) -> Rows[Judged]:
    return read_judged(source, slice_key)
