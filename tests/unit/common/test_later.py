"""A value that a later call brings."""

from __future__ import annotations

import pytest

from common.later import Later


def test_a_value_is_missed_with_the_call_that_brings_it_and_the_last_one_counts() -> None:
    held: Later[int | None] = Later("load")
    with pytest.raises(AssertionError, match="load has not been called"):
        _ = held.value
    for given in (3, None, 4):
        held.set(given)
        assert held.value == given
