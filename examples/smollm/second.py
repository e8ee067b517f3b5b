"""A second reward model, which only judges: a penalised logistic head on another layer, trained on other people's pairs.

Called by table.py. Its score is a Bradley-Terry logit up to a constant, so only differences mean anything.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from common.data.data import PreferencePair, read_pairs
from common.data.split import validation_part
from examples.smollm.frozen import LAYER, FrozenModel, Say, Sequences
from examples.smollm.measures import Row
from learner.reward_model.logistic import FOLDS, Compared, fit_logistic


@dataclass(frozen=True)
class SecondModel:
    """The head [H] on the mean state of layer LAYER over a response; how many of its own pairs the cross-validated fits, which
    had not seen them, ordered as people did."""

    frozen: FrozenModel
    weight: Tensor
    right: int
    num_pairs: int
    layer: int = LAYER

    @classmethod
    def fit(cls, frozen: FrozenModel, source: Path, bar: Callable[[str], Say]) -> SecondModel:
        """Trains it on the pairs of a file."""
        pairs = list(read_pairs(source))
        states = frozen.mean_states(_sequences(frozen, pairs), bar("second reward model, its pairs"))
        chosen, rejected = states.double().unflatten(0, (len(pairs), 2)).unbind(1)
        part = torch.tensor([validation_part(pair.messages, FOLDS) for pair in pairs])
        labels = torch.tensor([[1.0, 0.0, 1.0]]).expand(len(pairs), 3)
        fit = fit_logistic(Compared(chosen - rejected, labels, part), states.double().std(0))
        return cls(frozen, fit.weight, round(fit.unseen_accuracy * len(pairs)), len(pairs))

    def score(self, rows: Sequence[Row], bar: Callable[[str], Say]) -> list[float]:
        """The score of each evaluated response."""
        states = self.frozen.mean_states(self.frozen.sequences(rows), bar("second reward model, answers"))
        return (states @ self.weight).tolist()


def _sequences(frozen: FrozenModel, pairs: Sequence[PreferencePair]) -> Sequences:
    """Chosen and rejected of each pair, one after the other."""
    found: list[tuple[list[int], list[int]]] = []
    for pair in pairs:
        prompt = frozen.prompt_ids([asdict(message) for message in pair.messages])
        found += [
            (prompt, frozen.tokenizer.encode(side, add_special_tokens=False)) for side in (pair.chosen, pair.rejected)
        ]
    return found
