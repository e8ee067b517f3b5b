"""The doors to the roles: one class for each group of them, with one typed method for each thing that the driver asks.

Made by driver/cluster/cluster.py, used by the stages, the loop and the rounds; a test puts a subclass in place of one. Ranks of
one process group receive the same calls, and rank 0 speaks for them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Generic, TypeVar

from actors.worker import ActorWorker
from common.data.label_sources import LabelFiles
from common.judge import PairItem, Verdict
from common.queue.address import QueueAddress
from common.ratings import RateItem, Rating
from common.types import FloatArray, IntArray, Prompt, Rollout
from driver.cluster.calls import Group, Member, Pending, Stored, awaited, store
from driver.cluster.long_calls import follow
from driver.cluster.node_disk import Manifest, NodeDisk
from learner.adaptation.candidates import Proposal
from learner.adaptation.evidence import Decision
from learner.adaptation.worker import RmAdapter, Round, Versions
from learner.preferences.worker import Fitted, PreferenceWorker
from learner.worker import BatchStatus, LearnerWorker, StepResult
from rewarder.judge import RewardJudge
from rewarder.worker import ReferenceSamples, RewarderWorker, ScoredReference

W = TypeVar("W")
HEALTH_WITHIN_S = 60.0
STOP_WITHIN_S = 10.0


class Door(Generic[W]):
    """The door to one group of roles; the group is empty until its roles are made."""

    def __init__(self, group: Group[W]):
        self._group = group

    def __len__(self) -> int:
        return len(self._group)

    def add(self, member: Member[W]) -> None:
        self._group.add(member)

    def end(self) -> None:
        """Ends the roles and gives back what they hold: nothing needs them any more."""
        self._group.end()


class Learners(Door[LearnerWorker]):
    """The ranks of the learner."""

    def connect(self) -> None:
        """Joins the ranks in one process group."""
        host, port = self._group.first(LearnerWorker.address)
        self._group.all(LearnerWorker.connect, host, port)

    def sft(self, model: str, directory: str) -> dict[str, float]:
        return follow(self._group, LearnerWorker.sft, model, directory)[0]

    def reward_model(self, policy: str, files: LabelFiles, directory: str, baseline: str | None) -> dict[str, float]:
        return follow(self._group, LearnerWorker.reward_model, policy, files, directory, baseline)[0]

    def load_anchor(self, anchor: str) -> None:
        self._group.all(LearnerWorker.load_anchor, anchor)

    def load_policy(self, anchor: str, checkpoint: str | None) -> None:
        self._group.all(LearnerWorker.load_policy, anchor, checkpoint)

    def start_policy(self, anchor: str, address: QueueAddress, checkpoint: str | None) -> None:
        self._group.all(LearnerWorker.start_policy, anchor, address, checkpoint)

    def reset_policy(self, anchor: str) -> None:
        self._group.all(LearnerWorker.reset_policy, anchor)

    def collect(self, block_s: float) -> list[BatchStatus]:
        """Every rank's view of the scored stream, after a wait of up to block_s for something new."""
        return self._group.all(LearnerWorker.collect, block_s)

    def status(self) -> BatchStatus:
        """What rank 0 has seen of the scored stream up to now."""
        return self.collect(0.0)[0]

    def train(self, step: int) -> StepResult:
        return self._group.all(LearnerWorker.train, step)[0]

    def weights(self) -> tuple[list[bytes], list[str]]:
        return self._group.all(LearnerWorker.weights)[0]

    def probe(self, token_ids: IntArray, anchor: bool) -> FloatArray:
        return self._group.all(LearnerWorker.probe, token_ids, anchor)[0]

    def pair_log_ratios(self, pairs: str) -> FloatArray:
        return self._group.all(LearnerWorker.pair_log_ratios, pairs)[0]

    def save(self, directory: str) -> None:
        self._group.all(LearnerWorker.save, directory)

    def export(self, directory: str) -> None:
        self._group.all(LearnerWorker.export, directory)


class Actors(Door[ActorWorker]):
    """The rollout actors, each around one engine."""

    def __init__(self, group: Group[ActorWorker]):
        super().__init__(group)
        self._starting: Pending[None] | None = None

    def begin_start(self) -> None:
        """The engines begin to start; `await_started` waits for them."""
        self._starting = self._group.begin(awaited(ActorWorker.start))

    def await_started(self, limit_s: float) -> None:
        if self._starting is not None:
            self._group.within(limit_s).answers(self._starting)
        self._starting = None

    def load_weights(
        self, version: int, shards: Stored[list[bytes]], names: Sequence[str], only: Iterable[int] | None = None
    ) -> None:
        """Loads a version into every engine, or into those of these numbers; they then wait for `serve`."""
        group = self._group if only is None else self._group.only(only)
        group.all(awaited(ActorWorker.load_weights), version, shards.argument, names)

    def probe(self, token_ids: IntArray) -> list[FloatArray]:
        return self._group.all(awaited(ActorWorker.probe), token_ids)

    def serve(self, version: int) -> None:
        self._group.all(awaited(ActorWorker.serve), version)

    def sample(self, parts: Sequence[tuple[Sequence[Prompt], int, Sequence[int], str]]) -> list[list[list[Rollout]]]:
        """Each part is (prompts, number of responses, a seed for each prompt, salt); parts are dealt to the engines."""
        return self._group.deal(awaited(ActorWorker.sample), parts)

    def connect(self, address: QueueAddress, max_slots: int, in_flight: bool) -> None:
        self._group.all(awaited(ActorWorker.connect), address, max_slots, in_flight)

    def set_iteration(self, shard: Sequence[Prompt], first_slot: int) -> None:
        self._group.all(awaited(ActorWorker.set_iteration), store(shard).argument, first_slot)

    def store(self, shards: list[bytes]) -> Stored[list[bytes]]:
        """Keeps weights where every engine can fetch them."""
        return store(shards)

    def health(self) -> list[dict[str, float]]:
        return self._group.within(HEALTH_WITHIN_S).all(awaited(ActorWorker.health))

    def stop(self) -> None:
        self._group.settle(self._group.begin(awaited(ActorWorker.stop)), STOP_WITHIN_S)


class Rewarders(Door[RewarderWorker]):
    """The processes that score."""

    def load(self, directory: str, revision: str | None) -> int:
        """Puts a reward model in place in all of them; its rm_version."""
        return self._group.all(RewarderWorker.load, directory, revision)[0]

    def pause(self) -> None:
        self._group.all(RewarderWorker.pause)

    def resume(self) -> None:
        self._group.all(RewarderWorker.resume)

    def serve(self, address: QueueAddress) -> None:
        self._group.all(RewarderWorker.serve, address)

    def score_references(self, parts: Sequence[Sequence[ReferenceSamples]]) -> list[dict[str, ScoredReference]]:
        return self._group.deal(RewarderWorker.score_references, [(part,) for part in parts])

    def set_references(self, references: dict[str, FloatArray], version: str) -> None:
        self._group.all(RewarderWorker.set_references, references, version)

    def health(self) -> list[dict[str, float]]:
        return self._group.within(HEALTH_WITHIN_S).all(RewarderWorker.health)


class Adapters(Door[RmAdapter]):
    """The ranks of the reward model's adapter; there are none where the reward model is not adapted."""

    def join(self) -> None:
        """Joins the ranks in a process group of their own."""
        host, port = self._group.first(RmAdapter.address)
        self._group.all(RmAdapter.join, host, port)

    def set_original(self, files: LabelFiles) -> None:
        self._group.all(RmAdapter.set_original, files)

    def connect(self, address: QueueAddress) -> None:
        self._group.first(RmAdapter.connect, address)

    def propose(self, number: int, first_slot: int) -> Proposal:
        return self._group.first(RmAdapter.propose, number, first_slot)

    def fit(self, chosen: Round, versions: Versions) -> Decision:
        return follow(self._group, RmAdapter.fit, chosen, versions)[0]

    def disagreement(self, first_slot: int) -> float | None:
        return self._group.first(RmAdapter.disagreement, first_slot)


class Judges(Door[RewardJudge]):
    """The processes of judge.model, which compare pairs."""

    def load(self, model: str, revision: str | None) -> None:
        self._group.all(RewardJudge.load, model, revision)

    def compare(self, parts: Sequence[Sequence[PairItem]]) -> list[list[Verdict]]:
        """The verdicts of each part; parts are dealt to the processes in turn."""
        return self._group.deal(RewardJudge.compare, [(part,) for part in parts])

    def rate(self, parts: Sequence[Sequence[RateItem]], objectives: Sequence[str]) -> list[list[Rating]]:
        """The ratings of each part; parts are dealt to the processes in turn."""
        return self._group.deal(RewardJudge.rate, [(part, objectives) for part in parts])


class PreferenceWorkers(Door[PreferenceWorker]):
    """The processes that train the members of stage preferences; there are some while that stage works."""

    def connect(self) -> None:
        self._group.all(PreferenceWorker.connect)

    def fit(self, policy: str, source: str, directory: str) -> list[Fitted]:
        """What each worker fitted."""
        return follow(self._group, PreferenceWorker.fit, policy, source, directory)

    def write_heads(self, policy: str, heads: FloatArray, average: str, ensemble: str) -> None:
        follow(self._group.only([0]), PreferenceWorker.write_heads, policy, heads, average, ensemble)

    def write_average(self, members: Sequence[str], directory: str) -> None:
        follow(self._group.only([0]), PreferenceWorker.write_average, members, directory)


class FarDisk(NodeDisk):
    """The disk of another node, by the role that runs there."""

    def __init__(self, group: Group[NodeDisk]):
        self._group = group

    def sees(self, path: str, content: str) -> bool:
        return self._group.first(NodeDisk.sees, path, content)

    def manifest(self, path: str) -> Manifest | None:
        return self._group.first(NodeDisk.manifest, path)

    def read(self, path: str, offset: int, size: int) -> bytes:
        return self._group.first(NodeDisk.read, path, offset, size)

    def append(self, path: str, piece: bytes) -> None:
        self._group.first(NodeDisk.append, path, piece)

    def remove(self, path: str) -> None:
        self._group.first(NodeDisk.remove, path)

    def rename(self, path: str, target: str) -> None:
        self._group.first(NodeDisk.rename, path, target)
