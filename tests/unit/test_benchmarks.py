"""Benchmarks, small: what they compare is the same thing, and what they print says whether a limit holds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import ridge, scoring
from benchmarks.measure import Row, in_turns, publish, ratio, table
from rewarder.scoring import render


def test_scoring_is_measured_on_equal_tokens() -> None:
    torch.set_num_threads(1)
    model, tokenizer = scoring.make_model(), scoring.make_tokenizer()
    assert 12.65e6 < scoring.num_parameters(model.backbone) < 12.75e6
    groups = scoring.make_groups(2, 5, (2, 9))
    rendered = [render(tokenizer, [prompt], text) for prompt, texts in groups for text in texts]
    assert {r.prompt_end for r in rendered} == {7} and len(rendered) == 16
    tokens = sum(len(r.ids) for r in rendered)
    packed = scoring.pack([r.ids for r in rendered], 64)
    assert 0 <= tokens - sum(ids.numel() for ids in packed) < tokens // 16
    rows = scoring.scoring_rows(model, tokenizer, groups, 64, 1)
    rows += scoring.gate_rows(model, tokenizer, groups, 1) + scoring.prefix_rows(model, tokenizer, groups, 5, 64, 1)
    limits = [row for row in rows if row.limit]
    assert [row.what for row in limits] == ["groups as served / bare", "set of texts / bare"]
    assert all(row.limit == (">", 0.85) for row in limits)


@pytest.mark.parametrize("missing", ridge.MISSING)
def test_ridge_is_measured_with_its_peak(tmp_path: Path, missing: str) -> None:
    ridge.write_features(tmp_path / "features.npy", 300, 8)
    seconds, peak_gib = ridge.fit(tmp_path / "features.npy", 9, missing)
    assert seconds > 0 and 0.05 < peak_gib < 20


def test_a_table_says_what_holds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        ratio("speed", [4.0, 2.0, 3.0], [2.0, 2.0, 2.0], "x", (">", 1.4)),
        Row("size", 3.0, "GiB", limit=("<", 2.0)),
    ]
    assert table(rows).splitlines()[2:] == [
        "| speed | 1.5 x | 1 to 2 | > 1.4: holds |",
        "| size | 3 GiB |  | < 2: missed |",
    ]
    publish("demo", {"n": 1}, rows, tmp_path / "new")
    record = json.loads((tmp_path / "new" / "demo.json").read_text())
    assert [row["holds"] for row in record["rows"]] == [True, False] and record["settings"] == {"n": 1}
    assert "| speed | 1.5 x |" in capsys.readouterr().out


def test_pieces_are_timed_in_turns() -> None:
    order: list[str] = []
    seconds = in_turns({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 2)
    assert "".join(order) == "ab" + "ab" + "ba"
    assert [len(values) for values in seconds.values()] == [2, 2]
