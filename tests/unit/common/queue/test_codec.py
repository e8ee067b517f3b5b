"""The wire form: what goes in comes out, and whatever else arrives ends in DecodeError."""

from __future__ import annotations

import re

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.queue.codec import DecodeError, EncodeError, decode_group, decode_scored, encode, seal
from common.types import (
    FinishReason,
    Message,
    Prompt,
    Reward,
    Rollout,
    RolloutGroup,
    ScoredGroup,
    ScoredRecord,
    SlotDropped,
)

HEADER = 9
FINISH: tuple[FinishReason, ...] = ("stop", "length")
KIND_GROUP, KIND_SCORED = 1, 2
finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
logprob = st.floats(max_value=0, width=32, allow_nan=False, allow_infinity=False)
tokens = st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=6)


def floats(values: list[float]) -> np.ndarray:
    return np.array(values, dtype=np.float32)


@st.composite
def rollouts(draw: st.DrawFn) -> Rollout:
    ids = draw(st.lists(st.integers(0, 2**31 - 1), max_size=6))
    logprobs = draw(st.lists(logprob, min_size=len(ids), max_size=len(ids)))
    starts = sorted({0, *draw(st.lists(st.integers(0, max(len(ids) - 1, 0)), max_size=3))})
    spans = tuple((start, draw(st.integers(0, 2**40))) for start in starts)
    finish: FinishReason = draw(st.sampled_from(FINISH))
    return Rollout(draw(st.text(max_size=8)), np.array(ids, np.int32), floats(logprobs), finish, spans)


@st.composite
def groups(draw: st.DrawFn) -> RolloutGroup:
    messages = tuple(Message("user", text) for text in draw(st.lists(st.text(max_size=8), max_size=3)))
    meta = draw(st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3))
    prompt = Prompt(draw(st.text(max_size=8)), messages, np.array(draw(tokens), np.int32), meta)
    return RolloutGroup(draw(st.integers(0, 2**60)), prompt, tuple(draw(st.lists(rollouts(), min_size=1, max_size=3))))


@st.composite
def scored_groups(draw: st.DrawFn) -> ScoredGroup:
    group = draw(groups())
    values = st.lists(finite, min_size=2, max_size=2).map(floats)
    penalty = st.floats(allow_nan=False, allow_infinity=False)
    rewards = tuple(
        Reward(draw(values), draw(values), draw(values), draw(values), draw(penalty)) for _ in group.rollouts
    )
    return ScoredGroup(group, rewards, draw(st.integers(0, 9)), draw(st.text(max_size=5)))


records = st.one_of(scored_groups(), st.builds(SlotDropped, st.integers(0, 2**60), st.text(max_size=30)))


def a_group(slot: int = 3) -> RolloutGroup:
    prompt = Prompt("p", (Message("user", "hello"),), np.array([1, 2], np.int32), {"k": "v"})
    rollout = Rollout("hi", np.array([5, 6, 7], np.int32), floats([-0.5, -1, -2]), "stop", ((0, 4), (2, 5)))
    return RolloutGroup(slot, prompt, (rollout, rollout))


def a_scored() -> ScoredGroup:
    pair = floats([1, 2])
    reward = Reward(pair, pair, pair, pair, -1.0)
    return ScoredGroup(a_group(), (reward, reward), 2, "anchor")


@given(groups())
def test_a_group_comes_back_equal(group: RolloutGroup) -> None:
    back = decode_group(encode(group))
    assert repr(back) == repr(group)
    assert encode(back) == encode(group)


@given(records)
def test_a_scored_record_comes_back_equal(record: ScoredRecord) -> None:
    back = decode_scored(encode(record))
    assert repr(back) == repr(record)
    assert encode(back) == encode(record)


def test_arrays_come_back_contiguous_writable_and_typed() -> None:
    back = decode_group(encode(a_group()))
    for array, dtype in (
        (back.prompt.token_ids, np.int32),
        (back.rollouts[0].token_ids, np.int32),
        (back.rollouts[0].rollout_logprobs, np.float32),
    ):
        assert array.dtype == dtype
        assert array.flags.c_contiguous
        assert array.flags.writeable


def test_text_with_lone_surrogates_survives() -> None:
    assert decode_scored(encode(SlotDropped(1, "\ud800x"))) == SlotDropped(1, "\ud800x")


def test_arrays_travel_as_raw_bytes() -> None:
    group = a_group()
    assert group.rollouts[0].token_ids.tobytes() in encode(group)
    assert group.rollouts[0].rollout_logprobs.tobytes() in encode(group)


@given(records, st.data())
@settings(max_examples=300)
def test_changed_bytes_never_decode(record: ScoredRecord, data: st.DataObject) -> None:
    raw = bytearray(encode(record))
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(DecodeError):
        decode_scored(bytes(raw)[: data.draw(st.integers(0, len(raw)))])


@given(scored_groups(), st.data())
@settings(max_examples=600, deadline=None)
def test_sealed_mutations_end_in_an_error_or_a_valid_record(record: ScoredGroup, data: st.DataObject) -> None:
    """The crc is right, the body is not: cut, overwritten, or with bytes put in."""
    body = bytearray(encode(record)[HEADER:])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, max(len(body) - 1, 0)))
        change = data.draw(st.sampled_from(["cut", "set", "insert"]))
        patch = data.draw(st.binary(min_size=1, max_size=6))
        body[at:] = {"cut": b"", "set": patch + body[at + len(patch) :], "insert": patch + body[at:]}[change]
    try:
        back = decode_scored(seal(KIND_SCORED, bytes(body)))
    except DecodeError as error:
        assert str(error).startswith("record: ")
    else:
        assert decode_scored(encode(back)) is not None


@given(st.binary(max_size=200), st.integers(0, 255))
@settings(max_examples=300)
def test_arbitrary_bytes_never_crash(body: bytes, kind: int) -> None:
    for data in (body, seal(kind, body)):
        for decode in (decode_group, decode_scored):
            try:
                decode(data)
            except DecodeError as error:
                assert str(error).startswith("record: ")


def bodies() -> dict[str, bytes]:
    def array(values: object, dtype: str, code: int) -> msgpack.ExtType:
        raw = np.array(values, dtype).tobytes()
        return msgpack.ExtType(1, bytes([code, 1]) + (len(raw) // 4).to_bytes(4, "little") + raw)

    def group(slot: object = 1, ids: object = None, logprobs: object = None, spans: object = None) -> bytes:
        ids = array([1, 2], "<i4", 1) if ids is None else ids
        logprobs = array([-1, -1], "<f4", 2) if logprobs is None else logprobs
        rollout = ["r", ids, logprobs, "stop", [[0, 1]] if spans is None else spans]
        return msgpack.packb([slot, "p", [], array([1], "<i4", 1), [], [rollout]]) or b""

    return {
        "rollout_logprobs holds 0.25, wanted log-probabilities": group(logprobs=array([-1, 0.25], "<f4", 2)),
        "token_ids holds -1": group(ids=array([1, -1], "<i4", 1)),
        r"rollout_logprobs\[1\] is nan": group(logprobs=array([0, np.nan], "<f4", 2)),
        "rollout_logprobs has 1 values for 2 token_ids": group(logprobs=array([0], "<f4", 2)),
        "token_ids is list|token_ids cannot be read": group(ids=[1, 2]),
        "token_ids has dtype code 2": group(ids=array([1, 2], "<f4", 2)),
        "token_ids has 8 bytes for 3 values": group(ids=msgpack.ExtType(1, b"\x01\x01\x03\0\0\0" + b"\0" * 8)),
        "slot is int -1": group(slot=-1),
        "slot is bool True": group(slot=True),
        "slot is float": group(slot=1.0),
        r"version_spans must start at token 0 and ascend within 2 tokens, got \(\(0, 1\), \(0, 2\)\)": group(
            spans=[[0, 1], [0, 2]]
        ),
        r"version_spans must start at token 0 .*got \(\(1, 1\),\)": group(spans=[[1, 1]]),
        r"version_spans must .*got \(\(0, 1\), \(2, 2\)\)": group(spans=[[0, 1], [2, 2]]),
        r"version_spans must .*got \(\)": group(spans=[]),
        "bytes follow the end": group() + b"\x01",
        "group has 2 items, wanted 6": msgpack.packb([1, 2]) or b"",
        "group is not an array": msgpack.packb({"slot": 1}) or b"",
        "prompt_id cannot be read": msgpack.packb([1, [[[[]]]], 0, 0, 0, 0]) or b"",
    }


@pytest.mark.parametrize(("complaint", "body"), list(bodies().items()))
def test_each_wrong_body_is_named(complaint: str, body: bytes) -> None:
    with pytest.raises(DecodeError, match=f"^rollouts/7-0: .*({complaint})"):
        decode_group(seal(KIND_GROUP, body), "rollouts/7-0")


def test_wrong_envelopes_are_named() -> None:
    good = encode(a_group())
    schema_2 = good[:2] + b"\x02\x00" + good[4:]
    for data, complaint in (
        (b"", "message has 0 bytes"),
        (b"xx" + good[2:], "wanted b'ir'"),
        (schema_2, "schema is 2, wanted 1"),
        (good[:-1] + b"\xff", "crc32"),
        (encode(a_scored()), "kind is ScoredGroup, wanted RolloutGroup"),
    ):
        with pytest.raises(DecodeError, match=re.escape(complaint)):
            decode_group(data)
    with pytest.raises(DecodeError, match="wanted 10 to 20"):
        decode_group(good, max_bytes=20)


def test_a_bomb_of_empty_containers_is_refused_before_it_grows() -> None:
    bomb = b"\xdd\x00\x0f\xff\xff" + b"\x90" * 0xFFFFF
    with pytest.raises(DecodeError, match="items, wanted 6"):
        decode_group(seal(KIND_GROUP, bomb))


def test_records_that_cannot_be_sent_are_refused() -> None:
    with pytest.raises(EncodeError, match="more than the limit of 50"):
        encode(a_group(), max_bytes=50)
    wide = Prompt("p", (), np.array([1, 2], np.int64), {})  # pyright: ignore[reportArgumentType]
    with pytest.raises(EncodeError, match="int64"):
        encode(RolloutGroup(0, wide, a_group().rollouts))


def test_nonfinite_rewards_are_refused() -> None:
    pair, bad = floats([1, 2]), floats([1, np.inf])
    rewards = tuple(Reward(pair, pair, terms, pair, 0.0) for terms in (pair, bad))
    with pytest.raises(DecodeError, match=r"terms\[1\] is inf"):
        decode_scored(encode(ScoredGroup(a_group(), rewards, 0, "anchor")))


def test_token_ids_outside_the_vocabulary_are_refused() -> None:
    rollout = Rollout("hi", np.array([5, 9], np.int32), floats([-0.5, 1e-6]), "stop", ((0, 4),))
    sent = encode(RolloutGroup(0, Prompt("p", (), np.array([3], np.int32), {}), (rollout,)))
    assert decode_group(sent, vocab_size=10).slot == 0, "and a log-probability that a float32 softmax rounds up is one"
    for size, what in ((9, "token_ids holds 9, wanted token ids below 9"), (3, "prompt token_ids holds 3")):
        with pytest.raises(DecodeError, match=what):
            decode_group(sent, vocab_size=size)
