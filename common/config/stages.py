"""The stages of a run, in order, and the commands: one record each, which everything that asks about stages reads.

A new stage is one record here and one function in driver/stages.py. Holds names alone and imports nothing.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Stage:
    """What a stage is.

    roles       the roles that it needs, by their names in the plan of driver/preflight/placement.py
    sections    the keys of the configuration that its result depends on
    files       the keys of the data section whose contents its result depends on
    makes       what it leaves in the run's directory for the stages that name it in builds_on
    policy      whether policy.model must be set
    reference   whether the learners load the frozen reference policy for it
    queue       whether it needs Redis
    skippable   whether a resumed run skips it once it is done
    command     whether it is no part of a run: --stages alone starts it, and it is never skipped
    """

    name: str
    roles: tuple[str, ...] = ()
    sections: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    makes: str | None = None
    builds_on: tuple[str, ...] = ()
    policy: bool = True
    reference: bool = False
    queue: bool = False
    skippable: bool = True
    command: bool = False


COLLECT_SECTIONS = ("policy", "judge.labeler", "judge.collect_prompts", "judge.collect_responses")
ITERATE_SECTIONS = ("policy", "rewarder", "aggregation", "learner", "iteration", "adaptation", "actors")

TABLE = (
    Stage("sft", roles=("learner",), sections=("policy",), files=("demonstrations",), makes="sft"),
    Stage(
        "collect",
        roles=("actors", "learner"),
        sections=COLLECT_SECTIONS,
        files=("prompts",),
        makes="collected/ratings.jsonl",
        builds_on=("sft",),
        reference=True,
    ),
    Stage(
        "preferences",
        roles=("preference",),
        sections=("policy", "rewarder", "learner.preferences"),
        files=("preferences",),
        builds_on=("sft", "collect"),
    ),
    Stage(
        "reward_model",
        roles=("learner",),
        sections=("policy", "rewarder", "aggregation"),
        files=("ratings", "preferences", "strengths"),
        makes="rm/version_0",
        builds_on=("sft", "collect"),
    ),
    Stage(
        "iterate",
        roles=("actors", "rewarder", "rm_adapter", "judge", "learner"),
        sections=ITERATE_SECTIONS,
        files=("prompts", "eval_prompts"),
        builds_on=("sft", "reward_model"),
        reference=True,
        queue=True,
    ),
    Stage("evaluate", sections=("evaluate",), skippable=False),
    Stage("export", roles=("learner",), builds_on=("sft",), reference=True, skippable=False),
    Stage("report", sections=("report",), policy=False, skippable=False),
    Stage("evaluate_rm", sections=("evaluate_rm",), policy=False, skippable=False, command=True),
    Stage("explain", sections=("explain",), policy=False, skippable=False, command=True),
)
BY_NAME = {stage.name: stage for stage in TABLE}
STAGES = tuple(stage.name for stage in TABLE if not stage.command)
COMMANDS = tuple(stage.name for stage in TABLE if stage.command)


def roles_needed(names: Collection[str]) -> set[str]:
    """The roles that any of these stages needs."""
    return {role for name in names for role in BY_NAME[name].roles}
