"""common/judge: labels check their ratings and pairs, and a function named in a configuration is found or clearly refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from common.data.data import read_pairs, write_jsonl
from common.judge import JudgeError, JudgeItem, Labels, label_samples, load_function, without_equal_texts
from common.types import Message, Prompt, Rollout
from examples.sandbox.gold import judge


@pytest.mark.parametrize("pair", [(0, 2), (-1, 0), (1, 1)])
def test_labels_check_their_pairs(pair: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="of 2 responses"):
        Labels([{}, {}], [pair])


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("examples.sandbox.gold", "is malformed"),
        ("examples.nowhere:judge", "no module named 'examples.nowhere'"),
        ("examples.sandbox.gold:nothing", "has no 'nothing'"),
        ("examples.sandbox.gold:OBJECTIVES", "is a tuple, not callable"),
    ],
)
def test_load_function_says_what_is_wrong(spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_function(spec)


def test_load_function_finds_the_function() -> None:
    assert load_function("examples.sandbox.gold:judge") is judge


def test_load_function_lets_an_inner_import_error_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_judge.py").write_text("import a_module_that_is_missing\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ModuleNotFoundError, match="a_module_that_is_missing"):
        load_function("broken_judge:judge")


def prompts(count: int) -> list[Prompt]:
    return [Prompt(f"p{n}", (Message("user", f"w{n}"),), np.ones(1, np.int32), {}) for n in range(count)]


def samples(*responses: str) -> list[Rollout]:
    return [Rollout(text, np.ones(1, np.int32), np.zeros(1, np.float32), "stop", ((0, 0),)) for text in responses]


@pytest.mark.parametrize("rating", [7, -0.01, float("nan"), float("inf")])
def test_labels_check_their_ratings(rating: float) -> None:
    assert Labels([{"a": 0, "b": 1.0, "c": None}], []).pairs == []
    with pytest.raises(ValueError, match=rf"response 1 has a {rating}; a rating is a number in \[0, 1\], or None"):
        Labels([{}, {"a": rating}], [])


def test_a_labeler_that_fails_is_named() -> None:
    def out_of_range(judged: list[JudgeItem], seed: int) -> Labels:
        return Labels([{"a": 4.0} for _ in judged], [])

    with pytest.raises(JudgeError, match=r"judge.labeler raised ValueError: labels: response 0 has a 4.0; .* on 'x'"):
        label_samples(out_of_range, prompts(1), [samples("x")], 0)
    with pytest.raises(JudgeError, match="judge.labeler returned 1 ratings for 2 responses; want one dict a response"):
        label_samples(lambda judged, seed: Labels([{}], []), prompts(1), [samples("x", "y")], 0)


def test_preferences_between_equal_texts_are_left_out_and_counted(tmp_path: Path) -> None:
    """Samples of one prompt may be alike; a file with such a pair would be refused where it is read."""
    label = lambda judged, seed: Labels([{} for _ in judged], [(0, 1), (0, 2), (2, 0)])  # noqa: E731
    _, compared = label_samples(label, prompts(2), [samples("x", "x", "y"), samples("x", "z", "x")], 0)
    kept, left_out = without_equal_texts(compared)
    assert len(compared) == 6 and left_out == 3
    write_jsonl(tmp_path / "pairs.jsonl", kept)
    found = [(pair.chosen, pair.rejected) for pair in read_pairs(tmp_path / "pairs.jsonl")]
    assert found == [("x", "y"), ("y", "x"), ("x", "z")]
