"""docs/architecture.md and the README name rooms and files that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NAMED = re.compile(r"`((?:actors|benchmarks|common|configs|driver|examples|learner|rewarder|studies|tests)/[\w./]*)`")


@pytest.mark.parametrize("page", ["README.md", "docs/architecture.md"])
def test_every_room_and_file_that_is_named_exists(page: str) -> None:
    named = NAMED.findall((ROOT / page).read_text(encoding="utf-8"))
    assert len(named) >= 10
    assert [path for path in named if not (ROOT / path).exists()] == []
