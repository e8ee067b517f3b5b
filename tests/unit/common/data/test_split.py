"""Which conversations are held out: by opening, the same in every run."""

from __future__ import annotations

import hashlib

from hypothesis import given
from hypothesis import strategies as st

from common.data.split import is_held_out, is_validation, prompt_key
from common.types import Message

TEXT = st.text(st.characters(codec="utf-8"))


def ask(text: str) -> tuple[Message, ...]:
    return (Message("user", text),)


def test_about_the_fraction_is_held_out_and_a_smaller_one_is_inside_a_larger_one() -> None:
    prompts = [ask(f"question {n}") for n in range(2000)]
    tenth, fifth = ({m[0].content for m in prompts if is_held_out(m, fraction)} for fraction in (0.1, 0.2))
    assert 150 < len(tenth) < 250 and 340 < len(fifth) < 460
    assert tenth < fifth


@given(TEXT, TEXT, TEXT)
def test_a_conversation_and_its_continuation_fall_on_the_same_side(first: str, answer: str, second: str) -> None:
    longer = (*ask(first), Message("assistant", answer), *ask(second))
    assert is_held_out(ask(first), 0.3) == is_held_out(longer, 0.3)
    assert prompt_key(ask(first)) != prompt_key(longer)


@given(TEXT, TEXT)
def test_one_turn_falls_where_it_fell_in_version_0_1(system: str, text: str) -> None:
    messages = (Message("system", system), *ask(text))
    for turns in (messages, ask(text)):
        key = hashlib.sha256("\x1e".join(f"{m.role}\x1f{m.content}" for m in turns).encode()).hexdigest()
        assert is_held_out(turns, 0.2) == (int(key[:8], 16) < int(0.2 * 2**32))


def test_the_second_split_is_independent_of_the_first() -> None:
    prompts = [ask(f"question {n}") for n in range(4000)]
    training = [messages for messages in prompts if not is_held_out(messages, 0.5)]
    picked = sum(is_validation(messages, 0.2) for messages in training)
    assert 0.17 < picked / len(training) < 0.23
