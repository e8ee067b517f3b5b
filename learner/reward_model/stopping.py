"""When a fit has learned what it can: by the loss on labels that it is not fitted on. Pure.

    warm-up, constant rate -> the held-out loss stops falling -> a smaller rate -> .. -> the end

A fit looks at its held-out loss at regular times and says so here; `scale` is then the factor of its learning rate until the
next look. Weights of the best look are the caller's to keep. Used by learner/reward_model/stage_1.py and by the rounds.
"""

from __future__ import annotations

import math

from torch import Tensor, nn

WARMUP = 0.1  # of the updates between two looks
DECAY = 0.3  # of the rate, where the loss has stopped falling
DECAYS = 1  # so many times; where the loss stops once more, the fit ends


class Plateau:
    """Follows a held-out loss, one number a look."""

    def __init__(self, patience: int, decays: int = DECAYS):
        self._patience, self._left = patience, decays
        self._waited = 0
        self.best, self.scale, self.is_over = math.inf, 1.0, False

    def look(self, loss: float) -> bool:
        """Takes in a look; whether it is the best so far. After `patience` looks in a row that are not, the rate falls, or the
        fit is over. A loss that is not a number is no best one."""
        if loss < self.best:
            self.best, self._waited = loss, 0
            return True
        self._waited += 1
        if self._waited >= self._patience:
            self._waited = 0
            self.is_over = self._left == 0
            self._left, self.scale = self._left - 1, self.scale * DECAY
        return False

    def rate(self, step: int, per_look: int) -> float:
        """The factor of the learning rate of a step, counted from 0: linear warm-up over WARMUP of the steps up to the first
        look, then what the looks say."""
        return self.scale * min(1.0, (step + 1) / max(1, round(WARMUP * per_look)))


class Best:
    """The trained weights of the best look, in this process's own memory (not a GPU's)."""

    def __init__(self, model: nn.Module):
        self._model = model
        self._kept: dict[str, Tensor] = {}

    def keep(self) -> None:
        """Copies what is trained, as it is now."""
        self._kept = {n: p.detach().to("cpu", copy=True) for n, p in self._model.named_parameters() if p.requires_grad}

    def put_back(self) -> None:
        """Gives the model the weights that were kept last; nothing where none were. No optimizer may step after it: one that
        is sharded holds weights of its own."""
        parameters = dict(self._model.named_parameters())
        for name, kept in self._kept.items():
            parameters[name].data.copy_(kept)
