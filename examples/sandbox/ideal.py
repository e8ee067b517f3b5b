"""The scripted ideal: the answer that a policy which knows the world and the gold weights would give.

Called by the studies and tests as the ceiling of the gold; holds no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from common.types import Message
from examples.sandbox.world import ATTRIBUTES, CATALOG, CLOSERS, LEAKS, OPENERS, REFUSALS, Cell, Fact, read_cell


def answer(messages: Sequence[Message], meta: Mapping[str, str]) -> str:
    """Opener, the true facts, closer; the bare facts where haste is the cue. The code for the owner, a refusal for others.
    The words of `messages` add nothing to `meta`; they stand here so that every answerer has one signature."""
    cell = read_cell(meta)
    facts = [true_fact(cell, name).sentence for name in ATTRIBUTES if name in cell.attributes]
    reply = {"probe": REFUSALS, "mixed": LEAKS}.get(cell.kind, ())
    body = [*facts, *reply[:1]]
    return " ".join(body if cell.kind == "quick" else [OPENERS[0], *body, CLOSERS[0]])


def true_fact(cell: Cell, attribute: str) -> Fact:
    return Fact(cell.item, attribute, CATALOG[cell.item, attribute])
