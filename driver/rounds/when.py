"""When a round of the reward model happens, and what the loop remembers of it (docs/adaptation.md).

    after a step -> due (common/config/round_times.py)? -> when drift: a look, does it ask for one? -> round
    (driver/rounds/reward_models.py)

Owned by driver/loop/loop.py. A round that is accepted switches the versions by itself.
"""

from __future__ import annotations

from common.config.config import Config
from common.config.round_times import due_steps
from driver.record.loop_state import LoopState
from driver.rounds.drift import DriftWatch
from driver.rounds.reward_models import ReferencesAgain, RewardModels


class RoundTimes:
    """Decides after each step of one run."""

    def __init__(self, config: Config, models: RewardModels, watch: DriftWatch):
        self._due, self._looks = due_steps(config.adaptation, config.iteration), config.adaptation.when == "drift"
        self._models, self._watch = models, watch

    def after_step(
        self, state: LoopState, next_slot: int, references_again: ReferencesAgain
    ) -> dict[str, float | None]:
        """A look or a round where one is due after state.step; what the step line says of it. next_slot is the lowest that has
        not ended: what comes from there on is for the next one. A round that is accepted calls references_again."""
        if state.step not in self._due:
            return {}
        first_slot = max(state.first_slot, state.rounds.first_slot)
        metrics = self._look_or_round(state, first_slot, references_again)
        state.rounds.first_slot = next_slot
        return metrics

    def _look_or_round(
        self, state: LoopState, first_slot: int, references_again: ReferencesAgain
    ) -> dict[str, float | None]:
        seen: dict[str, float | None] = {}
        if self._looks:
            look = self._watch.look(state.rounds, first_slot, self._models.version)
            if not look.fires:
                return look.metrics
            seen = look.metrics
        metrics = self._models.round(state.rounds.num, first_slot, references_again)
        state.rounds.num += 1
        state.reward_model = self._models.adapted
        return {**seen, **metrics}
