"""What is wrong with a configuration: values that its fields do not allow, and keys that contradict one another.

Called by common/config/file.py on the merged configuration; every problem becomes one line that says what to do.
"""

from __future__ import annotations

from operator import attrgetter

from common.config.adaptation_checks import wrong_adaptation
from common.config.aggregation_checks import wrong_aggregation
from common.config.config import Config, ExportConfig
from common.config.fields import keys
from common.config.judge_checks import is_environment_name, wrong_judge
from common.config.preference_checks import wrong_preferences
from common.config.reward_checks import wrong_reward_training
from common.config.stages import COMMANDS, STAGES


def wrong_values(config: Config) -> dict[str, str]:
    """One line for each key whose value its field does not allow (common/config/config.py), by the key's name."""
    found = {name: key.problem(attrgetter(name)(config)) for name, key in keys(Config).items()}
    return {name: problem for name, problem in found.items() if problem}


def contradictions(config: Config) -> list[str]:
    """One line for each key that contradicts another one; every value alone is one that its key may have."""
    found, names = [*_wrong_stages(config.stages), *_wrong_push(config.export)], config.rewarder.objectives
    found += wrong_aggregation(config)
    found += _wrong_label_sources(config.rewarder.programs, config.rewarder.preference, names)
    found += wrong_preferences(config)
    found += wrong_reward_training(config)
    return [*found, *_wrong_steps(config), *wrong_judge(config), *wrong_adaptation(config)]


def _wrong_stages(stages: list[str]) -> list[str]:
    found = []
    for stage in stages:
        if stage in COMMANDS:
            found.append(f"stages has {stage!r}, which is a command; take it out, and run it by --stages {stage}")
        elif stage not in STAGES:
            found.append(f"stages has {stage!r}; the stages are {', '.join(STAGES)}")
    return found


def _wrong_steps(config: Config) -> list[str]:
    """What a step cannot be made of: its sampling, its groups, its updates, its window."""
    found, learner = [], config.learner
    if config.actors.top_p < 1:
        found.append("actors.top_p is below 1, but the learner's log-probs are over all tokens; set actors.top_p: 1")
    if learner.on_bad_batch == "skip" and learner.num_updates > 1:
        found.append(
            f"learner.on_bad_batch is skip with learner.num_updates {learner.num_updates}; the earlier updates of a bad step "
            "cannot be taken back: set learner.on_bad_batch: stop, or learner.num_updates: 1"
        )
    if learner.num_updates > learner.groups_per_step:
        found.append("learner.num_updates is above learner.groups_per_step; every update needs at least one group")
    if learner.groups_per_step % learner.ranks:
        found.append(
            f"learner.groups_per_step {learner.groups_per_step} is not a multiple of learner.ranks {learner.ranks}; every rank "
            "trains on whole groups"
        )
    window = (config.iteration.max_staleness + 1) * learner.groups_per_step
    if window > config.redis.capacity:
        found.append(
            f"redis.capacity {config.redis.capacity} is below the window of {window} groups; raise it to {window}"
        )
    return found


def _wrong_push(export: ExportConfig) -> list[str]:
    found = []
    if export.push_to_hub is not None and export.push_to_hub.count("/") != 1:
        found.append(f"export.push_to_hub is {export.push_to_hub!r}; it must be null or owner/name")
    if not is_environment_name(export.token_env):
        found.append(  # the value is not shown, since it may be a token
            "export.token_env must be the name of an environment variable, such as HF_TOKEN, and what it is set to is "
            "none; put the token into the environment, never into a configuration"
        )
    return found


def _wrong_label_sources(programs: dict[str, str], preference: str | None, objectives: list[str]) -> list[str]:
    found = [
        f"rewarder.programs names {n!r}, which is not in rewarder.objectives" for n in programs if n not in objectives
    ]
    if preference is not None and preference not in objectives:
        found.append(f"rewarder.preference is {preference!r}, which is not in rewarder.objectives")
    if preference in programs:
        found.append(f"rewarder.preference {preference!r} also has a program; an objective has one source of labels")
    return found
