"""What a round's fit is given and how it walks: shared by the tiers on cached states and those that train the backbone.

Called by learner/adaptation/round.py. A fit is `steps` updates; each draws batches and accumulates one update of the
configured method (learner/adaptation/meta_rm.py) over a landscape.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import nn

from common.config.config import AdaptationConfig
from learner.adaptation.evidence import Rules
from learner.adaptation.meta_rm import InnerStep, Landscape, accumulate_update
from learner.ranks.progress import Report
from learner.ranks.schedule import cosine
from learner.reward_model.stopping import Best, Plateau

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
        guards = adaptation.guard_accuracy, adaptation.guard_r2
        return Rules(adaptation.level, adaptation.min_pairs, *guards, adaptation.gate)

    @property
    def batch_original(self) -> int:
        """Original prompts of an update."""
        settings = self.settings
        return settings.batch_pairs if settings.batch_original is None else settings.batch_original

    def original_weight(self, has_fresh: bool) -> float:
        """The weight of the loss on original data, which is all there is where nothing fresh is labelled."""
        return self.settings.replay_weight if has_fresh else 1.0


class Fit(Landscape, Protocol):
    """A landscape that can be walked."""

    @property
    def model(self) -> nn.Module:
        """The model whose parameters are walked."""
        ...

    def held_out(self) -> float:
        """The loss on the labels that are left out of the fit; nothing is trained."""
        ...

    def draw(self) -> None:
        """Other batches, for the next update."""
        ...

    def step(self, scale: float) -> None:
        """The update: what was accumulated, at learning_rate * scale."""
        ...


def fit_candidate(fit: Fit, settings: AdaptationConfig, report: Report) -> None:
    """All updates of a fit; with `patience` until the loss on what is left out stops falling, with the weights of its
    lowest."""
    meta = settings.meta
    inner, best = InnerStep(meta.step, meta.size), Best(fit.model)
    plateau = None if settings.patience is None else Plateau(settings.patience)
    for done in range(settings.steps):
        fit.draw()
        losses = accumulate_update(settings.method, fit, inner, meta.weight, meta.second_order != "none")
        fit.step(cosine(done, settings.steps, WARMUP) if plateau is None else plateau.rate(done, settings.check_every))
        report(f"{settings.tier}, {settings.method}", done + 1, settings.steps, losses)
        if plateau is None or (done + 1) % settings.check_every:
            continue
        if plateau.look(fit.held_out()):
            best.keep()
        if plateau.is_over:
            break
    best.put_back()
