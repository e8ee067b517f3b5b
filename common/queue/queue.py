"""The run's queue on Redis: slots, rollouts and scored groups, each handed on exactly once.

Owns the keys `{run}:*` and the protocol over them (every change of state is one script of common/queue/scripts.py);
used by the driver (begin, admit, reset, trim, dead letters), actors (work -> rollouts), rewarders (rollouts -> scored) and the
learner (read_scored with the cursor of its checkpoint). Waits for Redis: for new entries up to block_s, for room in
push_rollouts, and for a server that is away up to retry_s; never for ever. The connection is common/queue/redis_link.py, the
embedded server common/queue/redis_server.py.

Redelivery is normal: a worker that dies leaves its entries pending, and another takes them after reclaim_idle_s. A lost reply
is no redelivery: the same call is sent again and gets the reply that was lost (common/queue/script_parts.py).
Streams are never bounded by deletion; a full stream makes the producer wait.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from typing import Any

from common.config.config import RedisConfig
from common.queue import scripts
from common.queue.codec import MAX_INT, DecodeError, decode_group, decode_scored, encode
from common.queue.items import Caller, DeadLetter, Entry, RolloutItem, SettledLetter, WorkItem
from common.queue.redis_link import Fenced, Link, QueueError, QueueFull, QueueRegression
from common.queue.redis_server import EmbeddedRedis, ServerError
from common.queue.script_parts import KEYS
from common.types import RolloutGroup, ScoredGroup, ScoredRecord, SlotDropped

__all__ = [
    "DeadLetter",
    "EmbeddedRedis",
    "Fenced",
    "Queue",
    "QueueError",
    "QueueFull",
    "QueueRegression",
    "RolloutItem",
    "ServerError",
    "SettledLetter",
    "WorkItem",
]

_SLICE_S = 1.0  # the longest single blocking read (the socket waits longer); between two, idle entries are looked for
_PAGE = 64
OLDEST_REDIS = (6, 2)


class Queue:
    """One process's door to the run's queue. Building it does no I/O; `check()` does.

    incarnation: what the driver's `begin` returned. Every change by an older incarnation raises Fenced.
    retry_s bounds how long a call waits for a server that is away; QueueError after that. A record with a token id from
    vocab_size up is one that cannot be read.
    """

    def __init__(
        self,
        url: str,
        password: str | None,
        run: str,
        config: RedisConfig,
        incarnation: int = 0,
        retry_s: float = 20.0,
        vocab_size: int | None = None,
    ) -> None:
        self.run, self.incarnation = run, incarnation
        self._config, self._vocab_size = config, MAX_INT if vocab_size is None else vocab_size
        self._max_bytes = int(config.max_record_mib * 2**20)
        self._keys = [f"{{{run}}}:{name}" for name in KEYS]
        self._key: dict[str, str] = dict(zip(KEYS, self._keys, strict=True))
        self._caller = Caller()
        self._link = Link(url, password, run, retry_s)

    # -- driver -------------------------------------------------------------------------------------------------------

    def begin(self) -> int:
        """Starts a new incarnation of the run (older ones are fenced from here on) and returns its number."""
        self.incarnation = int(self._script(scripts.BEGIN))
        return self.incarnation

    def admit(self, slots: Sequence[int]) -> int:
        """Adds the slots to work, in order and at once; those known or ended are skipped. Returns how many were new."""
        return int(self._script(scripts.ADMIT, *slots)) if slots else 0

    def reset_in_flight(self) -> None:
        """Forgets everything that was not yet scored. On resume, after `begin` and before workers get its number. Attempts are
        forgotten too, unless `blame` was called: a driver that was killed is no slot's fault."""
        self._script(scripts.RESET, *sorted(self._slots("scored")))

    def write_off(self, slots: Sequence[int], reason: str) -> int:
        """Puts a drop in the place of these slots' scored records, for good: a later run meets the drop, and not the groups."""
        pairs = [part for slot in slots for part in (slot, encode(SlotDropped(slot, reason)))]
        return int(self._script(scripts.WRITE_OFF, _bytes(reason), *pairs))

    def blame(self) -> None:
        """Says that a role died at work: the attempts that are started and not finished count after the next reset, so that a
        slot that kills its worker in every run is dead-lettered in the end."""
        self._script(scripts.BLAME)

    def forget_scored_after(self, cursor: str) -> int:
        """Deletes the scored records after a checkpoint's cursor, so that their slots are sampled again in whole batches.
        Before `reset_in_flight`. Returns how many there were."""
        return int(self._script(scripts.FORGET_AFTER, cursor))

    def trim_scored(self, cursor: str) -> int:
        """Deletes the scored records before the cursor of the oldest checkpoint kept; their slots count as ended."""
        return int(self._script(scripts.TRIM, cursor))

    def settled_letters(self) -> list[SettledLetter]:
        """The dead letters of slots that `trim_scored` has ended: to be written down, then forgotten."""
        found = self._script(scripts.SETTLED)
        return [
            SettledLetter(_text(i), int(slot), _text(why), _text(where), int(n)) for i, slot, why, where, n in found
        ]

    def forget_letters(self, letters: Sequence[SettledLetter]) -> None:
        """Deletes these dead letters; `depths` still counts them."""
        for at in range(0, len(letters), _PAGE):
            self._script(scripts.FORGET_DEAD, *(letter.entry_id for letter in letters[at : at + _PAGE]))

    def delete_run(self) -> None:
        """Deletes everything of the run but its incarnation: what an earlier driver left running stays fenced, and what this
        one has running finds nothing to do."""
        self._script(scripts.DELETE)

    # -- actors and rewarders -----------------------------------------------------------------------------------------

    def take_work(self, consumer: str, max_slots: int, block_s: float) -> list[WorkItem]:
        """Up to max_slots slots to roll out, oldest first; [] after block_s. Slots of one `admit` come together."""
        entries = self._take("work", consumer, max_slots, block_s)
        return [WorkItem(entry.entry_id, entry.slot, entry.attempt) for entry in entries]

    def push_rollouts(self, item: WorkItem, group: RolloutGroup, timeout_s: float = 600.0) -> bool:
        """Hands the slot on to the rewarders; False if it already was. Waits for room, QueueError after timeout_s.

        Raises EncodeError if the group is larger than redis.max_record_mib: `drop` it with that reason.
        """
        assert group.slot == item.slot, f"group of slot {group.slot} pushed for slot {item.slot}"
        data = encode(group, self._max_bytes)
        deadline = time.monotonic() + timeout_s
        while (pushed := self._push("work", item, data, self._config.capacity)) < 0:
            if time.monotonic() > deadline:
                raise QueueError(
                    f"{self._key['rollouts']} stayed full ({self._config.capacity} records or the server's maxmemory) "
                    f"for {timeout_s:g} s; look for rewarders that are down or slow, or raise redis.capacity"
                )
            time.sleep(random.uniform(0.05, 0.25))
        return pushed == 1

    def take_rollouts(self, consumer: str, max_groups: int, block_s: float) -> list[RolloutItem]:
        """Up to max_groups groups to score; [] after block_s. A payload that cannot be read is dead-lettered."""
        deadline = time.monotonic() + block_s
        while True:
            entries = self._take("rollouts", consumer, max_groups, max(0.0, deadline - time.monotonic()))
            found = zip(entries, self._data(entries), strict=True)
            items = [item for entry, data in found if (item := self._decode_rollout(entry, data)) is not None]
            if items or not entries:
                return items

    def push_scored(self, item: RolloutItem, scored: ScoredGroup) -> bool:
        """Hands the slot on to the learner; False if it already was. Raises EncodeError as push_rollouts does."""
        assert scored.group.slot == item.slot, f"group of slot {scored.group.slot} pushed for slot {item.slot}"
        pushed = self._push("rollouts", item, encode(scored, self._max_bytes), capacity=0)
        if pushed < 0:
            raise QueueFull("the server is at its maxmemory; raise it or keep fewer checkpoints")
        return pushed == 1

    def drop(self, item: WorkItem | RolloutItem, reason: str, payload: bytes = b"") -> bool:
        """Ends the slot with a reason: a dead letter for people, a SlotDropped for the learner. False if it moved on."""
        stage = "work" if isinstance(item, WorkItem) else "rollouts"
        return self._drop(stage, item.entry_id, item.slot, reason, payload)

    def renew(self, items: Sequence[WorkItem] | Sequence[RolloutItem]) -> None:
        """Says that the items are still worked on: their idle time starts again, so that nobody reclaims them."""
        for stage, kind in (("work", WorkItem), ("rollouts", RolloutItem)):
            entries = [item.entry_id for item in items if isinstance(item, kind)]
            if entries:
                self._script(scripts.RENEW, stage, *entries)

    # -- learner ------------------------------------------------------------------------------------------------------

    def read_scored(self, cursor: str, max_records: int, block_s: float) -> list[tuple[str, ScoredRecord]]:
        """The records after the cursor ("0-0": from the start) with their own cursors; [] after block_s.

        One that cannot be read comes back as SlotDropped, the same at every reading, and is dead-lettered once.
        """
        deadline = time.monotonic() + block_s
        while True:
            wait = _block_ms(deadline)
            entries = self._read_after(cursor, max_records, wait)
            if entries or wait is None:
                return [self._decode_scored(_text(entry), fields) for entry, fields in entries]

    # -- anyone -------------------------------------------------------------------------------------------------------

    def slots_in_flight(self) -> set[int]:
        """The slots that are in work or in rollouts."""
        return self._slots("work") | self._slots("rollouts")

    def dead_letters(self) -> list[DeadLetter]:
        """Every dead letter that has not been forgotten, oldest first."""
        entries = self._link.call(lambda: self._link.client.xrange(self._key["dead"]))
        return [
            DeadLetter(_text(entry), int(f[b"slot"]), _text(f[b"reason"]), _text(f[b"stage"]), f[b"data"])
            for entry, f in entries
        ]

    def depths(self) -> dict[str, int]:
        """How many entries each stream holds: work, rollouts, scored; dead: how many dead letters there were in all."""
        names = ("work", "rollouts", "scored", "dead")
        held = {name: int(self._link.call(lambda key=self._key[name]: self._link.client.xlen(key))) for name in names}
        gone = self._link.call(lambda: self._link.client.hget(self._key["meta"], "dead_gone"))
        return {**held, "dead": held["dead"] + int(gone or 0)}

    def check(self) -> str:
        """The server's run id, which changes when it restarts. Raises QueueError if it cannot be reached, refuses the password
        or is too old."""
        server = self._link.call(lambda: self._link.client.info("server"))
        version = tuple(int(part) for part in str(server["redis_version"]).split(".")[:2])
        if version < OLDEST_REDIS:
            raise QueueError(
                f"Redis {server['redis_version']} is too old; wanted 6.2 or later (XPENDING IDLE, XTRIM MINID)"
            )
        return str(server["run_id"])

    def risks(self) -> list[str]:
        """What of the server's settings could lose records without a word, one line each; [] where nothing could."""
        found = self._link.call(lambda: self._link.client.info("all"))
        policy, appends = str(found["maxmemory_policy"]), int(found["aof_enabled"])
        lines = {
            f"maxmemory-policy is {policy}: a full server deletes records silently; set it to noeviction": policy
            != "noeviction",
            "appendonly is no: a restart of the server loses what is in flight; set it to yes": not appends,
        }
        return [line for line, holds in lines.items() if holds]

    def close(self) -> None:
        """Closes the connections; a later call opens new ones."""
        self._link.client.close()

    # -- inside -------------------------------------------------------------------------------------------------------

    def _take(self, stage: str, consumer: str, most: int, block_s: float) -> list[Entry]:
        deadline = time.monotonic() + block_s
        while True:
            entries, last = self._take_now(stage, consumer, most)
            alive = [entry for entry in entries if not self._exhausted(stage, entry)]
            wait = _block_ms(deadline)
            if alive or wait is None:
                return alive
            if not entries:
                self._await_entry(stage, last, wait)

    def _take_now(self, stage: str, consumer: str, most: int) -> tuple[list[Entry], str]:
        """What there is at once, each counted as started, and the last entry that anyone was given."""
        idle = int(self._config.reclaim_idle_s * 1000)
        taken, last = self._script(scripts.TAKE, stage, consumer, most, idle, self._config.max_attempts)
        return [Entry(_text(entry), int(slot), int(attempt)) for entry, slot, attempt in taken], _text(last)

    def _await_entry(self, stage: str, last: str, wait_ms: int) -> None:
        """Waits for an entry that nobody was given. It only looks: a reply that is lost here costs nothing."""
        client, key = self._link.client, self._key[stage]
        self._link.call(lambda: client.xread({key: last}, count=1, block=wait_ms))

    def _data(self, entries: Sequence[Entry]) -> list[bytes | None]:
        """The payload of each rollouts entry; None where it has moved on since it was taken."""
        return self._script(scripts.DATA, "rollouts", *(entry.entry_id for entry in entries)) if entries else []

    def _read_after(self, cursor: str, most: int, wait: int | None) -> list[tuple[bytes, dict[bytes, bytes]]]:
        key, client = self._key["scored"], self._link.client
        answer = self._link.call(lambda: client.xread({key: cursor}, count=most, block=wait))
        return answer[0][1] if answer else []

    def _exhausted(self, stage: str, entry: Entry) -> bool:
        if entry.attempt <= self._config.max_attempts:
            return False
        reason = f"{stage}: {self._config.max_attempts} attempts were started and none finished"
        self._drop(stage, entry.entry_id, entry.slot, reason, b"")
        return True

    def _push(self, stage: str, item: WorkItem | RolloutItem, data: bytes, capacity: int) -> int:
        try:
            return int(self._script(scripts.PUSH, stage, item.entry_id, item.slot, data, capacity))
        except QueueFull:  # maxmemory is a bound like capacity: the same wait, the same retry
            return -1

    def _drop(self, stage: str, entry_id: str, slot: int, reason: str, payload: bytes) -> bool:
        record = encode(SlotDropped(slot, reason))
        return bool(self._script(scripts.DROP, stage, entry_id, slot, _bytes(reason), payload, record))

    def _decode_rollout(self, entry: Entry, data: bytes | None) -> RolloutItem | None:
        if data is None:
            return None
        name = f"rollouts/{entry.entry_id}"
        try:
            group = decode_group(data, name, self._max_bytes, self._vocab_size)
            _check_slot(name, group.slot, entry.slot)
        except DecodeError as error:  # a named boundary: what cannot be read ends here, with its reason
            self._drop("rollouts", entry.entry_id, entry.slot, str(error), data)
            return None
        return RolloutItem(entry.entry_id, entry.slot, entry.attempt, group)

    def _decode_scored(self, entry_id: str, fields: dict[bytes, bytes]) -> tuple[str, ScoredRecord]:
        name, slot, data = f"scored/{entry_id}", int(fields[b"slot"]), fields.get(b"data", b"")
        try:
            record = decode_scored(data, name, self._max_bytes, self._vocab_size)
            _check_slot(name, record.slot if isinstance(record, SlotDropped) else record.group.slot, slot)
        except DecodeError as error:  # the same boundary
            self._script(scripts.BAD_SCORED, entry_id, slot, _bytes(str(error)), data)
            return entry_id, SlotDropped(slot, str(error))
        return entry_id, record

    def _slots(self, stream: str) -> set[int]:
        return set(self._walk(stream))

    def _walk(self, stream: str) -> Iterator[int]:
        start = "-"
        while page := self._script(scripts.SLOTS, stream, start, _PAGE):
            yield from (int(slot) for _, slot in page)
            start = f"({_text(page[-1][0])}"

    def _script(self, source: str, *args: str | bytes | int) -> Any:
        return self._link.script(source, self._keys, [self.incarnation, *args, *self._caller.next()])


def _block_ms(deadline: float) -> int | None:
    """The next slice of a blocking read in ms; None (do not block) when the time is up."""
    left = min(deadline - time.monotonic(), _SLICE_S)
    return int(left * 1000) if left >= 0.001 else None


def _check_slot(name: str, got: int, want: int) -> None:
    if got != want:
        raise DecodeError(f"{name}: the record is of slot {got}, its entry of slot {want}")


def _text(value: bytes | str) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _bytes(text: str) -> bytes:
    return text.encode(errors="replace")
