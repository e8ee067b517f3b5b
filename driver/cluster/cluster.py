"""The Ray side of a run: starts or joins Ray, makes the role actors, calls them, and leaves nothing behind.

Owned by launch.py; the only importer of ray but driver/record/gauges.py. Roles are plain classes; here they become named
Ray actors, `<run>/actor-0` in the dashboard. Every call has a deadline and a name, so that an error or a silence says whose
it is.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Sequence
from typing import Any, cast

import ray
from ray.actor import ActorHandle
from ray.exceptions import ActorAlreadyExistsError, GetTimeoutError, RayActorError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.worker import ActorWorker
from common.config.config import Config
from common.models import with_absolute_sources
from driver.cluster.disks import Disks
from driver.cluster.node_disk import NodeDisk
from driver.record.gauges import Gauges
from learner.adaptation.worker import RmAdapter
from learner.preferences.worker import PreferenceWorker
from learner.worker import LearnerWorker
from rewarder.judge import RewardJudge
from rewarder.worker import RewarderWorker

NAMESPACE = "iter-rlhf"
DEAD_WITHIN_S = 10.0  # a lost node is noticed by its closed connections
Role = ActorHandle  # what other files hold of a role


class RoleError(RuntimeError):
    """A role that died, hung or failed; says which and what it was doing."""


class Cluster:
    """Handles of all roles of one run."""

    def __init__(self, config: Config):
        self._config = with_absolute_sources(config)
        self.learners: list[ActorHandle] = []
        self.actors: list[ActorHandle] = []
        self.rewarders: list[ActorHandle] = []
        self.adapters: list[ActorHandle] = []  # none where the reward model is not adapted
        self.judges: list[ActorHandle] = []  # where judge.model compares the pairs of rounds
        self.preference_workers: list[ActorHandle] = []  # while stage preferences works
        self._names: dict[ActorHandle, str] = {}
        self.gauges = Gauges(config.run.name, config.rewarder.objectives)

    def start(self) -> str | None:
        """Starts Ray on this machine, or joins cluster.address; returns the dashboard's URL if there is one."""
        cluster = self._config.cluster
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        shared: dict[str, Any] = {"namespace": NAMESPACE, "log_to_driver": False, "logging_level": logging.ERROR}
        on_sigterm = signal.getsignal(signal.SIGTERM)
        if cluster.address is None:
            context = ray.init(
                "local", include_dashboard=cluster.dashboard, **shared
            )  # never another Ray of this machine
        else:
            context = ray.init(address=cluster.address, **shared)
        signal.signal(signal.SIGTERM, on_sigterm)  # ray.init puts its own there, which aborts without cleaning up
        self.gauges.start()
        self.disks = Disks(self._config.run_dir, self._node_disks(), self.call)
        return cast("str | None", context.dashboard_url) or None

    def _node_disks(self) -> dict[str, ActorHandle]:
        """A role on every node of a cluster that was joined; none where the run started Ray itself, on this machine."""
        if self._config.cluster.address is None:
            return {}
        ids = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
        return {
            f"node {node[:8]}": self._make(
                NodeDisk, f"disk-{node[:8]}", 0, 0, (), NodeAffinitySchedulingStrategy(node, False)
            )
            for node in ids
        }

    def metrics_url(self) -> str:
        """Where this node's Ray metrics are scraped, the run's gauges among them."""
        here = ray.get_runtime_context().get_node_id()
        node = next(node for node in ray.nodes() if node["NodeID"] == here)
        return f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"

    def make_learners(self) -> None:
        """Makes the learner ranks and joins them in one process group."""
        learner = self._config.learner
        for rank in range(learner.ranks):
            arguments = (rank, self._config)
            self.learners.append(self._make(LearnerWorker, f"learner-{rank}", learner.gpus, learner.threads, arguments))
        host, port = self.call(self.learners[0], "address")
        self.call_all(self.learners, "connect", host, port)

    def make_actors(self, model: str) -> list[ray.ObjectRef]:
        """Makes the rollout actors on a model's architecture and begins starting their engines; wait on what it returns."""
        config = self._config
        for index in range(config.actors.num):
            name = f"actor-{index}"
            arguments = (name, model, config.policy, config.actors, config.data.max_prompt_tokens, config.run.seed)
            gpus = config.actors.gpus
            self.actors.append(self._make(ActorWorker, name, gpus, config.actors.threads, arguments))
        return [actor.start.remote() for actor in self.actors]

    def make_rewarders(self) -> None:
        config = self._config
        device = "cuda" if config.rewarder.gpus else "cpu"
        for index in range(config.rewarder.num):
            name = f"rewarder-{index}"
            arguments = (name, config.rewarder, config.aggregation, device)
            gpus = config.rewarder.gpus
            self.rewarders.append(self._make(RewarderWorker, name, gpus, config.rewarder.threads, arguments))

    def make_adapter(self) -> None:
        """Makes the ranks of the reward model's adapter and joins them in a process group of their own."""
        adaptation = self._config.adaptation
        for rank in range(adaptation.ranks):
            name, arguments = f"rm-adapter-{rank}", (rank, self._config)
            self.adapters.append(self._make(RmAdapter, name, adaptation.gpus, adaptation.threads, arguments))
        host, port = self.call(self.adapters[0], "address")
        self.call_all(self.adapters, "join", host, port)

    def make_judges(self) -> None:
        """Makes the group of judge.model and has it load, which every node can read by now."""
        judge, rewarder = self._config.judge, self._config.rewarder
        for index in range(judge.num):
            arguments = (rewarder, judge.threads, "cuda" if judge.gpus else "cpu")
            self.judges.append(self._make(RewardJudge, f"judge-{index}", judge.gpus, judge.threads, arguments))
        self.call_all(self.judges, "load", judge.model, judge.revision)

    def make_preference_workers(self) -> None:
        """Makes the processes that train the members of stage preferences."""
        preferences = self._config.learner.preferences
        for index in range(preferences.workers):
            name, arguments = f"preference-{index}", (index, self._config)
            made = self._make(PreferenceWorker, name, preferences.gpus, preferences.threads, arguments)
            self.preference_workers.append(made)
        self.call_all(self.preference_workers, "connect")

    def end_preference_workers(self) -> None:
        """Gives back what they hold: no later stage needs them."""
        for role in self.preference_workers:
            ray.kill(role)
            del self._names[role]
        self.preference_workers.clear()

    def call(self, role: ActorHandle, method: str, *arguments: object, timeout_s: float | None = None) -> Any:
        """Calls one role and waits for its answer."""
        return self.wait(getattr(role, method).remote(*arguments), self._names[role], method, timeout_s)

    def call_all(
        self, roles: Sequence[ActorHandle], method: str, *arguments: object, timeout_s: float | None = None
    ) -> list[Any]:
        """Calls all roles at once with the same arguments and waits for every answer."""
        return self.collect(roles, self.submit(roles, method, *arguments), method, timeout_s)

    def submit(self, roles: Sequence[ActorHandle], method: str, *arguments: object) -> list[ray.ObjectRef]:
        """Begins a call on all roles; `poll` says when they have answered, `collect` what."""
        return [getattr(role, method).remote(*arguments) for role in roles]

    def collect(
        self, roles: Sequence[ActorHandle], pending: list[ray.ObjectRef], method: str, timeout_s: float | None = None
    ) -> list[Any]:
        """The answers to what `submit` began, in its order."""
        return self._wait_all([self._names[role] for role in roles], pending, method, timeout_s)

    def scatter(self, roles: Sequence[ActorHandle], method: str, arguments: Sequence[tuple[object, ...]]) -> list[Any]:
        """Calls with one argument tuple each, dealt to the roles in turn; answers in the order of the tuples."""
        dealt = [roles[i % len(roles)] for i in range(len(arguments))]
        pending = [getattr(role, method).remote(*values) for role, values in zip(dealt, arguments, strict=True)]
        return self._wait_all([self._names[role] for role in dealt], pending, method, None)

    def put(self, value: object) -> ray.ObjectRef:
        """Stores a value once, for calls to many roles (inside a call it arrives as the value)."""
        return ray.put(value)

    def poll(self, roles: Sequence[ActorHandle], pending: list[ray.ObjectRef], method: str, timeout_s: float) -> bool:
        """Whether all answers have come within timeout_s. RoleError as soon as one is a failure, whoever else is waiting."""
        done, left = ray.wait(pending, num_returns=len(pending), timeout=timeout_s)
        for answer in done:
            self.wait(answer, self._names[roles[pending.index(answer)]], method, None)
        return not left

    def wait(self, answer: ray.ObjectRef, name: str, method: str, timeout_s: float | None) -> Any:
        """The answer, or RoleError naming the role and what it was asked."""
        limit = timeout_s or self._config.cluster.call_timeout_s
        try:
            return ray.get(answer, timeout=limit)
        except GetTimeoutError as error:
            raise RoleError(
                f"{name} did not answer {method} within {limit:.0f} s; its log is in {log_dir()}"
            ) from error
        except RayTaskError as error:
            raise RoleError(f"{name} failed in {method}: {_last_line(error)}{self._dead()}") from error
        except RayActorError as error:
            raise RoleError(
                f"{name} died during {method}; its log is in {log_dir()}: {_last_line(error)}{self._dead()}"
            ) from error
        except RayError as error:
            raise RoleError(f"{name}: Ray could not run {method}: {error}") from error

    def _wait_all(
        self, names: Sequence[str], pending: list[ray.ObjectRef], method: str, timeout_s: float | None
    ) -> list[Any]:
        """All answers in order; the first failure to come is raised, so that a rank that waits for a dead one is not blamed."""
        name_of = dict(zip(pending, names, strict=True))
        left, deadline = list(pending), time.monotonic() + (timeout_s or self._config.cluster.call_timeout_s)
        while left:
            done, left = ray.wait(left, timeout=max(0.0, deadline - time.monotonic()))
            for answer in done or left[:1]:
                self.wait(answer, name_of[answer], method, None if done else 0.01)
        return ray.get(pending)

    def _dead(self) -> str:
        """For an error: the roles that are no more. A rank whose peer died fails with words of its own."""
        pending = {getattr(role, "__ray_ready__").remote(): name for role, name in self._names.items()}  # noqa: B009
        answered, _ = ray.wait(list(pending), num_returns=len(pending), timeout=DEAD_WITHIN_S)
        dead = [pending[answer] for answer in answered if _is_dead(answer)]
        return f". Dead: {', '.join(dead)}" if dead else ""

    def close(self) -> None:
        """Stops every role and, if this run started it, Ray."""
        if not ray.is_initialized():
            return
        self.gauges.close()
        for actor in self.actors:
            ray.wait([actor.stop.remote()], timeout=10)
        for role in self._names:
            ray.kill(role)
        ray.shutdown()

    def _make(
        self, role: type, name: str, gpus: float, threads: int, arguments: tuple[object, ...], where: Any = None
    ) -> ActorHandle:
        environment = {"OMP_NUM_THREADS": str(max(threads, 1)), "TOKENIZERS_PARALLELISM": "false"}
        options = {
            "name": f"{self._config.run.name}/{name}",
            "num_gpus": gpus,
            "num_cpus": threads if self._config.cluster.address else 0,
            "max_concurrency": 16 if role is ActorWorker else 4,
            "runtime_env": {"env_vars": environment},
            "scheduling_strategy": where,
        }
        try:
            handle: Any = ray.remote(role).options(**options).remote(*arguments)
        except ActorAlreadyExistsError as error:
            raise RoleError(
                f"this cluster already has a role {options['name']}: a run named {self._config.run.name!r} is working here. "
                "Stop it or choose another run.name; the roles of a run that was just killed end within a minute."
            ) from error
        self._names[handle] = name
        return handle


def _is_dead(answer: ray.ObjectRef) -> bool:
    try:
        ray.get(answer)
    except RayError:
        return True
    return False


def log_dir() -> str:
    """Where Ray keeps the roles' logs on each node."""
    return f"{ray.get_runtime_context().get_session_name()} under Ray's temporary directory, logs/"


def _last_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[-1].rstrip(".")
