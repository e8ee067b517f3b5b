"""No file is longer than 300 lines without a stated reason, and no reason outlives its need."""

from __future__ import annotations

from tests.sizes import MOST_LINES, ROOT, file_lines, functions, sources, string_calls

LONG = {
    "common/config/config.py": "every key of a config with its unit stands in one place, one dataclass a section",
    "common/queue/codec.py": "a record's writer and reader stand next to each other, for all records of the wire",
    "common/queue/queue.py": "the queue is one class: a method for each command of its protocol, and they share its link",
    "common/queue/scripts.py": "the queue's protocol can be read in one place, a script for each of its moves",
    "tests/integration/test_queue.py": "one Redis serves all laws of the queue",
    "tests/unit/actors/test_in_flight.py": "one stand-in engine of the in-flight protocol serves all its laws",
    "tests/unit/driver/preflight/test_preflight.py": "one case for each finding of the preflight",
    "tests/unit/learner/adaptation/test_meta_rm.py": "the equations stand beside the hand-written ones",
    "tests/unit/learner/reward_model/test_data.py": "one case for each kind of row that a data file may hold",
    "tests/unit/rewarder/test_aggregate.py": "one case for each step of the reward pipeline, in its order",
    "tests/unit/rewarder/test_aggregation.py": "one case for each kind of aggregation and each refusal",
    "tests/unit/rewarder/test_reward_model.py": "one tiny model serves every law of the gated reward model",
}


def test_no_file_is_long_without_a_reason() -> None:
    files = sources(ROOT)
    long = {name for name, count in file_lines(files).items() if count > MOST_LINES}
    new, gone = sorted(long - set(LONG)), sorted(set(LONG) - long)
    assert not new, (
        f"{new} have more than {MOST_LINES} lines; split them by the idea they hide, or state a reason in LONG"
    )
    assert not gone, f"{gone} have at most {MOST_LINES} lines or are gone; take them out of LONG"


def test_a_call_by_string_and_a_long_function_are_counted() -> None:
    worker = "class TinyWorker:\n    def train(self):\n        a = 1\n        return a\n"
    calls = "cluster.call(role, 'train')\ncluster.call(role, 'other')\nrole.train()\n"
    files = {"learner/worker.py": worker, "driver/x.py": calls, "driver/y.py": "x = 1\n"}
    assert string_calls(files) == {"driver/x.py": 1}
    assert [(one.lines, one.name) for one in functions(files)] == [(3, "train")]
