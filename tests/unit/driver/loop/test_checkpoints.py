"""driver/loop/checkpoints.py: what a checkpoint holds, what it lets go of, and the audit of the newest one."""

from __future__ import annotations

import json
from pathlib import Path

from common.config.file import BASE, load_config
from common.queue.ledger import Ledger
from common.queue.queue import SettledLetter
from driver.cluster.cluster import Cluster
from driver.loop.checkpoints import Checkpoints
from driver.record.loop_state import LoopState, read_loop_state
from tests.unit.driver.loop.fake_roles import NotingQueue, OneLearner


class SavingLearner(OneLearner):
    """One learner that saves its ledger: `trained` slots at step 1, and a cursor of the same number."""

    trained = 0

    def save(self, directory: str) -> None:
        ledger = Ledger()
        ledger.cursor = f"{self.trained}-0"
        for slot in range(self.trained):
            ledger.train(slot, 1)
        (Path(directory) / "learner.json").write_text(json.dumps({"ledger": ledger.to_dict()}))


def checkpoints(run: Path, queue: NotingQueue, learner: SavingLearner) -> Checkpoints:
    config = load_config(BASE, ["aggregation.kind=final_score", "checkpoint.keep=2"])
    cluster = Cluster(config)
    cluster.learners = learner
    return Checkpoints(config, cluster, queue, run)


def test_the_stream_keeps_what_the_oldest_kept_checkpoint_needs(tmp_path: Path) -> None:
    queue, learner = NotingQueue(), SavingLearner()
    kept = checkpoints(tmp_path, queue, learner)
    for step in (1, 2, 3):
        learner.trained = 4 * step
        kept.save(LoopState(step=step))
    assert queue.trimmed == ["4-0", "4-0", "8-0"], "two are kept, so the third lets go of the first"
    newest = kept.newest()
    assert newest is not None and newest.name == "step_3" and read_loop_state(newest) == LoopState(step=3)


def test_a_dead_letter_is_on_the_disk_before_the_queue_forgets_it(tmp_path: Path) -> None:
    queue = NotingQueue()
    queue.letters = [SettledLetter("1-0", 3, "bad bytes", "rollouts", 9)]
    kept = checkpoints(tmp_path, queue, SavingLearner())
    kept.save(LoopState(step=1))
    queue.letters.append(SettledLetter("2-0", 5, "too long", "work", 0))
    kept.save(LoopState(step=2))
    rows = [json.loads(line) for line in (tmp_path / "dead_letters.jsonl").read_text().splitlines()]
    assert rows == [
        {"slot": 3, "stage": "rollouts", "reason": "bad bytes"},
        {"slot": 5, "stage": "work", "reason": "too long"},
    ]
    assert [letter.slot for letter in queue.forgotten] == [3, 3, 5]


def test_the_time_of_a_checkpoint_is_given_to_one_line_alone(tmp_path: Path) -> None:
    kept = checkpoints(tmp_path, NotingQueue(), SavingLearner())
    assert kept.take_saving_s() == 0.0
    kept.save(LoopState(step=1))
    assert kept.take_saving_s() > 0.0
    assert kept.take_saving_s() == 0.0


def test_the_audit_asks_the_newest_checkpoint_where_each_slot_is(tmp_path: Path) -> None:
    queue, learner = NotingQueue(), SavingLearner()
    kept = checkpoints(tmp_path, queue, learner)
    assert kept.audit(0) == ["there is no checkpoint to audit"]
    learner.trained = 3
    kept.save(LoopState(step=1))
    assert kept.audit(3) == []
    assert len(kept.audit(4)) == 1, "slot 3 was admitted and is nowhere"
    queue.in_flight = {3}
    assert kept.audit(4) == []
