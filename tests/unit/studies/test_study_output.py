"""The studies' tables and figures: hand-computed cells, blocks of a page, figures that repeat byte for byte."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from studies.figures import PALETTE, gold_over_kl, proxy_and_gold
from studies.rows import Row
from studies.tables import (
    curve_over_steps_table,
    curves_at_kl_table,
    markdown_table,
    matched_kl_table,
    replace_block,
)

NAN = math.nan
RISING, GOLD = [0.0, 4.0, 8.0], [0.5, 0.7, 0.9]


def row(arm: str, seed: int, kl: Sequence[float] = RISING, gold: Sequence[float] = GOLD) -> Row:
    steps = [float(step) for step in range(len(kl))]
    curves = {"step": steps, "kl": list(kl), "gold": list(gold), "proxy": [value + 0.05 for value in gold]}
    accuracy = [0.8 if index % 2 == 0 else NAN for index in range(len(kl))]
    return Row("made up", arm, seed, {}, {**curves, "onpolicy_accuracy": accuracy}, "c", "v", "w", 1.0)


def shifted(arm: str, shifts: Sequence[float]) -> list[Row]:
    return [row(arm, seed, gold=[value + shift for value in GOLD]) for seed, shift in enumerate(shifts)]


# ---- tables


def test_markdown_table() -> None:
    assert markdown_table(["arm", "gold"], [["a|b", "1"]]) == "| arm | gold |\n|---|---:|\n| a\\|b | 1 |\n"
    with pytest.raises(ValueError, match=r"2 columns has a row of 1 cells: \['a'\]"):
        markdown_table(["arm", "gold"], [["a"]])


def test_matched_kl_table_by_hand() -> None:
    """Gains of 0.1 and 0.3 on the baseline: 0.2 ± 12.706205 * 0.1 = 1.271; the baseline's gold at KL 2 is 0.6 ± 0."""
    arms = {
        "raw": shifted("raw", [0.0, 0.0]),
        "log": shifted("log", [0.1, 0.3]),
        "slow": [row("slow", 0, kl=[0, 1, 2.5]), row("slow", 1, kl=[0, 0.2, 0.5])],
    }
    levels, gains = matched_kl_table(arms, "raw").split("\n\n")
    assert levels.splitlines()[0] == "| gold at | KL 2 | KL 5 | KL 10 | largest KL | at the end |"
    assert levels.splitlines()[2:] == [
        "| raw | 0.600 ± 0.000 | 0.750 ± 0.000 | never reached | 8.0 | 0.900 ± 0.000 |",
        "| log | 0.800 ± 1.271 | 0.950 ± 1.271 | never reached | 8.0 | 1.100 ± 1.271 |",
        "| slow | 0.833 (1 of 2 seeds) | never reached | never reached | 0.5 to 2.5 | 0.900 ± 0.000 |",
    ]
    assert gains.splitlines()[0] == "| gold minus that of raw at | KL 2 | KL 5 | KL 10 |"
    assert gains.splitlines()[2:] == ["| log | +0.200 ± 1.271 | +0.200 ± 1.271 | - |", "| slow | - | - | - |"]


def test_curves_at_equal_kl_and_over_steps_by_hand() -> None:
    """KL 2 is halfway from step 0 to 1, where proxy is .65; step 2 has .95 and 1.15."""
    arms = {"raw": shifted("raw", [0.0, 0.2])}
    table = curves_at_kl_table(arms, 2.0, {"gold": "gold", "belief": "proxy"})
    assert table.splitlines()[0] == "| at KL 2 | gold | belief |"
    assert table.splitlines()[2].startswith("| raw | 0.700 ± 1.271 | 0.750 ± 1.271")
    assert curves_at_kl_table(arms, 9.0, {"gold": "gold"}).splitlines()[2] == "| raw | never reached |"
    table = curve_over_steps_table(arms, "proxy", (0.0, 2.0))
    assert table.splitlines()[0] == "| proxy at | step 0 | step 2 |"
    assert table.splitlines()[2] == "| raw | 0.650 ± 1.271 | 1.050 ± 1.271 |"


def test_gains_say_how_many_of_the_common_seeds_they_are_of() -> None:
    arms = {"raw": shifted("raw", [0.0] * 4), "log": [*shifted("log", [0.1, 0.1]), row("log", 2, kl=[0, 0.5, 1])]}
    text = matched_kl_table(arms, "raw", levels=(2,))
    assert "| log | 0.700 ± 0.000 (2 of 3 seeds) | 1.0 to 8.0 |" in text
    assert text.endswith("| log | +0.100 ± 0.000 (2 of 3 seeds) |\n")


def test_a_baseline_alone_makes_one_table() -> None:
    assert "minus" not in matched_kl_table({"raw": [row("raw", 0)]}, "raw")


def test_tables_refuse_missing_arms() -> None:
    with pytest.raises(ValueError, match="the baseline 'raw' is none of the arms: log"):
        matched_kl_table({"log": [row("log", 0)]}, "raw")
    with pytest.raises(ValueError, match=r"at least one row; got none of \['log'\]"):
        matched_kl_table({"raw": [row("raw", 0)], "log": []}, "raw")


PAGE = "a\n<!-- rows: one -->\nold\n<!-- end of rows -->\nb\n<!-- rows: two -->\n<!-- end of rows -->\n"


def test_replace_block_touches_its_block_alone() -> None:
    replaced = replace_block(PAGE, "one", "\nnew \\1\nlines\n")
    assert replaced == PAGE.replace("old\n", "new \\1\nlines\n")
    assert replace_block(replaced, "one", "old") == PAGE
    assert replace_block(PAGE, "two", "x").endswith("<!-- rows: two -->\nx\n<!-- end of rows -->\n")
    assert replace_block(PAGE, "one", "") == PAGE.replace("old\n", "")


@pytest.mark.parametrize(
    ("text", "name", "content", "problem"),
    [
        (PAGE, "three", "x", "the line '<!-- rows: three -->' once; got 0"),
        (PAGE + PAGE, "one", "x", "the line '<!-- rows: one -->' once; got 2"),
        (
            "<!-- rows: one -->\nold\n",
            "one",
            "x",
            "'<!-- rows: one -->' has no end; add the line '<!-- end of rows -->'",
        ),
        ("<!-- rows: one -->\n" + PAGE.replace("one", "two", 1), "one", "x", "'<!-- rows: one -->' has no end"),
        (PAGE, "one", PAGE, "has lines that mark blocks itself"),
    ],
)
def test_replace_block_refuses(text: str, name: str, content: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        replace_block(text, name, content)


# ---- figures


def words(path: Path) -> str:
    return " ".join(re.findall(r">([^<>]+)</t", path.read_text())).replace("\N{NO-BREAK SPACE}", " ")


def test_gold_over_kl_repeats_and_names_its_parts(tmp_path: Path) -> None:
    arms = {
        "raw & <rest>": shifted("raw", [0.0, 0.02]),
        "slow": [row("slow", 0, kl=[-0.1, 0.4, NAN]), row("slow", 1, kl=[NAN, NAN, NAN]), row("slow", 2)],
    }
    for name in ("a.svg", "b.svg"):
        gold_over_kl(tmp_path / "new" / name, arms, "Gold at equal KL")
    assert (tmp_path / "new" / "a.svg").read_bytes() == (tmp_path / "new" / "b.svg").read_bytes()
    text = words(tmp_path / "new" / "a.svg")
    for part in ("Gold at equal KL", "sequence KL to the reference (nats)", "raw &amp; &lt;rest&gt; (2 seeds)"):
        assert part in text
    assert "slow (3 seeds)" in text and PALETTE[1] in (tmp_path / "new" / "a.svg").read_text()


def test_proxy_and_gold_repeats_and_names_its_parts(tmp_path: Path) -> None:
    arms = {"raw": shifted("raw", [0.0, 0.02]), "gold": shifted("gold", [0.1])}
    for name in ("a.svg", "b.svg"):
        proxy_and_gold(tmp_path / name, arms, "What the proxy says", "raw", ceiling="gold")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    text = words(tmp_path / "a.svg")
    for part in ("What the proxy says", "gold quality (2 seeds)", "(ceiling) (1 seed)", "step", "accuracy", "95 % t"):
        assert part in text
    proxy_and_gold(tmp_path / "c.svg", arms, "What the proxy says", "raw")
    assert "ceiling" not in words(tmp_path / "c.svg")


def test_a_prediction_beyond_1_is_not_cut_off(tmp_path: Path) -> None:
    proxy_and_gold(tmp_path / "a.svg", {"raw": shifted("raw", [0.6, 0.7])}, "", "raw")
    assert "1.50" in words(tmp_path / "a.svg")


def test_figures_refuse_what_they_cannot_draw(tmp_path: Path) -> None:
    path = tmp_path / "a.svg"
    with pytest.raises(ValueError, match="arm 'log' has no rows to draw; got rows of raw"):
        proxy_and_gold(path, {"raw": [row("raw", 0)]}, "", "log")
    with pytest.raises(ValueError, match="has 7 colours; got 8 arms"):
        gold_over_kl(path, {str(arm): [row(str(arm), 0)] for arm in range(8)}, "")
    with pytest.raises(ValueError, match="arm 'raw' has no rows"):
        gold_over_kl(path, {"raw": []}, "")
    with pytest.raises(AssertionError, match="seed 1 has other steps than .*seed 0"):
        proxy_and_gold(path, {"raw": [row("raw", 0), row("raw", 1, [0.0, 1.0], [0.5, 0.6])]}, "", "raw")
    assert not path.exists()
