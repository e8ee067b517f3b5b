"""Real human preference pairs through the reader, where ITER_RLHF_DATA names the folder that has them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from common.data.data import read_pairs

FOLDER = os.environ.get("ITER_RLHF_DATA")


@pytest.mark.skipif(FOLDER is None, reason="ITER_RLHF_DATA names no folder with hh_harmless.jsonl.gz")
def test_human_preference_pairs_are_read_whole() -> None:
    pairs = read_pairs(Path(str(FOLDER)) / "hh_harmless.jsonl.gz")
    assert len(pairs) == 1769
    assert all(pair.messages[-1].role == "user" and pair.chosen != pair.rejected for pair in pairs)
    assert any(len(pair.messages) > 1 for pair in pairs), "conversations of several turns"
