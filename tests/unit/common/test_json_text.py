"""JSON that every reader takes, and nobody who writes JSON in another way."""

from __future__ import annotations

import ast
import json
import math
from pathlib import Path

import pytest

from common.json_text import json_text
from common.metrics import StepLog
from tests.finished_run import problems_of
from tests.sizes import ROOT

ROOMS = ("actors", "benchmarks", "common", "driver", "examples", "learner", "rewarder", "studies")
# Who calls json.dumps without allow_nan=False, and why no file has what it makes
OTHERS = {
    "common/data/data.py": "a hash of texts, and a text in a prompt's meta",
    "common/data/sources.py": "a search for surrogates",
    "common/data/strengths.py": "a hash of texts",
    "common/judge.py": "a hash of texts",
    "common/ratings.py": "a hash of texts",
    "driver/judges/rubric.py": "names in a question to a judge",
    "driver/loop/references.py": "a hash of texts and names",
    "driver/preflight/kept.py": "a hash of row numbers",
    "driver/record/checkpoint.py": "a signature, over what json_text writes",
    "driver/record/stage_inputs.py": "plain values of a configuration",
    "examples/sandbox/prepare.py": "frozen with its world, whose hash is in every row; writes nothing but texts and integers",
    "examples/smollm/constraints.py": "names and values of constraints in a prompt's meta, all finite",
    "examples/smollm/table.py": "texts in a table of Markdown",
    "learner/reward_model/feature_cache.py": "a hash",
    "studies/study.py": "a hash of a configuration",
}


def unguarded(source: str) -> int:
    """Calls of json.dump and json.dumps that would write NaN."""
    calls = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call))
    named = (node for node in calls if ast.unparse(node.func) in ("json.dump", "json.dumps", "dumps"))
    return sum(not any(k.arg == "allow_nan" for k in node.keywords) for node in named)


def test_everyone_writes_json_by_the_one_writer_or_has_a_reason() -> None:
    files = [path for room in ROOMS for path in (ROOT / room).rglob("*.py")]
    found = {path.relative_to(ROOT).as_posix() for path in [*files, ROOT / "launch.py"] if unguarded(path.read_text())}
    assert found - OTHERS.keys() == set(), "write with common/json_text.py, or state a reason"
    assert OTHERS.keys() - found == set(), "these write no more; take them out"
    assert unguarded("import json\njson.dumps(x)\njson.dumps(y, allow_nan=False)") == 1


def test_what_is_not_finite_is_null_at_any_depth() -> None:
    value = {"a": math.nan, "b": [1.5, math.inf, (-math.inf, None, True, 3)], "c": {"d": {"e": math.nan}}, "f": "NaN"}
    text = json_text(value)
    assert json.loads(text) == {"a": None, "b": [1.5, None, [None, None, True, 3]], "c": {"d": {"e": None}}, "f": "NaN"}
    assert json_text({"b": 1, "a": "ä"}, sort_keys=True, ensure_ascii=False) == '{"a": "ä", "b": 1}'
    with pytest.raises(TypeError):
        json_text(object())


def test_a_step_line_with_nan_is_read_by_all(tmp_path: Path) -> None:
    StepLog(tmp_path / "metrics.jsonl", ("a", "b")).write(1, {"a": math.nan, "c": [math.inf]})
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "a": null, "b": null, "c": [null]}\n'
    assert problems_of(tmp_path) == []
    (tmp_path / "bad.json").write_text('{"a": NaN}')
    (tmp_path / "bad.jsonl").write_text('{"a": 1}\n{"a": -Infinity}\n')
    assert problems_of(tmp_path) == ["bad.json: NaN", "bad.jsonl:2: -Infinity"]
