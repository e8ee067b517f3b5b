"""What stage `preferences` cannot work with: settings that contradict one another, and too little data. One line a problem.

Settings are checked with the configuration (common/config/checks.py); data by the preflight, where the whole file is read, and
again by the stage itself (learner/preferences/worker.py), which may read what stage collect made.
"""

from __future__ import annotations

from collections.abc import Sequence

from common.config.config import Config, PreferencesConfig
from common.data.data import PreferencePair
from common.data.split import is_held_out, opening_key

KEY = "learner.preferences"


def wrong_preferences(config: Config) -> list[str]:
    """One line for each contradiction among learner.preferences, the stages and data.strengths."""
    settings, found = config.learner.preferences, []
    members, folds = settings.members, settings.folds
    if members % max(folds, 1):
        near = sorted({max(2, members // folds + more) * folds for more in (0, 1)})
        found.append(
            f"{KEY}.members is {members} and {KEY}.folds is {folds}; members must be a multiple of folds, so that every pair "
            f"is left out equally often: use {' or '.join(map(str, near))} members"
        )
    elif members < 2 * folds:
        found.append(
            f"{KEY}.members is {members} and {KEY}.folds is {folds}, so that each pair has one member's opinion and no "
            f"standard deviation; use at least {2 * folds} members, or fewer folds"
        )
    if settings.keep_models and settings.vary_seed and settings.train != "heads":
        found.append(
            f"{KEY}.keep_models averages the weights of the members, but with {KEY}.vary_seed: true and train: "
            f"{settings.train} they start from different heads, whose backbones do not average (docs/preferences.md); set "
            f"vary_seed: false (then they differ in the data's order alone), keep_models: false, or train: heads"
        )
    return found + (_two_sources(config) if config.data.strengths else [])


def _two_sources(config: Config) -> list[str]:
    if "preferences" not in config.stages:
        return []
    return [
        f"data.strengths is {config.data.strengths!r}, but stage preferences makes the strengths of this run; set "
        "data.strengths: null, or take preferences out of the stages"
    ]


def too_few(pairs: Sequence[PreferencePair], settings: PreferencesConfig, held_out_fraction: float) -> list[str]:
    """Why these pairs cannot be dealt to the members; what is held out trains none of them."""
    kept = [pair for pair in pairs if not is_held_out(pair.messages, held_out_fraction)]
    beside = f"of the {len(pairs)} pairs {len(pairs) - len(kept)} are held out (learner.reward_model.held_out_fraction)"
    found, openings = [], len({opening_key(pair.messages) for pair in kept})
    if len(kept) < 2 * settings.members:
        found.append(
            f"stage preferences has {len(kept)} pairs to train on for {KEY}.members {settings.members}; wanted at least "
            f"{2 * settings.members}, two for each ({beside}): give more pairs, or fewer members"
        )
    if settings.folds > 1 and openings < settings.folds:
        found.append(
            f"stage preferences has {openings} different prompts to train on for {KEY}.folds {settings.folds}; wanted at least "
            f"one a fold ({beside}): give more prompts, or fewer folds"
        )
    return found
