"""Proposals whose labels people still have to give: <run>/rm/pending/M.json, one of each moment M that left one.

Called by driver/rounds/labelling.py. A moment is a number that grows from round to round. A file says what was proposed and at
which moment it was settled (fitted), and is never removed: a run that was killed and does a moment again finds what that moment
found, also what the killed run had settled there and no checkpoint knows of. Files of later moments are not looked at.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from common.files import write_whole
from common.json_text import json_text
from common.judge import PairItem
from common.ratings import RateItem
from common.types import Message
from driver.record.checkpoint import numbered, read_json
from learner.adaptation.candidates import Proposal, Samples

NAME = re.compile(r"(0|[1-9]\d*)\.json")
RATED = ("fit_ratings", "evidence_ratings")  # files that were written before there were ratings have none


@dataclass(frozen=True)
class Pending:
    """A proposal of `moment`; settled_at is the moment that fitted it, None while it waits."""

    moment: int
    proposal: Proposal
    settled_at: int | None = None


class PendingProposals:
    """The proposals of one run that waited or wait for people."""

    def __init__(self, directory: Path):
        self._directory = directory

    def oldest(self, moment: int) -> Pending | None:
        """The first one that was still waiting when `moment` came; of the moment itself only what an earlier try of it left."""
        found = [self.of(found) for found in numbered(self._directory, NAME) if found <= moment]
        waiting = [each for each in found if each and (each.settled_at is None or each.settled_at >= moment)]
        return min(waiting, key=lambda each: each.moment, default=None)

    def of(self, moment: int) -> Pending | None:
        """What that moment proposed."""
        path = self._path(moment)
        return _pending(read_json(path)) if path.is_file() else None

    def keep(self, pending: Pending) -> Pending:
        """Writes it down."""
        proposal = pending.proposal
        values = {
            "moment": pending.moment,
            "settled_at": pending.settled_at,
            "oldest_version": proposal.oldest_version,
            "fit": [asdict(item) for item in proposal.fit],
            "evidence": [asdict(item) for item in proposal.evidence],
            "unlabelled": [asdict(samples) for samples in proposal.unlabelled],
            "fit_ratings": [asdict(item) for item in proposal.fit_ratings],
            "evidence_ratings": [asdict(item) for item in proposal.evidence_ratings],
        }
        write_whole(self._path(pending.moment), json_text(values))
        return pending

    def settle(self, pending: Pending, moment: int) -> None:
        """It waits no more from `moment` on."""
        self.keep(replace(pending, settled_at=moment))

    def _path(self, moment: int) -> Path:
        return self._directory / f"{moment}.json"


def _pending(row: dict[str, Any]) -> Pending:
    unlabelled = tuple(Samples(_messages(each["messages"]), tuple(each["responses"])) for each in row["unlabelled"])
    pairs, rated = (_items(row["fit"]), _items(row["evidence"])), tuple(_rated(row.get(name, [])) for name in RATED)
    return Pending(row["moment"], Proposal(*pairs, row["oldest_version"], unlabelled, *rated), row["settled_at"])


def _rated(rows: Sequence[dict[str, Any]]) -> tuple[RateItem, ...]:
    return tuple(RateItem(_messages(each["messages"]), each["meta"], each["response"]) for each in rows)


def _items(rows: Sequence[dict[str, Any]]) -> tuple[PairItem, ...]:
    return tuple(PairItem(_messages(row["messages"]), row["meta"], row["first"], row["second"]) for row in rows)


def _messages(rows: Sequence[dict[str, Any]]) -> tuple[Message, ...]:
    return tuple(Message(**turn) for turn in rows)
