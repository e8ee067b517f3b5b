"""The Ray side of a run: starts or joins Ray, makes the roles, and leaves nothing behind.

Owned by launch.py. Roles are plain classes; here they become named Ray actors, `<run>/actor-0` in the dashboard,
behind the doors of driver/cluster/doors.py.
"""

from __future__ import annotations

import logging
import os
import signal
from typing import Any, cast

import ray

from actors.worker import ActorWorker
from common.config.config import Config
from common.models import with_absolute_sources
from driver.cluster.calls import Group, Member, Place, Roles
from driver.cluster.disks import Disks
from driver.cluster.doors import Actors, Adapters, FarDisk, Judges, Learners, PreferenceWorkers, Rewarders
from driver.cluster.node_disk import NodeDisk
from driver.record.gauges import Gauges
from learner.adaptation.worker import RmAdapter
from learner.preferences.worker import PreferenceWorker
from learner.worker import LearnerWorker
from rewarder.judge import RewardJudge
from rewarder.worker import RewarderWorker

NAMESPACE = "iter-rlhf"
CALLS_OF_AN_ACTOR = 16  # that an engine's role answers at once: its methods are async


class Cluster:
    """The doors to all roles of one run; the groups are empty until they are made."""

    def __init__(self, config: Config):
        self._config = with_absolute_sources(config)
        cluster = self._config.cluster
        self._roles = Roles(config.run.name, cluster.call_timeout_s, reserves_cpus=cluster.address is not None)
        self.learners, self.actors = Learners(Group(self._roles)), Actors(Group(self._roles))
        self.rewarders, self.adapters = Rewarders(Group(self._roles)), Adapters(Group(self._roles))
        self.judges, self.preference_workers = Judges(Group(self._roles)), PreferenceWorkers(Group(self._roles))
        self.disks = Disks(self._config.run_dir, {})
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
        self.disks = Disks(self._config.run_dir, self._far_disks())
        return cast("str | None", context.dashboard_url) or None

    def metrics_url(self) -> str:
        """Where this node's Ray metrics are scraped, the run's gauges among them."""
        here = ray.get_runtime_context().get_node_id()
        node = next(node for node in ray.nodes() if node["NodeID"] == here)
        return f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"

    def make_learners(self) -> None:
        """Makes the learner ranks and joins them in one process group."""
        settings = self._config.learner
        place = Place(settings.gpus, settings.threads)
        for rank in range(settings.ranks):
            self.learners.add(self._roles.make(LearnerWorker, f"learner-{rank}", place, rank, self._config))
        self.learners.connect()

    def make_actors(self, model: str) -> None:
        """Makes the rollout actors on a model's architecture; their engines begin to start (`actors.await_started`)."""
        config, settings = self._config, self._config.actors
        place = Place(settings.gpus, settings.threads, CALLS_OF_AN_ACTOR)
        rest = model, config.policy, settings, config.data.max_prompt_tokens, config.run.seed
        for index in range(settings.num):
            name = f"actor-{index}"
            self.actors.add(self._roles.make(ActorWorker, name, place, name, *rest))
        self.actors.begin_start()

    def make_rewarders(self) -> None:
        """Makes every rewarder."""
        settings, aggregation = self._config.rewarder, self._config.aggregation
        place, device = Place(settings.gpus, settings.threads), _device(settings.gpus)
        for index in range(settings.num):
            name = f"rewarder-{index}"
            self.rewarders.add(self._roles.make(RewarderWorker, name, place, name, settings, aggregation, device))

    def make_adapter(self) -> None:
        """Makes the ranks of the reward model's adapter and joins them in a process group of their own."""
        settings = self._config.adaptation
        place = Place(settings.gpus, settings.threads)
        for rank in range(settings.ranks):
            self.adapters.add(self._roles.make(RmAdapter, f"rm-adapter-{rank}", place, rank, self._config))
        self.adapters.join()

    def make_judges(self) -> None:
        """Makes the group of judge.model and has it load, which every node can read by now."""
        judge, rewarder = self._config.judge, self._config.rewarder
        assert judge.model is not None, "only a model that judges has processes"
        place, device = Place(judge.gpus, judge.threads), _device(judge.gpus)
        for index in range(judge.num):
            self.judges.add(self._roles.make(RewardJudge, f"judge-{index}", place, rewarder, judge.threads, device))
        self.judges.load(judge.model, judge.revision)

    def make_preference_workers(self) -> None:
        """Makes the processes that train the members of stage preferences."""
        settings = self._config.learner.preferences
        place = Place(settings.gpus, settings.threads)
        for index in range(settings.workers):
            made = self._roles.make(PreferenceWorker, f"preference-{index}", place, index, self._config)
            self.preference_workers.add(made)
        self.preference_workers.connect()

    def close(self) -> None:
        """Stops every role and, if this run started it, Ray."""
        if not ray.is_initialized():
            return
        self.gauges.close()
        self.actors.stop()
        self._roles.end()
        ray.shutdown()

    def _far_disks(self) -> dict[str, NodeDisk]:
        """A role on every node of a cluster that was joined; none where the run started Ray itself, on this machine."""
        if self._config.cluster.address is None:
            return {}
        ids = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
        return {f"node {node[:8]}": FarDisk(Group(self._roles, [self._disk_on(node)])) for node in ids}

    def _disk_on(self, node: str) -> Member[NodeDisk]:
        return self._roles.make(NodeDisk, f"disk-{node[:8]}", Place(0, 0, node=node))


def _device(gpus: float) -> str:
    return "cuda" if gpus else "cpu"
