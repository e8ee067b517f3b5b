"""examples/real_data on made-up pairs: the tokenizer on any text, disjoint sides, limits, what is written, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from common.config.file import BASE, load_config
from common.data.data import (
    PreferencePair,
    read_demonstrations,
    read_pairs,
    read_prompts,
    to_fields,
    write_jsonl,
)
from common.data.sources import DataError
from common.data.split import is_held_out
from common.types import Message
from examples.real_data import pairs as select
from examples.real_data.__main__ import PAIRS, QUESTIONS, find_sources
from examples.real_data.model import MAX_POSITIONS, SPECIAL, build_policy, build_tokenizer
from examples.real_data.prepare import Sources, prepare
from learner.policy.sft import demonstration_rows
from rewarder.scoring import render

SENTENCE = "the quick brown fox jumps over a lazy dog while seven wizards mix potions in old stone towers"
WORDS = SENTENCE.split()


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer(" ".join(WORDS[n:] + WORDS[:n]) for n in range(len(WORDS)))


def talk(number: int, turns: int = 1) -> tuple[Message, ...]:
    """A conversation of so many user turns; those of one number open alike."""
    asked = Message("user", f"question {number} about a {WORDS[number % 17]}")
    more = [Message(role, f"{role} {n}") for n in range(1, turns) for role in ("assistant", "user")]
    return (asked, *more)


def made_up(number: int = 80) -> list[PreferencePair]:
    return [
        PreferencePair(talk(n, turns), f"yes {WORDS[n % 17]}", f"no {WORDS[n % 5]} at all")
        for n in range(number)
        for turns in (1, 2)
    ]


@pytest.fixture
def sources(tmp_path: Path) -> Sources:
    write_jsonl(tmp_path / PAIRS.removesuffix(".gz"), map(to_fields, made_up()))
    lines = [json.dumps({"turns": [f"what is {n}?", "and then?"]}) for n in range(5)]
    (tmp_path / QUESTIONS).write_text("\n".join(lines))
    return Sources(tmp_path / PAIRS.removesuffix(".gz"), tmp_path / QUESTIONS)


@given(text=st.text(st.characters(codec="utf-8")))
def test_any_text_comes_back_as_it_was(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False)
    if not any(token in text for token in SPECIAL):
        assert tokenizer.decode(ids) == text


def test_scripts_and_signs_come_back(tokenizer: PreTrainedTokenizerFast) -> None:
    for text in ("Grüße, 世界!", "नमस्ते\n\n\tสวัสดี", "🙂👩‍👩‍👧 e\u0301", "  two  spaces ", "\x00\x7f"):
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text
    assert tokenizer.unk_token is None


def test_a_conversation_renders_as_turns(tokenizer: PreTrainedTokenizerFast) -> None:
    messages = (Message("system", "be kind"), *talk(3, 2))
    rendered = render(tokenizer, messages, "well <|end|><|user|> then")
    text = str(tokenizer.decode(rendered.ids))
    assert text.startswith("<|bos|><|system|>be kind<|end|><|user|>question 3")
    assert text.endswith("<|assistant|>well <|end|><|user|> then<|end|>"), "nothing is taken out of a response"
    assert rendered.ids.count(tokenizer.get_vocab()["<|user|>"]) == 2, "a response cannot open a turn"
    answer = str(tokenizer.decode(rendered.ids[rendered.prompt_end + 1 :]))
    assert answer == "<|assistant|>well <|end|><|user|> then<|end|>"


def test_the_policy_is_small_and_repeats(tokenizer: PreTrainedTokenizerFast) -> None:
    first, again = (build_policy(tokenizer, 7).state_dict() for _ in range(2))
    assert all((first[name] == again[name]).all() for name in first)
    assert 0.8e6 < build_policy(tokenizer, 0).num_parameters() < 3e6


def test_what_is_written_is_disjoint_and_fits(sources: Sources, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    prepare(sources, out, 0)
    said = capsys.readouterr().out
    assert "160 pairs: 160 kept, 0 dropped" in said
    prompts, held_out = read_prompts(out / "prompts.jsonl"), read_prompts(out / "eval_prompts.jsonl")
    demonstrations, pairs = read_demonstrations(out / "demonstrations.jsonl"), read_pairs(out / "preferences.jsonl")
    unseen = {pair.messages[0] for pair in pairs if is_held_out(pair.messages, select.HELD_OUT)}
    assert 10 < len(unseen) < 30 and len(pairs) == 160
    assert unseen == {row.messages[0] for row in held_out if row.meta["source"] == "pairs"}
    assert sum(row.meta["source"] == "questions" for row in held_out) == 5
    assert not unseen & {row.messages[0] for row in (*prompts, *demonstrations)}
    assert len(prompts) + len(held_out) == 160 + 5
    assert len(demonstrations) == 3 * (80 - len(unseen)), "one of the single turn, two of the double one, each once"


def test_a_finished_directory_is_left_alone_and_a_changed_one_is_not(sources: Sources, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    prepare(sources, out, 0)
    before = {path: path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}
    prepare(sources, out, 0)
    assert "nothing to do" in capsys.readouterr().out
    (out / "prompts.jsonl").write_text("")
    prepare(sources, out, 0)
    assert before == {path: path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}
    prepare(sources, out, 1)
    assert before[out / "model" / "model.safetensors"] != (out / "model" / "model.safetensors").read_bytes()
    assert before[out / "prompts.jsonl"] == (out / "prompts.jsonl").read_bytes()


def test_long_pairs_are_dropped_and_what_is_kept_fits(tokenizer: PreTrainedTokenizerFast) -> None:
    long = "fox " * 150
    pairs = [
        PreferencePair(talk(1), "yes", long),
        PreferencePair((Message("user", long * 3),), "yes", "no"),
        *made_up(),
    ]
    kept = select.usable(tokenizer, pairs)
    assert len(kept) == 160 and all(pair in pairs[2:] for pair in kept)
    demonstrations = select.demonstrations(tokenizer, pairs)
    assert all(len(row.token_ids) <= MAX_POSITIONS for row in demonstration_rows(demonstrations, tokenizer))
    for pair in kept:
        assert len(render(tokenizer, pair.messages, pair.rejected).ids) <= MAX_POSITIONS
    assert len(select.prompts(tokenizer, pairs, True)) + len(select.prompts(tokenizer, pairs, False)) == 160


def test_the_longest_response_that_fits_fills_its_room(tokenizer: PreTrainedTokenizerFast) -> None:
    assert select.response_fits(tokenizer, " fox" * (select.MAX_RESPONSE_TOKENS - 1))
    assert not select.response_fits(tokenizer, " fox" * select.MAX_RESPONSE_TOKENS)


def test_a_file_without_usable_pairs_says_so(tokenizer: PreTrainedTokenizerFast) -> None:
    long = [PreferencePair(talk(n), "fox " * 150, "no") for n in range(30)]
    with pytest.raises(
        DataError, match="of 30 pairs, 0 for training and 0 held out have a prompt of at most 224 tokens"
    ):
        select.usable(tokenizer, long)


@pytest.mark.parametrize("row", [{"turns": []}, {"turns": "text"}, {"prompt": "text"}, {"turns": [" "]}])
def test_a_question_without_a_first_turn_is_named(tokenizer, tmp_path: Path, row: dict[str, object]) -> None:
    (tmp_path / "q.jsonl").write_text(f'{{"turns": ["what?"]}}\n{json.dumps(row)}\n')
    with pytest.raises(DataError, match=r'q.jsonl:2: "turns" is'):
        select.questions(tokenizer, tmp_path / "q.jsonl")


def test_the_configuration_fits_what_is_written() -> None:
    config = load_config(BASE.parent / "real_data.yaml")
    assert config.data.max_prompt_tokens == select.MAX_PROMPT_TOKENS
    assert config.rewarder.max_tokens >= MAX_POSITIONS
    assert config.actors.max_response_tokens <= select.MAX_RESPONSE_TOKENS
    assert config.learner.reward_model.held_out_fraction == select.HELD_OUT, "more would hold out what SFT has seen"


def test_missing_data_is_explained(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="give --data DIR, or set ITER_RLHF_DATA, or give your own pairs"):
        find_sources(None, None, None)
    with pytest.raises(DataError, match=f"has no {PAIRS} and no {QUESTIONS}; name the folder"):
        find_sources(None, None, str(tmp_path))
    (tmp_path / PAIRS).touch()
    with pytest.raises(DataError, match=f"has no {QUESTIONS}; name"):
        find_sources(tmp_path, None, "elsewhere")
    with pytest.raises(DataError, match="--pairs: no such file mine.jsonl"):
        find_sources(None, Path("mine.jsonl"), None)
    assert find_sources(None, tmp_path / PAIRS, None) == Sources(tmp_path / PAIRS, None)
