"""The real DeepSpeed at ZeRO 0 to 3, on one rank and on two: a bad gradient reaches no weight, a state is read without running
what it holds, from any path. Every rank is a process that plays all cases of tests/integration/states_rank.py."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.integration import states_rank as played
from tests.integration.ranks import play

Results = dict[int, list[dict[str, Tensor]]]  # by number of ranks, then by rank
SETUPS = [(ranks, stage) for ranks in (1, 2) for stage in played.STAGES]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("states")


@pytest.fixture(scope="module")
def results(root: Path) -> Results:
    found = dict[int, list[dict[str, Tensor]]]()
    for ranks in (1, 2):
        (root / str(ranks)).mkdir()
        found[ranks] = play(played.work, ranks, root / str(ranks))
    return found


def of(results: dict[str, Tensor], case: str, stage: int) -> dict[str, Tensor]:
    prefix = f"{case}/{stage}/"
    found = {key.removeprefix(prefix): value for key, value in results.items() if key.startswith(prefix)}
    assert found, prefix
    return found


@pytest.mark.parametrize(("ranks", "stage"), SETUPS)
@pytest.mark.parametrize("kind", played.BAD)
def test_a_bad_gradient_reaches_no_weight_and_no_moment(results: Results, ranks: int, stage: int, kind: str) -> None:
    """One micro-batch of one rank is bad: every rank refuses the step, and goes on as if that batch had never been."""
    for rank in results[ranks]:
        found = of(rank, kind, stage)
        assert bool(found.pop("same"))
        assert not torch.isfinite(found.pop("norm"))
        straight = of(rank, "straight", stage)
        assert found.keys() == straight.keys()
        for name, value in found.items():
            # Seen: 3e-8 apart at ZeRO 0 on two ranks, whose passes then round otherwise; elsewhere the same bits.
            apart = 1e-5 if (ranks, stage) == (2, 0) else 0.0
            assert float((value - straight[name]).abs().max()) <= apart, name


@pytest.mark.parametrize(("ranks", "stage"), SETUPS)
def test_a_load_from_a_path_with_brackets_goes_on_bit_by_bit(results: Results, ranks: int, stage: int) -> None:
    for rank in results[ranks]:
        saved = of(rank, "saved", stage)
        for name, value in of(rank, "loaded", stage).items():
            assert torch.equal(value, saved[name]), name


@pytest.mark.parametrize(("ranks", "stage"), SETUPS)
def test_a_planted_command_does_not_run(results: Results, root: Path, ranks: int, stage: int) -> None:
    for rank in results[ranks]:
        assert bool(of(rank, "planted", stage)["refused"])
    assert not (root / str(ranks) / f"ran-{stage}").exists()


def test_the_planted_command_is_one_that_pickle_runs(tmp_path: Path) -> None:
    """Else the test above could not fail."""
    torch.save(played.Payload(f"touch {tmp_path / 'ran'}"), tmp_path / "x.pt")
    torch.load(tmp_path / "x.pt", weights_only=False)
    assert (tmp_path / "ran").exists()
