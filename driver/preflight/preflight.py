"""The preflight: everything that can be known to be wrong before a model is loaded, listed at once.

Called by launch.py before every run and by `--check`, which prints the Report and exits 2 where it has problems.
Reads files, asks Redis and the cluster over TCP, and waits a few seconds at most; changes nothing.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

from common.config.aggregations import AGGREGATIONS
from common.config.config import Config
from common.config.file import ConfigError, SavedConfig, differing_keys, read_saved, shown, to_dict
from common.config.stages import BY_NAME, COMMANDS, roles_needed
from common.model_size import DTYPE_BYTES, Shape, shape_of
from driver.export.hub import check_push
from driver.export.stage import is_current
from driver.preflight.chat import note_turns
from driver.preflight.commands import check_commands
from driver.preflight.environment import check_versions, visible_gpus
from driver.preflight.findings import Findings
from driver.preflight.inputs import Tokenizers, check_data, check_functions, check_model
from driver.preflight.judge import check_judge
from driver.preflight.labels import check_labels
from driver.preflight.limits import check_judges_lengths, check_policy_lengths, check_scoring_lengths
from driver.preflight.machine import check_machine
from driver.preflight.models import check_reward_model
from driver.preflight.placement import (
    Room,
    check_placement,
    disk_bytes,
    format_gib,
    gpus_wanted,
    plan_lines,
    roles_of,
)
from driver.preflight.preferences import check_preferences
from driver.preflight.round_cost import round_lines
from driver.preflight.services import check_cluster, check_redis
from driver.record.run_lock import held_elsewhere

RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
JUDGE_SERVICE = tuple(
    f"judge.endpoint.{key}" for key in ("url", "key_env", "timeout_s", "max_response_kib", "retries", "concurrency")
)
# What a resumed run may change, since no number depends on it: where its services are, where its models go, what is shown,
# what commands look at, what the probe may show
# (judge.endpoint.model may not change, so that the judge stays who it was)
FREE_ON_RESUME = (
    "run.dir",
    "checkpoint.resume",
    "cluster.",
    "redis.url",
    "redis.password_env",
    "export.",
    "report.tensorboard",
    "actors.sync_tolerance",
    *COMMANDS,
    *JUDGE_SERVICE,
)


@dataclass(frozen=True, slots=True)
class Report:
    """problems: one line each, empty where the run may start. plan: the placement table, its sums, disk and notes. said: what
    a run says before it starts. rows: what becomes of the rows of each file, one line each."""

    problems: list[str]
    plan: list[str]
    said: list[str]
    rows: list[str]


def check(config: Config, stages: list[str], resume: bool) -> Report:
    """Checks everything that the `stages` need. Raises nothing for bad input: it is all in the report."""
    findings = Findings()
    said = _check_run_dir(config, resume, findings)
    policy, rewarder, tokenizer, rm_tokenizer = _check_models(config, stages, findings)
    judge, judge_tokenizer = check_judge(config, stages, findings)
    tokenizers = Tokenizers(tokenizer, rm_tokenizer, judge_tokenizer)
    check_data(config, stages, tokenizers, findings)
    check_labels(config, stages, tokenizers, findings)
    check_preferences(config, stages, tokenizers, findings)
    check_functions(config, findings)
    check_commands(config, stages, findings)
    if "export" in stages:
        check_push(config.export, findings)
    if any(BY_NAME[stage].queue for stage in stages):
        check_redis(config.redis, config.cluster, findings)
    building = [stage for stage in stages if stage != "export" or not is_current(config.run_dir)]  # else it only pushes
    check_judges_lengths(config, stages, findings)
    _check_machine(config, building, _parameters(policy), findings)
    plan = _check_placement(config, building, (policy, rewarder, judge), findings)
    plan += [*_references_cost(config, building), *round_lines(config, building)]
    plan += _check_disk(config, disk_bytes(config, building, _parameters(policy), _parameters(rewarder)), findings)
    if "iterate" in stages:
        said.append(_sync_tolerance(config))
    plan += [*said, *(f"note: {note}" for note in findings.notes)]
    problems, rows = (list(dict.fromkeys(lines)) for lines in (findings.problems, findings.rows))
    return Report(problems, plan, said, rows)


def _check_models(
    config: Config, stages: Sequence[str], findings: Findings
) -> tuple[Shape | None, Shape | None, Any, Any]:
    """(the policy's shape, the reward model's, the policy's tokenizer, the reward model's), each None where it is not
    known."""
    policy, rewarder, trust = config.policy, config.rewarder, config.policy.trust_remote_code
    directory, tokenizer = None, None
    if policy.model:
        directory, tokenizer = check_model("policy.model", policy.model, policy.revision, trust, findings)
    if "actors" in roles_needed(stages):
        note_turns("policy.model", directory, tokenizer, findings)
    check_policy_lengths(config, stages, directory, findings)
    shape = shape_of(directory)
    if not rewarder.model:
        # The reward model that stage reward_model trains has the policy's backbone.
        check_scoring_lengths("policy.model", config, stages, directory, findings)
        return shape, shape, tokenizer, tokenizer
    directory, rm_tokenizer = check_model("rewarder.model", rewarder.model, rewarder.revision, trust, findings)
    if directory is not None and Path(rewarder.model).is_dir():  # of the Hub's cache some files may be missing
        check_reward_model("rewarder.model", directory, rewarder.objectives, findings)
    check_scoring_lengths("rewarder.model", config, stages, directory, findings)
    return shape, shape_of(directory), tokenizer, rm_tokenizer


def _parameters(shape: Shape | None) -> int | None:
    return None if shape is None else shape.parameters


def _check_machine(config: Config, stages: Sequence[str], parameters: int | None, findings: Findings) -> None:
    """Limits of this machine, where roles run on it."""
    if not roles_needed(stages):
        return
    local, samples = config.cluster.address is None, "actors" in roles_needed(stages)
    held = None if parameters is None else parameters * DTYPE_BYTES[config.policy.dtype] * config.actors.num
    check_machine(findings, local, held if local and samples else None)


def _check_placement(
    config: Config, stages: Sequence[str], sizes: tuple[Shape | None, Shape | None, int | None], findings: Findings
) -> list[str]:
    """Versions, cluster and room for the roles; sizes: of policy, reward model and judge. Returns the plan's table."""
    roles = roles_of(config, stages, *sizes)
    room = _room(config, findings) if roles else Room(visible_gpus(), "none", None)
    check_versions(findings, bool(room.gpus) and gpus_wanted(roles) > 0)
    found = check_placement(roles, room)
    findings.problems.extend(found.problems)
    findings.notes.extend(found.notes)
    actors = config.actors
    if actors.tensor_parallel > 1 and actors.gpus and actors.gpus != actors.tensor_parallel:
        findings.problem(
            f"actors.gpus is {actors.gpus:g} with actors.tensor_parallel {actors.tensor_parallel}; they must be equal"
        )
    return plan_lines(roles, room)


def _references_cost(config: Config, stages: Sequence[str]) -> list[str]:
    """What the references cost, where the aggregation has any: responses of the anchor, sampled and scored once each."""
    aggregation, iteration = config.aggregation, config.iteration
    if "iterate" not in stages or not AGGREGATIONS[aggregation.kind].centred:
        return []
    prompts, count = iteration.steps * config.learner.groups_per_step, aggregation.references_per_prompt
    share = count / config.actors.responses_per_prompt
    canned = f", and {len(aggregation.canned)} canned scored" if aggregation.canned else ""
    return [
        f"references: {count} responses of the anchor to each of up to {prompts} prompts an iteration{canned}; at most "
        f"{share:.0%} more samples than the policy's"
    ]


def _room(config: Config, findings: Findings) -> Room:
    if config.cluster.address is None:
        return Room(visible_gpus(), "none", None)
    reached, cluster_gpus = check_cluster(config.cluster, findings)
    return Room(visible_gpus(), "answers" if reached else "silent", cluster_gpus)


def _sync_tolerance(config: Config) -> str:
    given = config.actors.sync_tolerance is not None
    why = "as set" if given else f"by policy.dtype {config.policy.dtype}"
    return f"actors.sync_tolerance: {config.sync_tolerance:g} nats, {why}"


def _check_run_dir(config: Config, resume: bool, findings: Findings) -> list[str]:
    """Whether the run may use its directory; returns what a resumed run has to say about its saved configuration."""
    name, run_dir = config.run.name, config.run_dir
    if not RUN_NAME.fullmatch(name):
        findings.problem(
            f"run.name is {name!r}; wanted 1 to 64 letters, digits, '.', '_' or '-', the first a letter or digit"
        )
    elif problem := held_elsewhere(run_dir):
        findings.problem(problem)
    elif resume:
        return _check_resume(config, findings)
    elif run_dir.is_dir() and any(run_dir.iterdir()):
        findings.problem(f"{run_dir} already holds a run; pass --resume, choose another run.name, or delete it")
    elif run_dir.exists() and not run_dir.is_dir():
        findings.problem(f"{run_dir} is a file; choose another run.name")
    elif not os.access(_existing(run_dir), os.W_OK):
        findings.problem(f"{_existing(run_dir)} cannot be written to; correct run.dir")
    return []


def _check_resume(config: Config, findings: Findings) -> list[str]:
    """The saved configuration is there and agrees in every key that may not change; returns how its keys are others."""
    path = config.run_dir / "config.yaml"
    if not path.is_file():
        findings.problem(f"--resume, but there is no run in {config.run_dir}; correct run.name or leave --resume out")
        return []
    try:
        saved = read_saved(path)
    except ConfigError as error:
        findings.problems.extend(f"--resume: {line}" for line in str(error).splitlines())
        return []
    keys = differing_keys(to_dict(config), to_dict(saved.config))
    keys = [key for key in keys if not key.startswith(FREE_ON_RESUME)]
    if keys:
        findings.problem(
            f"--resume, but {config.run_dir} was started with another configuration; it differs in {', '.join(keys)}: "
            f"restore them (see its config.yaml{_defaults(keys, saved)}) or choose another run.name"
        )
    return _other_keys(config, saved)


def _defaults(keys: Sequence[str], saved: SavedConfig) -> str:
    """What the keys must be that config.yaml does not have."""
    new = [f"{key} {shown(attrgetter(key)(saved.config))}" for key in keys if key in saved.added]
    return f"; it was made before {', '.join(new)}" if new else ""


def _other_keys(config: Config, saved: SavedConfig) -> list[str]:
    """One line for the keys that the saved configuration lacks, and one for those that exist no more."""
    said, where = [], f"{config.run_dir}/config.yaml"
    if saved.added:
        values = ", ".join(f"{key}: {shown(attrgetter(key)(config))}" for key in saved.added)
        said.append(f"{where} was written before these keys existed, which have their defaults: {values}")
    if saved.gone:
        said.append(f"{where} has keys that exist no more and are ignored: {', '.join(saved.gone)}")
    return said


def _check_disk(config: Config, needed: float | None, findings: Findings) -> list[str]:
    where = _existing(config.run_dir)
    free = shutil.disk_usage(where).free
    if needed is not None and needed > free:
        findings.problem(
            f"the run may need {format_gib(needed)} of disk and {where} has {format_gib(free)} free; free some, "
            "change run.dir, or lower checkpoint.keep"
        )
    wanted = "an unknown amount" if needed is None else f"up to {format_gib(needed)}"
    return [f"disk: {wanted} in {config.run_dir} ({format_gib(free)} free)"]


def _existing(path: Path) -> Path:
    """`path` or the nearest of its parents that is there."""
    return next(parent for parent in (path.resolve(), *path.resolve().parents) if parent.exists())
