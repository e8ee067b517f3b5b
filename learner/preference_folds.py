"""Which member of stage `preferences` leaves out which pairs: a plan that follows from the seed and the prompts alone.

Called by learner/preference_worker.py (what a member trains on) and driver/preferences.py (where it counts). Parts are made of
conversation openings (common/split.py), so that a conversation and its continuation are left out together. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from common.config import PreferencesConfig
from common.data import PreferencePair
from common.split import is_held_out, opening_key

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
    for member in range(settings.members if settings.folds > 1 else 0):
        group, part = divmod(member, settings.folds)
        parts = np.random.default_rng([seed, FOLDS, group]).permutation(len(names)) % settings.folds
        plan[member] |= parts[at] == part
    return plan


def drawn(trained: NDArray[np.bool_], bootstrap: bool, seed: int, member: int) -> NDArray[np.int64]:
    """The pairs that a member trains on, by index: those marked in trained [P], or as many drawn from them with
    replacement."""
    rows = np.flatnonzero(trained)
    if not bootstrap:
        return rows
    return np.sort(np.random.default_rng([seed, BOOTSTRAP, member]).choice(rows, len(rows)))
