"""Benchmarks, small: what they compare is the same thing, and what they print says whether a limit holds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import ridge, rm_round, scoring, startup
from benchmarks.measure import Row, in_turns, publish, ratio, table
from common.config.config import TIERS
from common.config.file import load_config
from rewarder.model import GatedRewardModel
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


def test_a_round_is_a_share_of_iteration_and_round() -> None:
    spent = [rm_round.Spent(0.5, 0.5, fit_s, 1.0, growth_mib=9.0) for fit_s in (1.0, 3.0, 2.0)]
    rows = {
        row.what: row for row in rm_round.rows_of([[2.0, 4.0], [5.0, 7.0], [3.0, 9.0]], {("gate", "labelled"): spent})
    }
    assert rows["iteration of 2 steps"].value == 12 and rows["a step"].value == 4.5
    whole, share = rows["tier gate, labelled: round"], rows["tier gate, labelled: share"]
    assert (whole.value, whole.low, whole.high) == (4, 3, 5)
    assert (share.low, share.value, share.high) == pytest.approx((4 / 16, 5 / 17, 3 / 9))
    assert rows["tier gate, labelled: fit"].value == 2 and rows["tier gate, labelled: peak growth"].value == 9


def test_a_short_round_has_rules_that_it_can_meet() -> None:
    config = rm_round.config_of(seed=0, steps=4, updates=2)
    assert (config.adaptation.steps, config.adaptation.min_pairs) == (2, 16)
    assert rm_round.config_of(0, 25, 60).adaptation.min_pairs == 64
    assert {tier for tier, _ in rm_round.CASES} == set(TIERS)


def test_the_peak_is_that_since_it_was_forgotten() -> None:
    before = rm_round.reset_peak()
    held = torch.ones(200 * 2**18)  # far more than the allocator has at hand
    assert 150 < rm_round.memory_mib("VmHWM") - before < 250 and held.sum() > 0


def test_the_parts_of_a_start_end_at_the_commands_own_lines_and_add_up(tmp_path: Path) -> None:
    lines = [
        "Ray dashboard: off",
        "stage iterate",
        "iteration 1/1",
        "  gold after step 0: 0.2",
        "  step 1/1  reward",
        "run: x",
    ]
    parts = startup.parts_of(lines, 0.0)
    assert list(parts) == [*(part for part, _ in startup.PARTS), startup.END]
    start = startup.Start(parts=parts)
    assert start.first_step_s == pytest.approx(sum(parts.values()) - parts[startup.END])
    with pytest.raises(AssertionError, match="never said 'iteration 1/1'"):
        startup.parts_of(lines[:2], 0.0)
    overrides = startup.ready_made(tmp_path)
    assert GatedRewardModel.load(tmp_path / "rm", "float32").info.calibration is not None
    assert load_config(startup.CONFIG, overrides).rewarder.model == str(tmp_path / "rm")
