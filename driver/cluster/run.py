"""What the stages of a run share: its configuration, directory, roles and queue, and where its models are.

Made by driver/stages.py. Roles are started once, by the first stage that needs them.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from transformers import AutoTokenizer

from actors.prompts import tokenize_prompts
from common.config.config import Config
from common.config.stages import roles_needed
from common.data.data import read_prompts
from common.data.label_sources import LabelFiles, label_files
from common.model_size import shape_of
from common.models import absolute, local_directory
from common.queue.address import QueueAddress
from common.queue.queue import Queue
from common.queue.redis_server import EmbeddedRedis
from common.types import Prompt
from driver.cluster.cluster import Cluster
from driver.record import checkpoint
from driver.record.progress import say
from driver.record.run_lock import queue_name

STRENGTHS = Path("preferences") / "pairs.jsonl"  # in the run's directory


@dataclass
class Run:
    """What the stages share. Roles are made once, at the first stage that needs them."""

    config: Config
    cluster: Cluster
    directory: Path
    password: str | None
    cleanup: ExitStack
    policy_loaded: bool = False

    @property
    def anchor(self) -> str:
        """The SFT policy: made by stage sft, or policy.model itself; an absolute directory or a Hub id."""
        if "sft" in self.config.stages:
            return str((self.directory / "sft").resolve())
        assert self.config.policy.model is not None, "the preflight asks for a policy"
        return absolute(self.config.policy.model)

    @property
    def anchor_directory(self) -> Path:
        """The anchor's files on the driver's node."""
        return local_directory(self.anchor, self.config.policy.revision)

    @property
    def reward_model(self) -> str:
        """Version 0: made (or calibrated) by stage reward_model, or rewarder.model itself."""
        if "reward_model" in self.config.stages:
            return str((self.directory / "rm" / "version_0").resolve())
        assert self.config.rewarder.model is not None, "the preflight asks for a reward model"
        return absolute(self.config.rewarder.model)

    @property
    def labelled(self) -> LabelFiles:
        """What the reward model is made from: brought, collected, or both."""
        data = self.config.data
        ratings, pairs = (file and absolute(file) for file in (data.ratings, data.preferences))
        made = self.collected("ratings").resolve().parent if "collect" in self.config.stages else None
        return label_files(ratings, pairs, made, self.strengths)

    @property
    def strengths(self) -> str | None:
        """pairs.jsonl with the strength of each pair: that of another run which is named, or what stage preferences of this run
        made; None where there is neither."""
        if self.config.data.strengths is not None:
            return absolute(self.config.data.strengths)
        return str((self.directory / STRENGTHS).resolve()) if "preferences" in self.config.stages else None

    def prompts(self, source: str, limit: int | None = None) -> list[Prompt]:
        """A prompt file through the policy's chat template."""
        assert self.config.policy.model is not None, "the preflight asks for a policy"
        tokenizer = AutoTokenizer.from_pretrained(self.config.policy.model, revision=self.config.policy.revision)
        rows, data = read_prompts(source, limit), self.config.data
        prompts, skipped = tokenize_prompts(rows, tokenizer, data.max_prompt_tokens, data.long_prompts)
        if skipped:
            say(f"  {source}: {skipped} of {len(rows)} prompts skipped, longer than {data.max_prompt_tokens} tokens")
        return prompts

    def await_engines(self) -> None:
        """Waits until every engine has started."""
        self.cluster.actors.await_started(self.config.cluster.start_timeout_s)

    def start_roles(self, todo: Sequence[str]) -> None:
        """Starts Ray and the roles that these stages need; the engines go on starting (await_engines)."""
        model, cluster = self.config.policy.model, self.cluster
        assert model is not None, "the preflight asks for a policy"
        dashboard = cluster.start()
        say("\n".join(self._where_to_watch(dashboard)))
        self._share_inputs()
        needed, adapts = roles_needed(todo), self.config.adaptation.enabled
        if "actors" in needed:
            cluster.make_actors(absolute(model))
        if "rewarder" in needed:
            cluster.make_rewarders()
        if "rm_adapter" in needed and adapts:
            cluster.make_adapter()
        if "judge" in needed and adapts and self.config.judge.compares == "model":
            cluster.make_judges()
        if "learner" in needed:
            cluster.make_learners()

    def open_queue(self) -> tuple[Queue, QueueAddress]:
        """The run's queue in a new incarnation; starts the embedded server where no redis.url is given."""
        config, url, password = self.config, self.config.redis.url, self.password
        if url is None:
            server = EmbeddedRedis(self.directory / "redis")
            server.start()
            self.cleanup.callback(server.stop)
            url, password = server.url, server.password
        name = queue_name(self.directory, config.run.name)
        queue = Queue(url, password, name, config.redis)
        self.cleanup.callback(queue.close)
        incarnation = queue.begin()
        newest = checkpoint.newest(self.directory / "checkpoints")
        if newest is None:
            queue.delete_run()
            incarnation = queue.begin()
        elif config.iteration.max_staleness == 0:
            # A step is sampled as one batch; a part of it that was scored before a kill would leave a smaller batch to sample,
            # and float arithmetic depends on the batch. With overlap nothing is bit-identical, so what is scored is used.
            queue.forget_scored_after(checkpoint.read_json(newest / "learner.json")["ledger"]["cursor"])
        queue.reset_in_flight()
        shape = shape_of(self.anchor_directory)
        return queue, QueueAddress(url, password, name, config.redis, incarnation, shape and shape.vocab)

    def collected(self, name: str) -> Path:
        """The file that stage collect writes: ratings or preferences."""
        (self.directory / "collected").mkdir(parents=True, exist_ok=True)
        return self.directory / "collected" / f"{name}.jsonl"

    def _share_inputs(self) -> None:
        """What the run was given as local files, for nodes that do not share this disk."""
        policy, rewarder, data, disks = self.config.policy, self.config.rewarder, self.config.data, self.cluster.disks
        if disks.far:
            say(f"{', '.join(disks.far)}: run.dir is not shared; files are sent through Ray")
        judge = self.config.judge.model
        for source in (policy.model, rewarder.model, judge, data.demonstrations, data.ratings, data.preferences):
            disks.share(source)

    def _where_to_watch(self, dashboard: str | None) -> list[str]:
        lines = [f"Ray dashboard: http://{dashboard}" if dashboard else "Ray dashboard: off (cluster.dashboard)"]
        lines.append(f"Ray metrics: {self.cluster.metrics_url()}")
        if self.config.report.tensorboard:
            lines.append(f"TensorBoard: tensorboard --logdir {self.directory / 'tensorboard'}")
        return [*lines, "how to watch a run: docs/watching.md"]
