"""Preference strength on disk: the rows of pairs.jsonl, which stage `preferences` writes and denoising reads back.

A row is a row of data.preferences (so that the file is one itself) with five columns: `strength_mean` and `strength_std` over
`members` members, and `in_sample_mean` and `in_sample_std` over those that trained on its prompt (null where none did). Knows
nothing of how they were made. Holds no torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from common.data.data import PreferencePair, preference_pair
from common.data.fields import is_number
from common.data.rows import read_checked
from common.data.sources import DataError, Fields, short

MEAN, STD, MEMBERS = "strength_mean", "strength_std", "members"
IN_SAMPLE_MEAN, IN_SAMPLE_STD = "in_sample_mean", "in_sample_std"


@dataclass(frozen=True, slots=True)
class Strengths:
    """Strengths of P pairs in their order: mean [P] and population standard deviation [P] of score differences, float64."""

    mean: NDArray[np.float64]
    std: NDArray[np.float64]


def read_strengths(path: str | Path, pairs: Sequence[PreferencePair]) -> Strengths:
    """The strengths of exactly these pairs. Raises DataError where the file's rows are others or in another order, or have no
    strengths."""
    rows = read_checked(path, _row, None)
    theirs = [pair for pair, _, _ in rows]
    if digest(theirs) != digest(pairs):
        raise DataError(
            f"{path} has the strengths of other pairs: {len(theirs)} rows (digest {digest(theirs)[:12]}), wanted the "
            f"{len(pairs)} given ones in their order (digest {digest(pairs)[:12]}); {_difference(theirs, pairs)}; run stage "
            "preferences on these pairs, or give the pairs that it was run on"
        )
    return Strengths(np.array([mean for _, mean, _ in rows]), np.array([std for _, _, std in rows]))


def digest(pairs: Sequence[PreferencePair]) -> str:
    """sha256 over the rows' conversations and both responses, in order."""
    found = hashlib.sha256()
    for pair in pairs:
        turns = [[message.role, message.content] for message in pair.messages]
        found.update(json.dumps([turns, pair.chosen, pair.rejected]).encode() + b"\n")
    return found.hexdigest()


def _row(fields: Fields) -> tuple[PreferencePair, float, float]:
    std = _number(fields, STD)
    if std < 0:
        raise DataError(f'"{STD}" is {std}; wanted a number from 0 up')
    return preference_pair(fields), _number(fields, MEAN), std


def _number(fields: Fields, key: str) -> float:
    value = fields.get(key)
    if not is_number(value):
        got = f"is {short(value)}" if key in fields else f"is missing; got the keys {sorted(fields)}"
        raise DataError(f'"{key}" {got}; wanted a number: give the pairs.jsonl that stage preferences writes')
    return float(value)


def _difference(theirs: Sequence[PreferencePair], ours: Sequence[PreferencePair]) -> str:
    """Where two lists that are not equal part."""
    for at, (their, our) in enumerate(zip(theirs, ours, strict=False), 1):
        sides = [("prompt", their.messages, our.messages), ("chosen", their.chosen, our.chosen)]
        sides.append(("rejected", their.rejected, our.rejected))
        if parts := [name for name, a, b in sides if a != b]:
            return f"they first differ in row {at}, in its {' and '.join(parts)}"
    return f"the first {min(len(theirs), len(ours))} rows are the same"
