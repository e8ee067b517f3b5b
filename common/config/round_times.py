"""After which steps of a run the reward model's turn comes, and whose samples it then sees. Pure.

    iteration   after the last step of each iteration: a round
    steps       after every `every_steps` steps: a round
    drift       after every `every_steps` steps: a look at the drift signal, and a round where that says so

Never after the last step of the run, which nothing follows. Whether the end of an iteration is such a step depends on the count
alone. Used by driver/rounds/when.py, and by the checks of the configuration.
"""

from __future__ import annotations

from common.config.config import AdaptationConfig, IterationConfig


def due_steps(adaptation: AdaptationConfig, iteration: IterationConfig) -> range:
    """The steps that are followed by a round or a look."""
    if not adaptation.enabled:
        return range(0)
    every = iteration.steps if adaptation.when == "iteration" else adaptation.every_steps
    every = max(every, 1)  # the checks ask before they have refused a count of 0
    return range(every, iteration.num * iteration.steps, every)


def seen_since(adaptation: AdaptationConfig, iteration: IterationConfig, step: int) -> int:
    """The step after which the samples begin that the round or look after `step` sees: the last round or look, or the start
    of the iteration that `step` belongs to, where that is later."""
    start = (step - 1) // iteration.steps * iteration.steps
    return max(step - due_steps(adaptation, iteration).step, start)
