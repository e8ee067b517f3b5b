"""common/judge: labels check their pairs, and a function named in a configuration is found or clearly refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.judge import Labels, load_function
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
