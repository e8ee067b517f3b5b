"""learner/reward_model/denoising.py against labels by hand, and that its parts compose; the settings that are refused."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.config.config import DenoisingConfig
from common.config.file import BASE, ConfigError, load_config
from common.data.data import PreferencePair
from common.types import Message
from learner.reward_model.denoising import denoise, denoised_pairs, ensemble_targets

PAIRS = [PreferencePair((Message("user", f"p{i}"),), f"good {i}", f"bad {i}") for i in range(5)]
MEAN, STD = np.array([0.5, -2.0, 4.0, -0.1, 1.0]), np.array([0.2, 1.0, 0.5, 0.3, 0.4])


PLAIN = load_config(BASE, ["aggregation.kind=final_score"]).learner.reward_model.denoising


def settings(**values: Any) -> DenoisingConfig:
    return replace(PLAIN, **values)


def made(**values: Any) -> list[tuple[str, float, float]]:
    """(chosen, target, margin) of what is kept."""
    pairs = denoised_pairs(PAIRS, MEAN, STD, settings(**values))
    return [(pair.chosen, round(pair.target, 9), round(pair.margin, 9)) for pair in pairs]


def test_by_default_nothing_changes() -> None:
    assert denoised_pairs(PAIRS, MEAN, STD, settings()) == PAIRS
    assert settings().is_neutral and not settings().needs_strength


def test_the_weakest_change_sides_and_their_strength_its_sign() -> None:
    assert made(flip=0.2, margin=1) == [
        ("good 0", 1.0, 0.5),
        ("bad 1", 1.0, 2.0),
        ("good 2", 1.0, 3.0),  # cut at margin_cap
        ("good 3", 1.0, -0.1),
        ("good 4", 1.0, 1.0),
    ]


def test_smoothing_is_of_what_is_weak_after_the_flip_or_of_all() -> None:
    assert [target for _, target, _ in made(flip=0.2, smoothing=0.2)] == [1.0, 1.0, 1.0, 0.8, 1.0]
    assert [target for _, target, _ in made(smoothing=0.2)] == [1.0, 0.8, 1.0, 0.8, 1.0]
    assert [target for _, target, _ in made(smoothing=0.1, smooth="all")] == [0.9] * 5


def test_a_range_of_quantiles_is_kept() -> None:
    assert [chosen for chosen, *_ in made(keep=[0.2, 0.8])] == ["good 0", "good 3", "good 4"]
    assert [chosen for chosen, *_ in made(keep=[0.0, 0.4], flip=0.2)] == ["bad 1", "good 3"]
    with pytest.raises(ValueError, match=r"keep is \[0.5, 0.55\], which leaves none of 5 training pairs; widen it"):
        made(keep=[0.5, 0.55])


def test_the_ensembles_targets_are_its_mean_probability() -> None:
    draws = np.random.default_rng(0).normal(MEAN[:, None], STD[:, None], (5, 200_000))
    np.testing.assert_allclose(ensemble_targets(MEAN, STD), (1 / (1 + np.exp(-draws))).mean(1), atol=0.005)
    assert ensemble_targets(np.array([1.0]), np.array([0.0]))[0] == pytest.approx(1 / (1 + math.exp(-1)))
    (_, target, _), *_ = made(targets="ensemble", smoothing=0.2, smooth="all")
    alone = ensemble_targets(MEAN, STD)[0]
    assert target == pytest.approx(0.8 * alone + 0.2 * (1 - alone))


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=30, unique=True), st.floats(0, 0.99))
def test_a_flip_negates_the_strength(mean: list[float], share: float) -> None:
    """As many as the share says, the weakest; with a margin, every flipped pair's is that of its negated strength."""
    found = denoise(np.array(mean), np.zeros(len(mean)), settings(flip=share, margin=1, margin_cap=100))
    assert abs(found.flipped.sum() - share * len(mean)) <= 1
    signs = np.where(found.flipped, -1, 1)
    np.testing.assert_allclose(found.margins, signs * np.array(mean))
    weak, strong = np.array(mean)[found.flipped], np.array(mean)[~found.flipped]
    assert not len(weak) or not len(strong) or weak.max() < strong.min()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"keep": "[0.5, 0.5]"}, r"keep is \[0.5, 0.5\]; want two quantiles"),
        ({"keep": "[0.5]"}, r"keep is \[0.5\]; it must have 2 numbers, each between 0 and 1"),
        ({"flip": 1}, "flip is 1.0; it must be at least 0 and below 1"),
        ({"smoothing": 0.5}, "smoothing is 0.5; it must be at least 0 and below 0.5"),
        ({"smooth": "some"}, "smooth is 'some'; it must be one of negative, all"),
        ({"targets": "votes"}, "targets is 'votes'; it must be one of labels, ensemble"),
        ({"margin": -1}, "margin is -1.0; it must be between 0 and 1000"),
        ({"margin_cap": 0}, "margin_cap is 0.0; it must be above 0 and at most 1000 nats"),
    ],
)
def test_settings_out_of_range_are_refused(values: Mapping[str, object], message: str) -> None:
    asked = [f"learner.reward_model.denoising.{name}={value}" for name, value in values.items()]
    with pytest.raises(ConfigError, match=message):
        load_config(BASE, ["aggregation.kind=final_score", *asked])
