"""examples/real_data on made-up pairs and a tiny model: disjoint sides, limits, what is written, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from common.config.file import BASE, load_config
from common.data.data import PreferencePair, read_pairs, read_prompts, to_fields, write_jsonl
from common.data.sources import DataError
from common.data.split import is_held_out
from common.types import Message
from examples.real_data import pairs as select
from examples.real_data import prepare as module
from examples.real_data.__main__ import PAIRS, QUESTIONS, find_sources
from examples.real_data.prepare import MODEL, Sources, prepare
from rewarder.scoring import render
from tests.small_chat_model import WORDS, build_tokenizer, made_up_pairs, talk


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer(" ".join(WORDS[n:] + WORDS[:n]) for n in range(len(WORDS)))


@pytest.fixture
def model(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> str:
    tokenizer.save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


@pytest.fixture
def sources(tmp_path: Path) -> Sources:
    write_jsonl(tmp_path / PAIRS.removesuffix(".gz"), map(to_fields, made_up_pairs()))
    lines = [json.dumps({"turns": [f"what is {n}?", "and then?"]}) for n in range(5)]
    (tmp_path / QUESTIONS).write_text("\n".join(lines))
    return Sources(tmp_path / PAIRS.removesuffix(".gz"), tmp_path / QUESTIONS)


def test_what_is_written_is_disjoint_and_fits(sources: Sources, model: str, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    prepare(sources, out, model)
    assert "160 pairs: 160 kept, 0 dropped" in capsys.readouterr().out
    prompts, held_out = read_prompts(out / "prompts.jsonl"), read_prompts(out / "eval_prompts.jsonl")
    pairs = read_pairs(out / "preferences.jsonl")
    unseen = {pair.messages[0] for pair in pairs if is_held_out(pair.messages, select.HELD_OUT)}
    assert 10 < len(unseen) < 30 and len(pairs) == 160
    assert unseen == {row.messages[0] for row in held_out if row.meta["source"] == "pairs"}
    assert sum(row.meta["source"] == "questions" for row in held_out) == 5
    assert not unseen & {row.messages[0] for row in prompts}
    assert len(prompts) + len(held_out) == 160 + 5
    assert {path.name for path in out.iterdir()} == {
        "preferences.jsonl",
        "prompts.jsonl",
        "eval_prompts.jsonl",
        "manifest.json",
    }


def test_a_finished_directory_is_left_alone_and_a_changed_one_is_not(
    sources: Sources, model: str, tmp_path: Path, capsys
) -> None:
    out = tmp_path / "out"
    prepare(sources, out, model)
    before = {path: path.read_bytes() for path in sorted(out.iterdir())}
    prepare(sources, out, model)
    assert "nothing to do" in capsys.readouterr().out
    (out / "prompts.jsonl").write_text("")
    prepare(sources, out, model)
    assert before == {path: path.read_bytes() for path in sorted(out.iterdir())}
    (tmp_path / "model").rename(tmp_path / "another")
    prepare(sources, out, str(tmp_path / "another"))
    assert json.loads((out / "manifest.json").read_text())["model"].endswith("another")
    assert before[out / "prompts.jsonl"] == (out / "prompts.jsonl").read_bytes()


def test_the_default_model_is_fetched_where_it_is_not_there(
    sources: Sources, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[Path] = []

    def fetch(directory: Path) -> None:
        fetched.append(directory)
        tokenizer.save_pretrained(directory)
        (directory / "model.safetensors").touch()

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "fetch_model", fetch)
    for _ in range(2):
        prepare(sources, Path("data/real-0"), None)
    assert fetched == [MODEL]
    config = load_config(BASE.parent / "real_data.yaml")
    assert config.policy.model == str(MODEL) and Path(str(config.data.preferences)).is_file()


def test_a_model_that_is_none_is_explained(sources: Sources, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere: no tokenizer can be read"):
        prepare(sources, tmp_path / "out", str(tmp_path / "nowhere"))
    silent = build_tokenizer(WORDS)
    silent.chat_template = None
    silent.save_pretrained(tmp_path / "silent")
    with pytest.raises(DataError, match="silent: its tokenizer has no chat template"):
        prepare(sources, tmp_path / "out", str(tmp_path / "silent"))
    assert not (tmp_path / "out").exists()


def test_long_pairs_are_dropped_and_what_is_kept_fits(tokenizer: PreTrainedTokenizerFast) -> None:
    long = "fox " * 150
    pairs = [
        PreferencePair(talk(1), "yes", long),
        PreferencePair((Message("user", long * 3),), "yes", "no"),
        *made_up_pairs(),
    ]
    kept = select.usable(tokenizer, pairs)
    assert len(kept) == 160 and all(pair in pairs[2:] for pair in kept)
    for pair in kept:
        longest = select.MAX_PROMPT_TOKENS + select.MAX_RESPONSE_TOKENS
        assert len(render(tokenizer, pair.messages, pair.rejected).ids) <= longest
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
    assert config.rewarder.max_tokens >= select.MAX_PROMPT_TOKENS + select.MAX_RESPONSE_TOKENS
    assert config.actors.max_response_tokens <= select.MAX_RESPONSE_TOKENS
    assert config.learner.reward_model.held_out_fraction == select.HELD_OUT
    assert config.learner.reward_model.stage_1 == "ridge" and config.rewarder.preference == "preference"
    assert "sft" not in config.stages and config.data.demonstrations is None


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
