"""When a round or a look is due, whose samples it sees, and what the loop remembers of it."""

from __future__ import annotations

import pytest

from common.config.config import Config
from common.config.file import BASE, ConfigError, load_config
from common.config.round_times import due_steps, seen_since
from driver.record.loop_state import LoopState
from driver.rounds.drift import Look
from driver.rounds.reward_models import ReferencesAgain
from driver.rounds.when import RoundTimes
from tests.unit.driver.fake_groups import without_references

JUDGED = ("aggregation.kind=final_score", "judge.function=a:b", "adaptation.min_pairs=1")


def config(when: str, num: int, steps: int, every: int, *more: str) -> Config:
    lengths = (f"iteration.num={num}", f"iteration.steps={steps}", f"adaptation.every_steps={every}")
    return load_config(BASE, [*JUDGED, f"adaptation.when={when}", *lengths, *more])


@pytest.mark.parametrize(
    ("when", "num", "steps", "every", "due"),
    [
        ("iteration", 3, 4, 2, [4, 8]),
        ("iteration", 1, 4, 2, []),
        ("never", 3, 4, 2, []),
        ("steps", 2, 4, 2, [2, 4, 6]),  # never after step 8, the last; step 4 is an iteration's end by the count alone
        ("steps", 2, 4, 3, [3, 6]),
        ("steps", 3, 4, 5, [5, 10]),
        ("drift", 3, 4, 5, [5, 10]),
    ],
)
def test_when(when: str, num: int, steps: int, every: int, due: list[int]) -> None:
    made = config(when, num, steps, every)
    assert list(due_steps(made.adaptation, made.iteration)) == due


@pytest.mark.parametrize(
    ("when", "steps", "every", "since"),
    [
        ("iteration", 4, 2, {4: 0, 8: 4}),
        ("steps", 4, 2, {2: 0, 4: 2, 6: 4, 8: 6, 10: 8}),
        ("steps", 4, 3, {3: 0, 6: 4, 9: 8}),  # of the iteration alone
        ("drift", 4, 5, {5: 4, 10: 8}),
    ],
)
def test_a_round_sees_what_came_since_the_one_before_in_its_iteration(
    when: str, steps: int, every: int, since: dict[int, int]
) -> None:
    made = config(when, 3, steps, every)
    times = made.adaptation, made.iteration
    assert {step: seen_since(*times, step) for step in due_steps(*times)} == since


# ---- what the configuration may ask for -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        # groups_per_step is 64: 2 steps are 128 groups, of which half are evidence
        (("when=steps", "every_steps=2", "min_pairs=65"), "a round sees 128 groups, those since the one before"),
        (("when=steps", "every_steps=15", "min_pairs=65", "evidence_pairs=400"), ""),
        # 3 iterations of 20 steps: step 21 has one step of its iteration
        (("when=steps", "every_steps=21", "min_pairs=33"), "sees 64 groups"),
        (("when=steps", "every_steps=60"), "has 0 rounds, none after its last step; at least 1 is wanted"),
        (("when=drift", "every_steps=30"), "has 1 looks, none after its last step; at least 2 is wanted"),
        (("when=drift", "drift.signal=variance", "drift.change=2"), "variance cannot fall by more than 1"),
        (("when=drift", "drift.pairs=200"), "adaptation.drift.pairs is 200, above adaptation.evidence_pairs 128"),
        (("when=drift", "drift.signal=disagreement", "ensemble=e", "drift.change=2"), ""),
        (("when=iteration", "every_steps=1000"), ""),
    ],
)
def test_what_is_refused(overrides: tuple[str, ...], words: str) -> None:
    settings = [*JUDGED, "iteration.num=3", "iteration.steps=20", *(f"adaptation.{o}" for o in overrides)]
    if not words:
        assert load_config(BASE, settings).adaptation.enabled
        return
    with pytest.raises(ConfigError, match=words):
        load_config(BASE, settings)


def test_a_checkpoint_at_every_step_leaves_a_round_the_groups_since_the_oldest_kept() -> None:
    settings = ("checkpoint.every_steps=1", "checkpoint.keep=3", "adaptation.min_pairs=100")
    with pytest.raises(ConfigError, match=r"a round sees 192 groups.*lower it to 96"):
        config("steps", 3, 20, 10, *settings)


def test_gap_needs_numbers_from_the_judge() -> None:
    settings = ["judge.function=null", "judge.labeler=a:b", "adaptation.when=drift", "adaptation.drift.signal=gap"]
    with pytest.raises(ConfigError, match=r"there is no judge\.function, whose numbers"):
        load_config(BASE, [*JUDGED, *settings])
    assert load_config(BASE, [*JUDGED, *settings[:-1]]).adaptation.enabled


# ---- what the loop does ---------------------------------------------------------------------------------------------------


class Models:
    """Rounds that are accepted as told."""

    def __init__(self, *accepted: bool):
        self._accepted, self.asked, self.version, self.adapted = list(accepted), [], 0, ""

    def round(self, number: int, first_slot: int, again: ReferencesAgain) -> dict[str, float | None]:
        assert again is without_references, "the round gets what the loop gave"
        self.asked.append((number, first_slot))
        if accepted := self._accepted.pop(0):
            self.version += 1
            self.adapted = f"rm/version_{self.version}"
        return {"rm/accepted": float(accepted)}


class Watch:
    """Looks that fire as told."""

    def __init__(self, *fires: bool):
        self._fires, self.asked = list(fires), []

    def look(self, state: object, first_slot: int, version: int) -> Look:
        self.asked.append((first_slot, version))
        return Look({"drift/accuracy": 0.5}, self._fires.pop(0))


def walk(made: Config, models: Models, watch: Watch) -> tuple[LoopState, dict[int, dict[str, float | None]]]:
    """A run of 4 slots a step: the state at its end, and what each step's line got."""
    times, state, lines = RoundTimes(made, models, watch), LoopState(), {}  # pyright: ignore[reportArgumentType]
    for iteration in range(made.iteration.num):
        state.iteration, state.first_slot = iteration, 4 * state.step
        for _ in range(made.iteration.steps):
            state.step += 1
            if found := times.after_step(state, 4 * state.step, without_references):
                lines[state.step] = found
    return state, lines


def test_rounds_by_steps_see_the_slots_since_the_last_one_or_the_iterations_start() -> None:
    models = Models(True, False, True)
    state, lines = walk(config("steps", 2, 5, 3), models, Watch())
    assert models.asked == [(0, 0), (1, 20), (2, 24)] and sorted(lines) == [3, 6, 9]
    assert (state.rounds.num, state.rounds.first_slot, state.reward_model) == (3, 36, "rm/version_2")


def test_rounds_at_the_ends_of_iterations_are_numbered_as_they_were() -> None:
    models = Models(True, True)
    state, lines = walk(config("iteration", 3, 2, 9), models, Watch())
    assert models.asked == [(0, 0), (1, 8)] and sorted(lines) == [2, 4] and state.reward_model == "rm/version_2"


def test_a_round_follows_only_a_look_that_asks_for_one() -> None:
    models, watch = Models(False, True), Watch(False, True, False, True)
    state, lines = walk(config("drift", 2, 5, 2), models, watch)
    assert watch.asked == [(0, 0), (8, 0), (20, 0), (24, 0)] and models.asked == [(0, 8), (1, 24)]
    assert lines[2] == lines[6] == {"drift/accuracy": 0.5}
    assert lines[4] == {"drift/accuracy": 0.5, "rm/accepted": 0.0} and lines[8]["rm/accepted"] == 1.0
    assert (state.rounds.num, state.rounds.first_slot) == (2, 32)


def test_never_and_the_last_step_ask_for_nothing() -> None:
    for made in (config("never", 2, 5, 2), config("iteration", 1, 5, 2)):
        assert walk(made, Models(), Watch())[1] == {}
