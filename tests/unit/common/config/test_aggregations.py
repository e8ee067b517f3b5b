"""The table of the kinds of aggregation: every file that asks about a kind knows all of them."""

from __future__ import annotations

import re
import string
from pathlib import Path

from common.config.aggregation_checks import WRONG_TERMS
from common.config.aggregations import AGGREGATIONS
from common.config.config import AggregationConfig, Config
from common.config.fields import Choice, keys
from rewarder.aggregate import MATHS
from tests.unit.rewarder.test_aggregation import SETTINGS

ROOT = Path(__file__).parents[4]
TABLES = ("common/config/aggregations.py", "rewarder/aggregate.py")  # the record of a kind, and its maths


def test_every_kind_has_its_maths_a_check_of_what_it_lists_a_choice_and_a_case_in_the_tests() -> None:
    rule = keys(Config)["aggregation.kind"].rule
    assert isinstance(rule, Choice)
    assert set(MATHS) == set(AGGREGATIONS) == set(rule.words) == set(SETTINGS)
    settings = {kind.key for kind in AGGREGATIONS.values()}
    assert settings == set(WRONG_TERMS)
    assert settings - {""} <= set(AggregationConfig.__dataclass_fields__)


def test_every_kind_stands_in_the_docs() -> None:
    rows = re.findall(r"^\| `(\w+)`", (ROOT / "docs" / "reward.md").read_text(), re.M)
    assert set(AGGREGATIONS) <= set(rows)


def test_a_kind_s_summary_asks_for_nothing_that_a_card_does_not_fill_in() -> None:
    filled = {"groups", "objectives", "thresholds", "weights", "penalty"}
    for kind in AGGREGATIONS.values():
        assert {name for _, name, _, _ in string.Formatter().parse(kind.summary) if name} <= filled


def test_no_other_file_asks_for_a_kind_by_its_name() -> None:
    asks = re.compile(rf"kind\b[^\n]*(?:==|!=|\bin\b)[^\n]*[\"'](?:{'|'.join(AGGREGATIONS)})[\"']")
    files = [
        path for room in ("actors", "common", "driver", "learner", "rewarder") for path in (ROOT / room).rglob("*.py")
    ]
    asking = {str(path.relative_to(ROOT)) for path in files if asks.search(path.read_text())}
    assert asking <= set(TABLES), (
        f"{sorted(asking)} compare a kind with a name; give the table a property and ask for it"
    )
