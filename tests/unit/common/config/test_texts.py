"""A key that holds text keeps it as it was written, on the command line, in a file and in what a run saves."""

from __future__ import annotations

from dataclasses import replace
from operator import attrgetter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.config.file import BASE, ConfigError, load_config, read_saved, save_config
from common.config.texts import MISSING, read_value, read_yaml

LOADS = ("aggregation.kind=final_score",)
# What YAML reads as a number, a truth, a time, a date or nothing
LOOKS = (
    *(
        "1e3",
        "007",
        "0123456",
        "0o17",
        "0x1F",
        "0b11",
        "1_000",
        "12:30",
        "1:2:3.5",
        ".5",
        "1.",
        "+1",
        ".inf",
        ".nan",
        "-0",
    ),
    *("yes", "No", "on", "OFF", "y", "true", "False", "2026-01-01", "2026-01-01T12:00:00Z", "=", "a#b", "a=b=c"),
)
SIGNS = (
    "a #b",
    " a ",
    "#a",
    "a: b",
    "[a",
    "a]",
    "{a: 1}",
    "[a, b]",
    "a, b",
    "'a' or 'b'",
    "& a",
    "* a",
    "! a",
    "| a",
    "- a",
    "%a",
)
WORDS = ("null", "~", "Null")


def loaded(path: Path | str, *overrides: str, key: str = "run.name") -> object:
    return attrgetter(key)(load_config(path, [*LOADS, *overrides]))


@pytest.mark.parametrize("text", [*LOOKS, *SIGNS, *WORDS, "???", "ünï ☃", "a\nb: c", "☃: '"])
def test_the_command_line_keeps_text(text: str, tmp_path: Path) -> None:
    assert loaded(BASE, f"run.name={text}") == text
    config = load_config(BASE, [*LOADS, f"run.name={text}"])
    save_config(config, tmp_path / "config.yaml")
    assert read_saved(tmp_path / "config.yaml").config == config
    assert loaded(tmp_path / "config.yaml") == text


@pytest.mark.parametrize("text", [*LOOKS, "ünï ☃", "null", "~"])
def test_a_file_keeps_text(text: str, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(
        f"run:\n  name: {text}   # a remark\nexplain: {{responses: ['a', {text}], prompt: '{text}'}}\n",
        encoding="utf-8",
    )
    config = load_config(path, LOADS)
    assert (config.run.name, config.explain.responses, config.explain.prompt) == (text, ["a", text], text)


@pytest.mark.parametrize("text", LOOKS)
def test_lists_mappings_and_their_names_keep_text(text: str) -> None:
    assert loaded(BASE, f"explain.responses=[{text}, b]", key="explain.responses") == [text, "b"]
    assert loaded(BASE, f"evaluate_rm.pairs={{{text}: {text}}}", key="evaluate_rm.pairs") == {text: text}
    names = [f"rewarder.objectives=[{text}]", "aggregation.kind=weighted_sum", f"aggregation.weights={{{text}: 1}}"]
    assert loaded(BASE, *names, key="aggregation.weights") == {text: 1.0}


def test_an_entry_of_a_mapping_keeps_text() -> None:
    assert loaded(BASE, "evaluate_rm.pairs.007=1e3", key="evaluate_rm.pairs") == {"007": "1e3"}


@pytest.mark.parametrize("word", ["null", "~", "Null", "NULL", ""])
def test_null_stays_null_where_there_is_null(word: str, tmp_path: Path) -> None:
    assert loaded(BASE, "policy.revision=a", f"policy.revision={word}", key="policy.revision") is None
    (tmp_path / "run.yaml").write_text(f"policy:\n  revision: {word}\n")
    assert loaded(tmp_path / "run.yaml", key="policy.revision") is None


def test_quotes_around_the_whole_value_are_yamls(tmp_path: Path) -> None:
    for text in ("'null'", '"null"'):
        assert loaded(BASE, f"policy.revision={text}", key="policy.revision") == "null"
    assert loaded(BASE, "run.name='it''s'") == "it's"
    assert loaded(BASE, "run.name='a' # it's'") == "'a' # it's'"
    (tmp_path / "run.yaml").write_text("policy: {revision: 'null'}\n")
    assert loaded(tmp_path / "run.yaml", key="policy.revision") == "null"


def test_text_without_a_value_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"run\.name: "):
        load_config(BASE, [*LOADS, "run.name="])


def test_numbers_truths_and_sections_are_still_yaml(tmp_path: Path) -> None:
    config = load_config(BASE, [*LOADS, "run.seed=7", "learner.learning_rate=1e-3", "learner.autocast=no"])
    assert (config.run.seed, config.learner.learning_rate, config.learner.autocast) == (7, 1e-3, False)
    endpoint = loaded(BASE, "judge.endpoint={url: 'http://h/v1', model: 007, retries: 2}", key="judge.endpoint")
    assert (attrgetter("model")(endpoint), attrgetter("retries")(endpoint)) == ("007", 2)


def test_aliases_and_merged_mappings_are_read_by_the_key_that_uses_them(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(
        "run: {seed: &n 7, name: *n}\nactors: &one {threads: 2}\nrewarder:\n  <<: *one\n  revision: 7\n  model: m\n"
    )
    config = load_config(path, LOADS)
    assert (config.run.seed, config.run.name) == (7, "7")
    assert (config.rewarder.threads, config.rewarder.revision) == (2, "7")


def test_interpolations_are_resolved_and_stay_text(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NUMBER", "1e3")
    (tmp_path / "run.yaml").write_text(
        "run: {name: 'x${oc.env:NUMBER}', seed: 3}\ndata:\n  prompts: p-${run.seed}.jsonl\n"
    )
    config = load_config(tmp_path / "run.yaml", LOADS)
    assert (config.run.name, config.data.prompts) == ("x1e3", "p-3.jsonl")
    assert loaded(BASE, "run.name=${oc.env:NUMBER}") == "1e3"
    assert loaded(BASE, r"run.name=\${oc.env:NUMBER}") == "${oc.env:NUMBER}"


PRINTED = st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "S", "Zs"]), min_size=1)
CONFIG = load_config(BASE, LOADS)


@settings(max_examples=200, deadline=None)
@given(text=PRINTED)
def test_any_text_comes_back_from_the_command_line_and_from_yaml(text: str) -> None:
    quoted = "'" + text.replace("'", "''") + "'"
    kept = f"\\{text}" if MISSING.fullmatch(text) else text
    assert read_value(quoted, str) == kept
    assert read_yaml(f"[{quoted}]", list[str]) == [kept]
    assert text[0] in "\"'" or read_value(text, str) == kept


@settings(max_examples=20, deadline=None)
@given(text=PRINTED)
def test_any_text_comes_back_from_the_saved_file(text: str, tmp_path_factory) -> None:
    config = replace(
        CONFIG, run=replace(CONFIG.run, name=text), explain=replace(CONFIG.explain, responses=[text, "${a}"])
    )
    path = tmp_path_factory.mktemp("saved") / "config.yaml"
    save_config(config, path)
    assert read_saved(path).config == config
