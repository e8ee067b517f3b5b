"""What a round's fit is given and how it walks: shared by the tiers on cached states and those that train the backbone.

Called by learner/adaptation/round.py. A fit is `steps` updates; each draws batches and accumulates one update of the
configured method (learner/adaptation/meta_rm.py) over a landscape.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from common.config.config import AdaptationConfig
from learner.adaptation.evidence import Rules
from learner.adaptation.meta_rm import InnerStep, Landscape, accumulate_update
from learner.ranks.progress import Report
from learner.ranks.schedule import cosine

WARMUP = 0.03


@dataclass(frozen=True)
class Method:
    """How a candidate is fitted: the configured settings, the weight of the original ratings, the column of the objective
    that the original pairs train (where there is one), the tokens of a pass, and whether tiers of the backbone compute
    activations twice to keep fewer."""

    settings: AdaptationConfig
    regression_weight: float
    preference: int | None
    micro_batch_tokens: int
    seed: int
    gradient_checkpointing: bool = False
    rank: int = 0

    @property
    def rules(self) -> Rules:
        """What a candidate must show to serve."""
        adaptation = self.settings
        return Rules(adaptation.level, adaptation.min_pairs, adaptation.guard_accuracy, adaptation.guard_r2)

    def original_weight(self, has_fresh: bool) -> float:
        """The weight of the loss on original data, which is all there is where nothing fresh is labelled."""
        return self.settings.replay_weight if has_fresh else 1.0


class Fit(Landscape, Protocol):
    """A landscape that can be walked."""

    def draw(self) -> None:
        """Other batches, for the next update."""
        ...

    def step(self, scale: float) -> None:
        """The update: what was accumulated, at learning_rate * scale."""
        ...


def fit_candidate(fit: Fit, settings: AdaptationConfig, report: Report) -> None:
    """All updates of a fit."""
    meta = settings.meta
    inner = InnerStep(meta.step, meta.size)
    for done in range(settings.steps):
        fit.draw()
        losses = accumulate_update(settings.method, fit, inner, meta.weight, meta.second_order != "none")
        fit.step(cosine(done, settings.steps, WARMUP))
        report(f"{settings.tier}, {settings.method}", done + 1, settings.steps, losses)
