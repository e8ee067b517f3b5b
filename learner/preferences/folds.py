"""Which member of stage `preferences` leaves out which pairs: a plan that follows from the seed and the prompts alone.

Called by learner/preferences/worker.py (what a member trains on) and driver/preferences/stage.py (where it counts). Parts
are made of conversation openings (common/data/split.py), so that a conversation and its continuation are left out together.
Pure.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from common.config.config import PreferencesConfig
from common.data.data import PreferencePair
from common.data.split import is_held_out, opening_key

FOLDS, BOOTSTRAP = 11, 12  # streams of the seed


def left_out(
    pairs: Sequence[PreferencePair], settings: PreferencesConfig, held_out_fraction: float, seed: int
) -> NDArray[np.bool_]:
    """[M, P] True where a member does not train on a pair. What is held out from the reward model trains no member; of the rest
    each leaves out one part in `folds` of the prompts (nothing where that is 1). The parts are drawn anew for every `folds`
    members, which leave out each pair once."""
    held_out = np.array([is_held_out(pair.messages, held_out_fraction) for pair in pairs])
    openings = [opening_key(pair.messages) for pair in pairs]
    names = sorted({name for name, out in zip(openings, held_out, strict=True) if not out})
    place = {name: at for at, name in enumerate(names)}
    at = np.array([place.get(name, 0) for name in openings])
    plan = np.tile(held_out, (settings.members, 1))
    if settings.folds > 1:
        plan |= folded(at, len(names), settings.members, settings.folds, [seed, FOLDS])
    return plan


def folded(
    groups: NDArray[np.int64], num_groups: int, members: int, folds: int, seed: Sequence[int]
) -> NDArray[np.bool_]:
    """[M, P] True where the group [P] of a pair is in the part, of `folds`, that a member leaves out; the parts are drawn anew
    for every `folds` members."""
    plan = np.zeros((members, len(groups)), bool)
    for member in range(members):
        draw, part = divmod(member, folds)
        parts = np.random.default_rng([*seed, draw]).permutation(num_groups) % folds
        plan[member] = parts[groups] == part
    return plan


def drawn(trained: NDArray[np.bool_], bootstrap: bool, seed: int, member: int) -> NDArray[np.int64]:
    """The pairs that a member trains on, by index: those marked in trained [P], or as many drawn from them with
    replacement."""
    rows = np.flatnonzero(trained)
    if not bootstrap:
        return rows
    return np.sort(np.random.default_rng([seed, BOOTSTRAP, member]).choice(rows, len(rows)))
