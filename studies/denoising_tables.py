"""Wrong labels: the tables and the figure of study `denoising`. Called by render.py.

Arms are shares of flipped labels; their rows have what denoising.py measures.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from studies.denoising import PERCENT
from studies.figures import Panel, panels
from studies.rows import Row
from studies.statistics import paired_interval, t_interval
from studies.strengths import PARTS
from studies.tables import markdown_table
from studies.treatments import METHODS

Arms = Mapping[str, Sequence[Row]]
BASELINE = "baseline"
AUCS = ("out_of_fold", "one_member", "out_of_pair", "in_sample", "apart/out_of_fold", "apart/in_sample")
DRAWN = ("flip", "soft_margin", "flip_margin", "select", "ensemble_targets", "simcse", "ensemble")
NUMBERS = range(1, PARTS + 1)


def tables(arms: Arms) -> str:
    """Finding wrong labels, the tenths of strength, sets that grow, and each method's gain, as Markdown."""
    shares = [PERCENT * number for number in NUMBERS][:-1]
    return "\n".join(
        [
            markdown_table(["AUC", *arms], [[name, *_cells(arms, f"auc/{name}")] for name in AUCS]),
            "Share of right labels by tenth of strength, the weakest first:\n",
            markdown_table(["tenth", *arms], [[str(n), *_cells(arms, f"agreement/{n}")] for n in NUMBERS]),
            "Accuracy in distribution when trained on that tenth alone:\n",
            markdown_table(["tenth", *arms], [[str(n), *_cells(arms, f"part/{n}")] for n in NUMBERS]),
            "On sets that grow from the weakest end, and from the strongest:\n",
            markdown_table(["weakest", *arms], [[f"{n} %", *_cells(arms, f"weakest/{n}")] for n in shares]),
            markdown_table(["strongest", *arms], [[f"{n} %", *_cells(arms, f"strongest/{n}")] for n in shares]),
            f"Accuracy in distribution: {BASELINE}, and what each method adds to it:\n",
            _methods(arms, "in"),
            "Out of distribution:\n",
            _methods(arms, "out"),
        ]
    )


def draw(path: Path, arms: Arms) -> None:
    """What methods add to the baseline over the share of flipped labels; right labels by tenth of strength."""
    gains = {method: {_share(arm): _gains(rows, method) for arm, rows in arms.items()} for method in DRAWN}
    right = {arm: {float(n): _values(rows, f"agreement/{n}") for n in NUMBERS} for arm, rows in arms.items()}
    panels(
        path,
        [
            Panel(gains, "flipped labels (%)", f"accuracy minus {BASELINE}"),
            Panel(right, "tenth of the pairs, the weakest first", "share of right labels"),
        ],
    )


def _share(arm: str) -> float:
    """Per cent, of an arm's name flipped_NN."""
    return float(arm.rpartition("_")[2])


def _methods(arms: Arms, side: str) -> str:
    base = [BASELINE, *_cells(arms, f"{side}/{BASELINE}")]
    rest = [method for method in METHODS if method != BASELINE]
    rows = [[method, *(_gain(rows, side, method) for rows in arms.values())] for method in rest]
    return markdown_table(["method", *arms], [base, *rows])


def _gain(rows: Sequence[Row], side: str, method: str) -> str:
    return paired_interval(_by_seed(rows, f"{side}/{method}"), _by_seed(rows, f"{side}/{BASELINE}")).format(signed=True)


def _gains(rows: Sequence[Row], method: str) -> list[float]:
    """In distribution, of each seed."""
    return [row.end[f"in/{method}"] - row.end[f"in/{BASELINE}"] for row in rows]


def _by_seed(rows: Sequence[Row], name: str) -> dict[int, float]:
    return {row.seed: row.end[name] for row in rows}


def _cells(arms: Arms, name: str) -> list[str]:
    """An arm a cell; "-" where the arm has none to measure (no label is wrong)."""
    values = [_values(rows, name) for rows in arms.values()]
    return [t_interval(found).format() if all(map(math.isfinite, found)) else "-" for found in values]


def _values(rows: Sequence[Row], name: str) -> list[float]:
    return [row.end[name] for row in rows]
