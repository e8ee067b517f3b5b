"""What is said of a reward model whose held-out accuracy could be chance."""

from __future__ import annotations

import pytest

from common.chance import chance_warnings

HEAD = "rm/pair_accuracy_preference_head"


def said(low: float | None, high: float | None, name: str = "rm/pair_accuracy") -> list[str]:
    counts: dict[str, float | None] = {"rm/held_out_pairs": 216.0, "rm/held_out_preference_pairs": 80.0}
    ends = {f"{name}{end}": value for end, value in (("", 0.55), ("_low", low), ("_high", high))}
    return chance_warnings({**counts, **ends})


@pytest.mark.parametrize(("low", "high", "words"), [(0.48, 0.62, "contains chance"), (0.3, 0.45, "below chance")])
def test_an_interval_that_is_not_above_chance_is_named(low: float, high: float, words: str) -> None:
    (line,) = said(low, high)
    assert (
        line.startswith(f"the gated score orders 0.550 [{low:.3f}, {high:.3f}] of 216 held-out pairs") and words in line
    )
    (line,) = said(low, high, HEAD)
    assert line.startswith("the head of rewarder.preference orders 0.550") and "of 80 held-out pairs" in line


def test_nothing_is_said_of_a_good_model_nor_of_what_was_not_measured() -> None:
    assert said(0.501, 0.62) == said(None, None) == said(float("nan"), float("nan")) == chance_warnings({}) == []
