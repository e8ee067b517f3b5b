"""The gate of one actor: nothing sampled from unproven weights leaves it (law 1), whether or not sampling stops for an update.

Owned by actors/worker.py, waited for by actors/rollout_loop.py. Pure asyncio.

    closed --load(v)--> closed, v in the engine --open(v): the driver's probe agreed--> open --load(v + 1)--> closed ...
                              \\--load(v) again: the probe disagreed--> everything sampled or in flight is discarded

Why that is enough. Two rules: a group leaves only after it was finished at a moment when the gate was open; and a load
over weights that were never proven discards all that is in the actor. So at any moment when the gate is open, every token
in the actor was sampled by proven weights: a token was sampled by the weights that were in the engine then; either the
gate opened for those weights before the next load, so they are proven, or it did not, and the next load discarded the
token. If no load mends the engine the gate stays closed and nothing leaves.
"""

from __future__ import annotations

import asyncio


class Gate:
    """Open while the weights in the engine are proven. `loaded` is their version, -1 while none are whole."""

    def __init__(self) -> None:
        self._proven = asyncio.Event()
        self._discards = 0
        self.loaded = -1

    def close(self) -> bool:
        """Before every load. True if the weights in place were never proven: the caller discards what is in flight, and
        whoever holds a count of `opened` starts over."""
        never_proven = not self._proven.is_set()
        self._proven.clear()
        self.loaded = -1
        self._discards += never_proven
        return never_proven

    def open(self, version: int) -> None:
        """The driver has verified that the engine holds `version`. Raises RuntimeError if that is not what was loaded."""
        if version != self.loaded:
            raise RuntimeError(f"the engine holds version {self.loaded}, not the verified {version}; load it first")
        self._proven.set()

    def is_open(self) -> bool:
        """Whether the weights that the engine holds are proven."""
        return self._proven.is_set()

    async def opened(self) -> int:
        """Waits until the gate is open (or was, since the call); returns how often samples were discarded so far. Equal
        counts before and after sampling: the samples are of proven weights and may leave."""
        await self._proven.wait()
        return self._discards
