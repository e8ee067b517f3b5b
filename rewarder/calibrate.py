"""Temperatures: the scale s that makes sigmoid(score difference / s) a probability. Pure maths.

Owns the fit, its report and the record kept in the reward model's config.json. The learner's reward-model stage fits;
the scorer reads. A calibration belongs to one RM version and is frozen for it. Without it the transform is a no-op,
because reward scores differ by hundredths while the log-sigmoid bends over units (`affine_warning` says so with
numbers).

Sources: Platt scaling without intercept (antisymmetry forces 0); 2402.00742 (the transform wants Bradley-Terry logits).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid

PROBIT_TO_LOGIT = 1.702  # sigmoid(1.702 x) is within .01 of the Normal distribution function
AFFINE_R2 = 0.99
BAND = 2.0  # a fitted temperature this many times off the closed form deserves a look
NUM_BINS = 10
SEARCH_WIDTH = 20.0  # the fit looks this far, in log units, to both sides of 1 / rms(difference)


@dataclass(frozen=True)
class CalibrationReport:
    """How one term's temperature does on its pairs: mean log loss (nats), Brier score (both also at s = 1), calibration
    error of the predicted winner (ECE, 10 bins) and the number of pairs. closed_form is the temperature that the spread of
    the ratings around the scores implies (`closed_form_temperature`), where the term is rated."""

    nll: float
    nll_at_one: float
    brier: float
    brier_at_one: float
    ece: float
    num_pairs: int
    closed_form: float | None = None


@dataclass(frozen=True)
class Calibration:
    """temperatures [M], in score units, and a report row for each term, of one RM version. kind and terms say what they were
    fitted for (`Aggregation.calibrated_terms`); empty where a model that was written before says nothing of it."""

    temperatures: tuple[float, ...]
    reports: tuple[CalibrationReport, ...]
    kind: str = ""
    terms: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(self.reports) != len(self.temperatures):
            raise ValueError(f"calibration has {len(self.reports)} reports for {len(self.temperatures)} temperatures")
        if not self.temperatures or not all(math.isfinite(s) and s > 0 for s in self.temperatures):
            raise ValueError(
                f"calibration temperatures are {self.temperatures}; want finite numbers > 0; fit them again"
            )

    def mismatch(self, kind: str, terms: Sequence[str]) -> str | None:
        """Why these temperatures are not those of an aggregation of this kind with these terms; None where they are, or where
        a record that says nothing of it has as many."""
        if self.kind and (self.kind, self.terms) != (kind, tuple(terms)):
            return f"calibrated for {_listed(self.kind, self.terms)}, but the aggregation is {_listed(kind, terms)}"
        if len(self.temperatures) != len(terms):
            return f"calibrated for {len(self.temperatures)} terms, but aggregation.{kind} has {len(terms)}"
        return None

    def to_dict(self) -> dict[str, object]:
        """JSON-ready."""
        reports = [dataclasses.asdict(row) for row in self.reports]
        return {
            "temperatures": list(self.temperatures),
            "reports": reports,
            "kind": self.kind,
            "terms": list(self.terms),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> Calibration:
        """Inverse of to_dict; ValueError names what is missing or of the wrong type."""
        temperatures, reports = values.get("temperatures"), values.get("reports")
        if not isinstance(temperatures, list) or not isinstance(reports, list):
            raise ValueError(f"calibration has keys {sorted(values)}; want lists under temperatures and reports")
        names = {field.name for field in dataclasses.fields(CalibrationReport)}
        for row in reports:
            if not isinstance(row, dict) or not names - {"closed_form"} <= set(row) <= names:
                raise ValueError(f"calibration report is {row!r}; want exactly the keys {sorted(names)}")
        kind, terms = values.get("kind", ""), values.get("terms", [])
        if not isinstance(kind, str) or not isinstance(terms, list):
            raise ValueError(f"calibration is of kind {kind!r} with terms {terms!r}; want a text and a list of texts")
        rows = tuple(CalibrationReport(**row) for row in reports)
        return cls(tuple(float(s) for s in temperatures), rows, kind, tuple(str(term) for term in terms))


def _listed(kind: str, terms: Sequence[str]) -> str:
    return f"{kind} of ({'), ('.join(terms)})"


def _pairs(differences: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Both as checked float64 vectors [N]."""
    d, y = differences.detach().double().flatten(), labels.detach().double().flatten()
    if d.numel() == 0 or d.numel() != y.numel():
        raise ValueError(
            f"calibration has {d.numel()} differences and {y.numel()} labels; want the same number, at least 1"
        )
    if not bool(torch.isfinite(d).all()) or not bool(((y >= 0) & (y <= 1)).all()):
        raise ValueError("calibration wants finite differences and labels in [0, 1] (a tie is 0.5)")
    return d, y


def fit_temperature(differences: Tensor, labels: Tensor, prior: float = 1.0) -> float:
    """s > 0, in score units, with sigmoid(d / s) = P(first is better): differences [N] = score(first) - score(second),
    labels [N] in [0, 1].

    Minimises sum BCE(a d, y) + prior/2 (log a + log rms(d))^2 over log a, a = 1/s, by bracketed Newton. `prior` counts
    like so many pairs and keeps separable data finite. Raises ValueError for no pairs, constant scores, or scores that
    order the pairs no better than chance (then no positive temperature fits)."""
    d, y = _pairs(differences, labels)
    if prior <= 0:
        raise ValueError(f"calibration prior is {prior}; want > 0, in pairs (1 is weak)")
    rms = float(d.square().mean().sqrt())
    if rms == 0:
        raise ValueError(f"all {d.numel()} score differences are 0; this term is constant and cannot be calibrated")
    if float(((y - 0.5) * d).sum()) <= 0:
        accuracy = float(((d > 0) == (y > 0.5)).double().mean())
        raise ValueError(
            f"the scores order {d.numel()} pairs no better than chance (accuracy {accuracy:.3f}); no temperature fits; "
            "check that labels and differences have the same sign, or train the reward model more"
        )
    return rms / math.exp(_solve_log_slope(d / rms, y, prior))


def _solve_log_slope(d: Tensor, y: Tensor, prior: float) -> float:
    """Root in t of the fit's gradient, slope a = exp(t): Newton, halving the bracket where a step leaves it."""
    low, high, t = -SEARCH_WIDTH, SEARCH_WIDTH, 0.0
    for _ in range(200):
        p = torch.sigmoid(math.exp(t) * d)
        slope = math.exp(t) * float(((p - y) * d).sum())
        gradient = slope + prior * t
        curvature = slope + math.exp(2 * t) * float((p * (1 - p) * d * d).sum()) + prior
        low, high = (t, high) if gradient < 0 else (low, t)
        step = t - gradient / curvature if curvature > 0 else high
        if not low < step < high:
            step = (low + high) / 2
        if abs(step - t) < 1e-12:
            return step
        t = step
    return t


def calibration_report(differences: Tensor, labels: Tensor, s: float | Tensor) -> CalibrationReport:
    """The report of temperature s, one for all pairs or one for each [N] (best: of fits that did not see the pair);
    differences [N], labels [N] in [0, 1]."""
    d, y = _pairs(differences, labels)
    s = torch.as_tensor(s, dtype=torch.float64)
    if not bool((s > 0).all()):
        raise ValueError(f"temperature is {s.min()}; want > 0")
    nll, nll_at_one = (float(binary_cross_entropy_with_logits(d / scale, y)) for scale in (s, 1.0))
    brier, brier_at_one = (float((torch.sigmoid(d / scale) - y).square().mean()) for scale in (s, 1.0))
    return CalibrationReport(nll, nll_at_one, brier, brier_at_one, _calibration_error(d / s, y), d.numel())


def _calibration_error(z: Tensor, y: Tensor) -> float:
    """Expected calibration error of the predicted winner: which of the two stands first must not matter, so every pair
    is turned to confidence >= 0.5 (a tie counts half) and confidences are binned on [0.5, 1]."""
    confidence = torch.sigmoid(z.abs())
    hit = torch.where(z > 0, y, torch.where(z < 0, 1 - y, torch.full_like(y, 0.5)))
    bins = ((confidence - 0.5) * 2 * NUM_BINS).long().clamp(0, NUM_BINS - 1)
    gap = torch.zeros(NUM_BINS, dtype=torch.float64).index_add_(0, bins.cpu(), (confidence - hit).cpu())
    return float(gap.abs().sum()) / z.numel()


def closed_form_temperature(differences: Tensor, rated: Tensor, spread: Tensor | None = None) -> float | None:
    """The temperature by the spread of what is rated around what is predicted: [N] differences of scores (or of scores and a
    threshold), [N] the same of ratings, and [N] the standard deviation of what is not known of it, where some is not rated.
    rated = difference + Normal(0, sd), so its sign is a probit in the difference and s = sd / 1.702; the fit sees only the
    signs. None where the ratings are the scores."""
    squares = (rated - differences).detach().double().square()
    error = float((squares if spread is None else squares + spread.double().square()).mean().sqrt())
    return error / PROBIT_TO_LOGIT if error > 0 else None


def calibration_warnings(s: float, report: CalibrationReport) -> list[str]:
    """What is suspicious about one term's temperature, with numbers: outside the band of the closed form, or no better than
    s = 1 on the pairs that it was not fitted on."""
    warnings = []
    closed = report.closed_form
    if closed is not None and not 1 / BAND < s / closed < BAND:
        warnings.append(
            f"the temperature {s:.3g} is {s / closed:.2g} times the {closed:.3g} that the spread of the ratings around the "
            f"scores implies (wanted: within {BAND:g}x); look at the term's labels"
        )
    if not (report.nll <= report.nll_at_one and report.brier <= report.brier_at_one):
        warnings.append(
            f"at the temperature {s:.3g} log loss {report.nll:.3f} and Brier {report.brier:.3f} are no better than "
            f"{report.nll_at_one:.3f} and {report.brier_at_one:.3f} at s = 1, on {report.num_pairs} pairs"
        )
    return warnings


def affine_warning(z: Tensor) -> str | None:
    """A message where log-sigmoid is a straight line over these z (any shape) to R2 >= .99, so that the transform does
    nothing; else None. ValueError if z is empty or not finite."""
    z = z.detach().double().flatten()
    if z.numel() == 0 or not bool(torch.isfinite(z).all()):
        raise ValueError(f"affine_warning got {z.numel()} values, not all finite; want the centred and scaled scores")
    u, spread = logsigmoid(z), float(z.std(correction=0))
    if spread == 0:
        return f"the {z.numel()} centred scores are all {float(z[0]):.4g}: the transform has no signal to act on"
    dz, du = z - z.mean(), u - u.mean()
    slope = float((dz * du).sum() / dz.square().sum())
    total = float(du.square().sum())
    r2 = 1 - float((du - slope * dz).square().sum()) / total if total > 0 else 1.0
    if r2 < AFFINE_R2:
        return None
    return (
        f"log-sigmoid is affine over the centred scores (R2 {r2:.4f}, slope {slope:.3f}, sd {spread:.3g}, "
        f"mean {float(z.mean()):.3g}; wanted: sd of about 1 around 0), so that it only rescales them (docs/reward.md)"
    )
