"""The real DeepSpeed: a fit of tier full ends the same on one rank and on two, at ZeRO 0, 2 and 3. Every rank is a process that
plays all cases of tests/integration/backbone_rank.py."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.integration.backbone_rank import CASES, STAGES, work
from tests.integration.ranks import SAME, play, relative_difference

Results = dict[int, list[dict[str, Tensor]]]  # by number of ranks, then by rank


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return {ranks: play(work, ranks, tmp_path_factory.mktemp(f"ranks{ranks}")) for ranks in (1, 2)}


def weights(results: dict[str, Tensor], case: str, stage: int) -> dict[str, Tensor]:
    prefix = f"{case}/{stage}/"
    return {name.removeprefix(prefix): value for name, value in results.items() if name.startswith(prefix)}


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("case", CASES)
def test_a_fit_ends_the_same_on_any_number_of_ranks(results: Results, case: str, ranks: int, stage: int) -> None:
    alone, served = (weights(results[1][0], name, 0) for name in (case, "served"))
    for rank in results[ranks]:
        assert relative_difference(weights(rank, case, stage), alone, served) < SAME


@pytest.mark.parametrize("stage", STAGES)
def test_both_ranks_hold_the_same_candidate(results: Results, stage: int) -> None:
    one, other = (weights(rank, "literal", stage) for rank in results[2])
    assert one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def test_the_methods_could_be_told_apart(results: Results) -> None:
    """What the inner step changes is well above the tolerance."""
    literal, none, served = (weights(results[1][0], case, 0) for case in (*CASES, "served"))
    assert relative_difference(literal, none, served) > 10 * SAME
