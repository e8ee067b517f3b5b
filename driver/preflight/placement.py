"""Which role runs where and what memory it needs, estimated from config.json before anything is loaded.

Called by the preflight. Counts what can be computed exactly: weights, gradients, optimizer state, KV cache. Activations
and the processes themselves come on top and are said to. A model whose config.json is not here has no size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import psutil

from common.config.config import Config
from common.config.round_times import due_steps
from common.config.stages import BY_NAME, roles_needed
from common.model_size import DTYPE_BYTES, Shape, learner_bytes
from driver.preflight.environment import Gpu, available_cpus
from driver.preflight.findings import Findings
from driver.preflight.round_cost import adapter_bytes, adapter_detail

GIB = 2**30
CHECKPOINT_BYTES = 12  # per parameter: float32 weights and two Adam moments


@dataclass(frozen=True, slots=True)
class Role:
    """One row of the plan: `num` processes of `gpus` GPUs and `threads` threads; bytes per process, None if unknown."""

    name: str
    num: int
    gpus: float
    threads: int
    num_bytes: float | None
    detail: str


@dataclass(frozen=True, slots=True)
class Room:
    """What there is to run on: this machine's GPUs, and the cluster (its GPUs None where it does not say)."""

    gpus: Sequence[Gpu]
    cluster: Literal["none", "silent", "answers"]
    cluster_gpus: float | None

    @property
    def num_gpus(self) -> float | None:
        """None where it is not known: beside a silent cluster only a machine without GPUs says something (0)."""
        if self.cluster == "answers" or (self.cluster == "silent" and self.gpus):
            return self.cluster_gpus
        return float(len(self.gpus))


def roles_of(
    config: Config, stages: Sequence[str], policy: Shape | None, rewarder: Shape | None, judge: int | None = None
) -> list[Role]:
    """The roles that the stages start, with their estimates; None for a model of unknown size, `judge` in parameters."""
    of_policy, of_rewarder = (None if shape is None else shape.parameters for shape in (policy, rewarder))
    needed = roles_needed(stages)  # a run makes the roles that any of its stages needs, once, and keeps them to its end
    every = [_actors(config, of_policy), _rewarder(config, of_rewarder)]
    # The learners load the frozen reference whatever learner.kl_coef is: the engines are verified against it
    has_reference = any(BY_NAME[stage].reference for stage in stages)
    every += [_learner(config, of_policy, has_reference), _preference(config, of_policy)]
    if config.adaptation.enabled:
        every += [_adapter(config, rewarder), *_judge(config, judge)]
    return [role for role in every if role.name in needed]


def gpus_wanted(roles: Sequence[Role]) -> float:
    """GPUs of all roles, which live side by side."""
    return sum(role.num * role.gpus for role in roles)


def check_placement(roles: Sequence[Role], room: Room) -> Findings:
    """Problems where the roles do not fit: GPUs (the cluster's, where there is one), GPU memory, RAM."""
    findings = Findings()
    wanted = gpus_wanted(roles)
    if wanted and room.num_gpus is not None and wanted > room.num_gpus:
        findings.problem(_missing_gpus(roles, wanted, room))
    if room.cluster == "none":
        _check_gpu_memory(roles, room.gpus, findings)
        _check_ram(roles, findings)
    return findings


def plan_lines(roles: Sequence[Role], room: Room) -> list[str]:
    """The placement as a table, then its sums against what is there."""
    rows = [("role", "count", "device", "threads", "memory each", "")]
    rows += [(r.name, str(r.num), _device(r), str(r.threads), format_gib(r.num_bytes), r.detail) for r in roles]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    there = "an unknown number" if room.num_gpus is None else f"{room.num_gpus:g}"
    where = "in the cluster" if room.cluster == "answers" else "on this machine"
    memory = psutil.virtual_memory()
    ram = f"{format_gib(memory.available)} free of {format_gib(memory.total)}"
    return [
        *table,
        f"total: GPUs {gpus_wanted(roles):g} ({there} {where}); RAM of CPU roles "
        f"{format_gib(_cpu_bytes(roles))} ({ram}); {available_cpus()} cores here",
        "memory counts weights, gradients, Adam and KV cache; activations and the processes themselves come on top",
    ]


def disk_bytes(config: Config, stages: Sequence[str], policy: int | None, rewarder: int | None) -> float | None:
    """What the run directory may hold: checkpoints (one more while one is written), the versions of the RM, its baseline, the
    exports."""
    if policy is None:
        return None
    checkpoints = (config.checkpoint.keep + 1) * CHECKPOINT_BYTES * policy if "iterate" in stages else 0
    sft = 4 * policy if "sft" in stages else 0
    rounds = len(due_steps(config.adaptation, config.iteration)) if "iterate" in stages else 0
    made = ("reward_model" in stages) * (1 + config.learner.reward_model.baseline)
    rm = 4 * (rewarder or policy) * (rounds + made + ("export" in stages))  # the export has a copy
    export = 4 * policy if "export" in stages else 0
    return checkpoints + sft + rm + export + (_kept_members(config, policy) if "preferences" in stages else 0)


def _kept_members(config: Config, parameters: int) -> float:
    """Members and their average; heads lie on one backbone, and their average on a second one."""
    settings = config.learner.preferences
    models = 2 if settings.train == "heads" else settings.members + 1
    return 4 * parameters * models if settings.keep_models else 0


def _actors(config: Config, parameters: int | None) -> Role:
    actors = config.actors
    if actors.gpus:
        weights = None if parameters is None else parameters * DTYPE_BYTES[config.policy.dtype] / actors.tensor_parallel
        share = f"weights on each GPU; vLLM fills {actors.gpu_memory_utilization:.0%} of it with KV cache"
        return Role("actors", actors.num, actors.gpus, actors.threads, weights, share)
    weights = None if parameters is None else parameters * DTYPE_BYTES[config.policy.dtype]
    total = None if weights is None else weights + actors.kv_cache_gib * GIB
    return Role("actors", actors.num, 0, actors.threads, total, f"weights and {actors.kv_cache_gib:g} GiB of KV cache")


def _rewarder(config: Config, parameters: int | None) -> Role:
    rewarder = config.rewarder
    num_bytes = None if parameters is None else parameters * DTYPE_BYTES[rewarder.dtype]
    return Role("rewarder", rewarder.num, rewarder.gpus, rewarder.threads, num_bytes, "weights")


def _adapter(config: Config, shape: Shape | None) -> Role:
    adaptation = config.adaptation
    num_bytes = None if shape is None else adapter_bytes(config, shape)
    detail = adapter_detail(adaptation)
    return Role("rm_adapter", adaptation.ranks, adaptation.gpus, adaptation.threads, num_bytes, detail)


def _judge(config: Config, parameters: int | None) -> list[Role]:
    judge = config.judge
    if judge.compares != "model":
        return []
    num_bytes = None if parameters is None else parameters * DTYPE_BYTES[config.rewarder.dtype]
    return [Role("judge", judge.num, judge.gpus, judge.threads, num_bytes, "weights; compares pairs")]


def _preference(config: Config, parameters: int | None) -> Role:
    """The hidden states of train: heads come on top, as do low-rank updates, which are small."""
    settings = config.learner.preferences
    each = 16 if settings.train == "full" else DTYPE_BYTES[config.rewarder.dtype]
    num_bytes = None if parameters is None else parameters * each
    detail = f"{'weights, gradients, Adam' if settings.train == 'full' else 'weights'}; members of {settings.train}"
    return Role("preference", settings.workers, settings.gpus, settings.threads, num_bytes, detail)


def _learner(config: Config, parameters: int | None, has_reference: bool) -> Role:
    learner = config.learner
    num_bytes = (
        None if parameters is None else learner_bytes(parameters, learner.ranks, learner.zero_stage, has_reference)
    )
    detail = f"weights, gradients, Adam{', reference' if has_reference else ''}; ZeRO-{learner.zero_stage}"
    return Role("learner", learner.ranks, learner.gpus, learner.threads, num_bytes, detail)


def _cpu_bytes(roles: Sequence[Role]) -> float | None:
    """RAM of the roles on CPU, None where the size of one of them is unknown."""
    sizes = [None if role.num_bytes is None else role.num * role.num_bytes for role in roles if not role.gpus]
    known = [size for size in sizes if size is not None]
    return sum(known) if len(known) == len(sizes) else None


def _missing_gpus(roles: Sequence[Role], wanted: float, room: Room) -> str:
    parts = ", ".join(f"{role.name} {role.num} x {role.gpus:g}" for role in roles if role.gpus)
    start = f"{wanted:g} GPU{'s' if wanted > 1 else ''} wanted ({parts})"
    if room.cluster == "answers":
        return f"{start} and the cluster has {room.num_gpus:g}; add nodes, or lower num, ranks or gpus"
    has = f"this machine shows {len(room.gpus)}" if room.gpus else "this machine has none (no NVIDIA driver or device)"
    silent = ", and no cluster answers" if room.cluster == "silent" else ""
    return (
        f"{start} and {has}{silent}; run it on a machine or a cluster (cluster.address) that has them, or start with "
        "configs/quickstart.yaml, which runs on a CPU"
    )


def _check_gpu_memory(roles: Sequence[Role], gpus: Sequence[Gpu], findings: Findings) -> None:
    sizes = [gpu.memory_gib for gpu in gpus if gpu.memory_gib is not None]
    for role in roles:
        if role.gpus and role.num_bytes is not None and sizes and role.num_bytes > min(sizes) * GIB * min(role.gpus, 1):
            findings.problem(
                f"{role.name} needs {format_gib(role.num_bytes)} on each GPU ({role.detail}) and the GPUs here have "
                f"{min(sizes):.1f} GiB; use a smaller model, more ranks with ZeRO-3, or tensor_parallel"
            )


def _check_ram(roles: Sequence[Role], findings: Findings) -> None:
    needed, memory = _cpu_bytes(roles), psutil.virtual_memory()
    if needed is not None and needed > memory.total:
        findings.problem(
            f"the CPU roles need {format_gib(needed)} of RAM and this machine has {format_gib(memory.total)}; "
            "use a smaller model, fewer actors, rewarders or ranks, or a smaller actors.kv_cache_gib"
        )
    elif needed is not None and needed > memory.available:
        findings.note(
            f"the CPU roles need {format_gib(needed)} of RAM and only {format_gib(memory.available)} is free now"
        )


def _device(role: Role) -> str:
    return f"{role.gpus:g} GPU each" if role.gpus else "CPU"


def format_gib(num_bytes: float | None) -> str:
    """A number of bytes in GiB as text."""
    if num_bytes is None:
        return "unknown"
    return f"{num_bytes / GIB:.{1 if num_bytes >= GIB or not num_bytes else 3}f} GiB"
