"""The wire form of the records: bytes out, checked records back.

Owns the format and is the only importer of msgpack; called by the queue; waits for nothing.
A message is a fixed header (magic, schema, kind, crc32 of the body) and a msgpack body. Arrays travel as one msgpack
ext value (dtype, shape, raw little-endian bytes). Decoding reads the body field by field in its one legal order and
refuses any container, string, number or array where it is not expected, so a hostile message cannot grow in memory or
become an object of another type. Every malformed input ends in DecodeError.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgpack
import numpy as np
from numpy.typing import NDArray

from common.types import (
    FinishReason,
    FloatArray,
    IntArray,
    Message,
    Prompt,
    Reward,
    Rollout,
    RolloutGroup,
    ScoredGroup,
    ScoredRecord,
    SlotDropped,
)

SCHEMA = 1
MAX_BYTES = 64 * 2**20
MAX_ITEMS = 65_536  # rollouts, messages, meta entries or version spans in one record
MAX_INT = 2**63 - 1
ROUNDING = 1e-3  # of a log-probability: a softmax in float32 may end above 1 by as little as 1e-6

_MAGIC = b"ir"
_HEADER = struct.Struct("<2sHBI")
_GROUP, _SCORED, _DROPPED = 1, 2, 3
_KINDS = {_GROUP: "RolloutGroup", _SCORED: "ScoredGroup", _DROPPED: "SlotDropped"}
_ARRAY = 1
_ARRAY_HEADER = struct.Struct("<BBI")
_DTYPES = {1: np.dtype("<i4"), 2: np.dtype("<f4")}
_FINISH: dict[str, FinishReason] = {"stop": "stop", "length": "length"}


class EncodeError(ValueError):
    """A record that cannot be sent: too large, or an array of another dtype."""


class DecodeError(ValueError):
    """Bytes that are not the record that was asked for; the message names the record, what it got and wanted."""


def encode(record: RolloutGroup | ScoredRecord, max_bytes: int = MAX_BYTES) -> bytes:
    """The record as bytes. Raises EncodeError if it is larger than max_bytes or holds an array of another dtype."""
    if isinstance(record, RolloutGroup):
        kind, body = _GROUP, _pack(_group_fields(record))
    elif isinstance(record, ScoredGroup):
        kind, body = _SCORED, _pack(_scored_fields(record))
    else:
        kind, body = _DROPPED, _pack([record.slot, record.reason])
    data = seal(kind, body)
    if len(data) > max_bytes:
        raise EncodeError(
            f"{_KINDS[kind]} is {len(data)} bytes, more than the limit of {max_bytes}; raise redis.max_record_mib "
            "or lower actors.max_response_tokens"
        )
    return data


def decode_group(
    data: bytes, name: str = "record", max_bytes: int = MAX_BYTES, vocab_size: int = MAX_INT
) -> RolloutGroup:
    """The RolloutGroup in `data`; `name` (a stream entry) goes into the message of DecodeError. Ids are below vocab_size."""
    with _named(name):
        kind, body = _open(data, max_bytes, (_GROUP,))
        reader = _Reader(body, vocab_size)
        group = _read_group(reader)
        reader.end(_KINDS[kind])
        return group


def decode_scored(
    data: bytes, name: str = "record", max_bytes: int = MAX_BYTES, vocab_size: int = MAX_INT
) -> ScoredRecord:
    """The ScoredGroup or SlotDropped in `data`; `name` goes into the message of DecodeError. Ids are below vocab_size."""
    with _named(name):
        kind, body = _open(data, max_bytes, (_SCORED, _DROPPED))
        reader = _Reader(body, vocab_size)
        record = _read_scored(reader) if kind == _SCORED else _read_dropped(reader)
        reader.end(_KINDS[kind])
        return record


def seal(kind: int, body: bytes) -> bytes:
    """Header and body as one message; public so that tests can seal bodies that no record would make."""
    return _HEADER.pack(_MAGIC, SCHEMA, kind, zlib.crc32(body)) + body


@contextmanager
def _named(name: str) -> Iterator[None]:
    """The decode boundary: msgpack's, the records' and our own complaints all become DecodeError."""
    try:
        yield
    except (ValueError, msgpack.UnpackException) as error:
        text = str(error) or type(error).__name__
        raise DecodeError(f"{name}: {text}") from error


def _open(data: bytes, max_bytes: int, kinds: tuple[int, ...]) -> tuple[int, bytes]:
    if not isinstance(data, bytes):
        raise DecodeError(f"got {type(data).__name__}, wanted bytes")
    if not _HEADER.size < len(data) <= max_bytes:
        raise ValueError(f"message has {len(data)} bytes, wanted {_HEADER.size + 1} to {max_bytes}")
    magic, schema, kind, crc = _HEADER.unpack_from(data)
    if magic != _MAGIC:
        raise ValueError(f"message starts with {magic!r}, wanted {_MAGIC!r}; it was not written by this codec")
    if schema != SCHEMA:
        raise ValueError(f"schema is {schema}, wanted {SCHEMA}; install one version of the code on every node")
    if kind not in kinds:
        wanted = " or ".join(_KINDS[k] for k in kinds)
        raise ValueError(f"kind is {_KINDS.get(kind, kind)}, wanted {wanted}")
    body = data[_HEADER.size :]
    if zlib.crc32(body) != crc:
        raise ValueError(f"crc32 of the body is {zlib.crc32(body):08x}, wanted {crc:08x}; the bytes changed on the way")
    return kind, body


# -- writing ----------------------------------------------------------------------------------------------------------


def _pack(fields: list[Any]) -> bytes:
    packed = msgpack.packb(fields, use_bin_type=True, unicode_errors="surrogatepass")
    assert packed is not None, "packb returns bytes when it is given no stream"
    return packed


def _group_fields(group: RolloutGroup) -> list[Any]:
    prompt, record = group.prompt, f"slot {group.slot}"
    messages = [[message.role, message.content] for message in prompt.messages]
    meta = [[key, value] for key, value in prompt.meta.items()]
    ids = _array(prompt.token_ids, 1, f"{record}: prompt token_ids")
    return [group.slot, prompt.prompt_id, messages, ids, meta, [_rollout_fields(r, record) for r in group.rollouts]]


def _rollout_fields(rollout: Rollout, record: str) -> list[Any]:
    return [
        rollout.response,
        _array(rollout.token_ids, 1, f"{record}: token_ids"),
        _array(rollout.rollout_logprobs, 2, f"{record}: rollout_logprobs"),
        rollout.finish_reason,
        [[int(start), int(version)] for start, version in rollout.version_spans],
    ]


def _scored_fields(scored: ScoredGroup) -> list[Any]:
    record = f"slot {scored.group.slot}"
    rewards = [_reward_fields(reward, record) for reward in scored.rewards]
    return [_group_fields(scored.group), rewards, scored.rm_version, scored.reference_version]


def _reward_fields(reward: Reward, record: str) -> list[Any]:
    arrays = (reward.scores, reward.gate_weights, reward.terms, reward.weights)
    return [*(_array(array, 2, f"{record}: reward") for array in arrays), float(reward.penalty)]


def _array(array: NDArray[Any], code: int, name: str) -> msgpack.ExtType:
    dtype = _DTYPES[code]
    if array.dtype != dtype or array.ndim != 1:
        raise EncodeError(
            f"{name} is {array.dtype} {list(array.shape)}, wanted a vector of {dtype.name}; convert it first"
        )
    raw = np.ascontiguousarray(array, dtype=dtype).tobytes()
    return msgpack.ExtType(_ARRAY, _ARRAY_HEADER.pack(code, 1, len(array)) + raw)


# -- reading ----------------------------------------------------------------------------------------------------------


class _Reader:
    """Reads one body in order. Containers are entered only by `array`; anywhere else msgpack refuses them."""

    def __init__(self, body: bytes, vocab_size: int) -> None:
        size = len(body)
        self._size, self._vocab_size = size, vocab_size
        self._unpacker = msgpack.Unpacker(
            max_buffer_size=size,
            max_array_len=0,
            max_map_len=0,
            max_bin_len=0,
            max_str_len=size,
            max_ext_len=size,
            unicode_errors="surrogatepass",
        )
        self._unpacker.feed(body)

    def array(self, name: str, want: int | None = None) -> int:
        try:
            length = self._unpacker.read_array_header()
        except (ValueError, msgpack.UnpackException) as error:
            raise ValueError(f"{name} is not an array, or the message ends before it ({error})") from error
        if length > MAX_ITEMS or (want is not None and length != want):
            raise ValueError(f"{name} has {length} items, wanted {f'at most {MAX_ITEMS}' if want is None else want}")
        return length

    def integer(self, name: str) -> int:
        value = self._value(name)
        if type(value) is not int or not 0 <= value <= MAX_INT:
            raise ValueError(f"{name} is {_show(value)}, wanted an integer from 0")
        return value

    def number(self, name: str) -> float:
        value = self._value(name)
        if type(value) is not float or not math.isfinite(value):
            raise ValueError(f"{name} is {_show(value)}, wanted a finite float")
        return value

    def text(self, name: str) -> str:
        value = self._value(name)
        if type(value) is not str:
            raise ValueError(f"{name} is {_show(value)}, wanted text")
        return value

    def tokens(self, name: str) -> IntArray:
        vector = self._vector(name, 1)
        if vector.size and int(vector.min()) < 0:
            raise ValueError(f"{name} holds {int(vector.min())}, wanted token ids from 0")
        if vector.size and int(vector.max()) >= self._vocab_size:
            raise ValueError(
                f"{name} holds {int(vector.max())}, wanted token ids below {self._vocab_size}, the vocabulary"
            )
        return vector

    def floats(self, name: str) -> FloatArray:
        vector = self._vector(name, 2)
        if not np.isfinite(vector).all():
            at = int(np.flatnonzero(~np.isfinite(vector))[0])
            raise ValueError(f"{name}[{at}] is {vector[at]}, wanted finite values")
        return vector

    def logprobs(self, name: str) -> FloatArray:
        vector = self.floats(name)
        if vector.size and float(vector.max()) > ROUNDING:
            raise ValueError(f"{name} holds {float(vector.max()):g}, wanted log-probabilities, which are at most 0")
        return vector

    def end(self, name: str) -> None:
        left = self._size - self._unpacker.tell()
        if left:
            raise ValueError(f"{left} bytes follow the end of the {name}, wanted none")

    def _value(self, name: str) -> Any:
        try:
            return self._unpacker.unpack()
        except (ValueError, msgpack.UnpackException) as error:
            raise ValueError(f"{name} cannot be read: {error or type(error).__name__}") from error

    def _vector(self, name: str, code: int) -> NDArray[Any]:
        value, dtype = self._value(name), _DTYPES[code]
        if type(value) is not msgpack.ExtType or value.code != _ARRAY or len(value.data) < _ARRAY_HEADER.size:
            raise ValueError(f"{name} is {_show(value)}, wanted an array")
        got, ndim, length = _ARRAY_HEADER.unpack_from(value.data)
        if got != code or ndim != 1:
            raise ValueError(f"{name} has dtype code {got} and {ndim} dimensions, wanted {code} ({dtype.name}) and 1")
        raw = len(value.data) - _ARRAY_HEADER.size
        if raw != length * dtype.itemsize:
            raise ValueError(f"{name} has {raw} bytes for {length} values of {dtype.name}")
        return np.frombuffer(value.data, dtype, offset=_ARRAY_HEADER.size).astype(dtype.newbyteorder("="))


def _read_group(reader: _Reader) -> RolloutGroup:
    reader.array("group", 6)
    slot = reader.integer("slot")
    prompt_id = reader.text("prompt_id")
    messages = tuple(_read_message(reader) for _ in range(reader.array("messages")))
    token_ids = reader.tokens("prompt token_ids")
    meta = dict(_read_pair(reader) for _ in range(reader.array("meta")))
    prompt = Prompt(prompt_id, messages, token_ids, meta)
    rollouts = tuple(_read_rollout(reader) for _ in range(reader.array("rollouts")))
    return RolloutGroup(slot, prompt, rollouts)


def _read_message(reader: _Reader) -> Message:
    reader.array("message", 2)
    return Message(reader.text("role"), reader.text("content"))


def _read_pair(reader: _Reader) -> tuple[str, str]:
    reader.array("meta entry", 2)
    return reader.text("meta key"), reader.text("meta value")


def _read_rollout(reader: _Reader) -> Rollout:
    reader.array("rollout", 5)
    response = reader.text("response")
    token_ids, logprobs = reader.tokens("token_ids"), reader.logprobs("rollout_logprobs")
    finish = reader.text("finish_reason")
    if finish not in _FINISH:
        raise ValueError(f"finish_reason is {_show(finish)}, wanted stop or length")
    spans = tuple(_read_span(reader) for _ in range(reader.array("version_spans")))
    return Rollout(response, token_ids, logprobs, _FINISH[finish], spans)


def _read_span(reader: _Reader) -> tuple[int, int]:
    reader.array("version span", 2)
    return reader.integer("span start"), reader.integer("span policy_version")


def _read_scored(reader: _Reader) -> ScoredGroup:
    reader.array("scored group", 4)
    group = _read_group(reader)
    rewards = tuple(_read_reward(reader) for _ in range(reader.array("rewards")))
    return ScoredGroup(group, rewards, reader.integer("rm_version"), reader.text("reference_version"))


def _read_reward(reader: _Reader) -> Reward:
    reader.array("reward", 5)
    scores, gate_weights = reader.floats("scores"), reader.floats("gate_weights")
    return Reward(scores, gate_weights, reader.floats("terms"), reader.floats("weights"), reader.number("penalty"))


def _read_dropped(reader: _Reader) -> SlotDropped:
    reader.array("dropped slot", 2)
    return SlotDropped(reader.integer("slot"), reader.text("reason"))


def _show(value: object) -> str:
    return f"{type(value).__name__} {value!r:.60}"
