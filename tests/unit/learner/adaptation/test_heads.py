"""learner/adaptation/heads.py: correlation and R2 of each head with what the judge said, and their intervals."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from learner.adaptation.heads import LEAST, numbers, standings


def drawn(
    seed: int, prompts: int = 40, each: int = 4, slope: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Scores, ratings and prompts; responses of a prompt share half of their noise."""
    rng = np.random.default_rng(seed)
    truth, shared = rng.normal(0, 1, (prompts, each)), rng.normal(0, 1, (prompts, 1))
    score = slope * truth + shared + rng.normal(0, 1, (prompts, each))
    place = np.repeat(np.arange(prompts), each)
    return torch.tensor(score.reshape(-1, 1)), torch.tensor(truth.reshape(-1, 1)), torch.tensor(place)


def test_the_numbers_are_those_of_the_definitions() -> None:
    score, rating, place = drawn(0)
    rating[::5] = torch.nan
    (found,) = standings(score, rating, place, 0)
    known = rating[:, 0].isfinite()
    s, y = score[known, 0].numpy(), rating[known, 0].numpy()
    assert found.rated == int(known.sum()) and found.correlation is not None and found.r2 is not None
    assert found.correlation[0] == pytest.approx(np.corrcoef(s, y)[0, 1])
    assert found.r2[0] == pytest.approx(1 - ((s - y) ** 2).sum() / ((y - y.mean()) ** 2).sum())
    shifted = standings(score + 3, rating, place, 0)[0]
    assert shifted.correlation is not None and shifted.r2 is not None
    assert shifted.correlation[0] == pytest.approx(found.correlation[0]) and shifted.r2[0] < found.r2[0] - 1


def test_an_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    """The correlation of the population is 1 / sqrt(3); 95 % of 200 intervals, within what 200 trials can tell."""
    held = 0
    for seed in range(200):
        (found,) = standings(*drawn(seed), seed)
        assert found.correlation is not None
        held += found.correlation[1] <= 3**-0.5 <= found.correlation[2]
    assert 178 <= held <= 199


def test_the_same_seed_gives_the_same_interval_and_the_estimate_is_inside() -> None:
    (one,), (again,) = standings(*drawn(1), 7), standings(*drawn(1), 7)
    assert one == again and one.r2 is not None
    assert one.r2[1] < one.r2[0] < one.r2[2]


def test_what_cannot_be_told_is_none() -> None:
    score, rating, place = drawn(2)
    few = rating.clone()
    few[LEAST - 1 :] = torch.nan
    assert standings(score, few, place, 0)[0].correlation is None
    assert standings(score, torch.ones_like(rating), place, 0)[0].r2 is None
    assert standings(torch.ones_like(score), rating, place, 0)[0].correlation is None
    assert standings(score, rating, torch.zeros_like(place), 0)[0].correlation is None, (
        "one prompt has no spread of prompts"
    )


def test_the_names_of_a_decision() -> None:
    found = standings(*drawn(3), 0)
    told = numbers("candidate_", {"good": found[0]})
    assert set(told) == {
        f"candidate_{n}{e}/good" for n in ("correlation", "onpolicy_r2") for e in ("", "_low", "_high")
    }
    assert found[0].correlation == tuple(told[f"candidate_correlation{e}/good"] for e in ("", "_low", "_high"))
