"""Penalised logistic regression of pairs against scipy's minimiser, and the choice of its penalty."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.special import expit

from learner.reward_model.logistic import ALPHAS, FOLDS, Compared, LogisticFit, fit_logistic


def drawn(num_pairs: int, features: int, strength: float, seed: int = 0) -> tuple[Compared, torch.Tensor]:
    """Pairs whose first side wins by a logistic model along one direction of features that have very different scales."""
    rng = np.random.default_rng(seed)
    scales = 10.0 ** np.linspace(-2, 2, features)
    differences = rng.normal(size=(num_pairs, features)) * scales * np.sqrt(2)
    truth = rng.normal(size=features) / scales
    wins = rng.random(num_pairs) < expit(strength * differences @ truth / np.sqrt(features))
    differences[~wins] *= -1
    part = torch.from_numpy(rng.integers(0, FOLDS, num_pairs))
    labels = torch.tensor([[1.0, 0.0, 1.0]]).repeat(num_pairs, 1)
    return Compared(torch.from_numpy(differences), labels, part), torch.from_numpy(scales)


def reference(compared: Compared, deviation: torch.Tensor, alpha: float) -> np.ndarray:
    """The same minimum by scipy."""
    x = (compared.differences.double() / deviation).numpy()
    target, margin, weight = compared.labels.double().numpy().T

    def value(v: np.ndarray) -> tuple[float, np.ndarray]:
        over = x @ v - margin
        losses = target * np.logaddexp(0, -over) + (1 - target) * np.logaddexp(0, over)
        slope = weight * (expit(over) - target)
        return (weight * losses).mean() + alpha / 2 * v @ v, x.T @ slope / len(x) + alpha * v

    found = minimize(value, np.zeros(x.shape[1]), jac=True, method="L-BFGS-B", options={"gtol": 1e-10, "ftol": 1e-15})
    return found.x / deviation.numpy()


@pytest.mark.parametrize("alpha", [1e-3, 0.1, 10.0])
def test_the_head_is_the_minimum(alpha: float) -> None:
    compared, deviation = drawn(200, 12, 2.0)
    rng = np.random.default_rng(1)
    columns = rng.uniform(0.6, 1, 200), rng.normal(size=200) / 3, rng.uniform(0, 2, 200)
    compared = replace(compared, labels=torch.from_numpy(np.stack(columns, 1)))
    fit = fit_logistic(compared, deviation, alphas=[alpha])
    expected = reference(compared, deviation, alpha)
    standard = np.abs(expected * deviation.numpy()).max()
    np.testing.assert_allclose(fit.weight * deviation, expected * deviation.numpy(), atol=2e-4 * standard)
    assert (fit.alpha, fit.num_pairs) == (alpha, 200)


def test_the_penalty_follows_what_pairs_of_other_prompts_say() -> None:
    noise, deviation = drawn(300, 60, 0.0)
    clear, _ = drawn(3000, 6, 8.0)
    weak, strong = fit_logistic(noise, deviation), fit_logistic(clear, drawn(3000, 6, 8.0)[1])
    assert weak.alpha > 10 * strong.alpha and {weak.alpha, strong.alpha} <= set(ALPHAS)
    assert weak.unseen_loss <= np.log(2) + 0.01, "no worse than a head that says nothing"
    assert strong.unseen_accuracy > 0.85


def test_the_picked_penalty_is_the_best_of_a_plain_cross_validation() -> None:
    compared, deviation = drawn(250, 20, 1.5, seed=3)
    alphas, losses = [10.0, 1.0, 0.1, 0.01], []
    for alpha in alphas:
        total = 0.0
        for part in range(FOLDS):
            unseen = compared.part == part
            margins = compared.differences[unseen].numpy() @ reference(compared.only(~unseen), deviation, alpha)
            total += float(np.logaddexp(0, -margins).sum())
        losses.append(total / 250)
    fit = fit_logistic(compared, deviation, alphas=alphas)
    assert fit.alpha == alphas[int(np.argmin(losses))]
    assert fit.unseen_loss == pytest.approx(min(losses), abs=1e-5)


def scores(fit: LogisticFit, compared: Compared) -> torch.Tensor:
    return compared.differences @ fit.weight.double()


def test_the_scale_of_a_feature_changes_nothing_and_two_fits_are_the_same() -> None:
    compared, deviation = drawn(200, 10, 2.0)
    factor = torch.from_numpy(10.0 ** np.random.default_rng(2).uniform(-3, 3, 10))
    other = replace(compared, differences=compared.differences * factor)
    fit, moved = fit_logistic(compared, deviation), fit_logistic(other, deviation * factor)
    torch.testing.assert_close(scores(fit, compared), scores(moved, other), atol=1e-3, rtol=1e-3)
    assert torch.equal(fit.weight, fit_logistic(compared, deviation).weight)


def test_a_feature_that_never_varies_is_left_alone_and_progress_is_told() -> None:
    compared, deviation = drawn(100, 5, 2.0)
    compared.differences[:, 2] = 0.0
    deviation[2] = 0.0
    told: list[tuple[int, int]] = []
    fit = fit_logistic(compared, deviation, lambda done, total: told.append((done, total)))
    assert fit.weight[2] == 0 and bool(fit.weight.isfinite().all())
    assert told == [(done, FOLDS + 1) for done in range(1, FOLDS + 2)]


def test_what_cannot_be_fitted_is_refused() -> None:
    compared, deviation = drawn(40, 3, 1.0)
    with pytest.raises(ValueError, match=r"40 training pairs .* are in 1 part\(s\) of the prompts"):
        fit_logistic(replace(compared, part=torch.zeros(40)), deviation)
    with pytest.raises(ValueError, match="want at least one, falling, above 0"):
        fit_logistic(compared, deviation, alphas=[0.1, 1.0])
    compared.differences[3, 1] = torch.inf
    with pytest.raises(ValueError, match="are not finite"):
        fit_logistic(compared, deviation)
