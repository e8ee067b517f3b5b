"""Roles are called by the methods of their classes: the driver calls none by a string, outside driver/cluster/calls.py."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from actors.worker import ActorWorker
from driver.cluster.node_disk import NodeDisk
from learner.adaptation.worker import RmAdapter
from learner.preferences.worker import PreferenceWorker
from learner.worker import LearnerWorker
from rewarder.judge import RewardJudge
from rewarder.worker import RewarderWorker

ROOT = Path(__file__).parents[4]
THE_FILE = ROOT / "driver" / "cluster" / "calls.py"
WORKERS = (ActorWorker, LearnerWorker, NodeDisk, PreferenceWorker, RewarderWorker, RewardJudge, RmAdapter)
METHODS = {name for worker in WORKERS for name in dir(worker) if not name.startswith("_")}
# These take words that a method has for a name too: a part of a step, a purpose of sampling, a way to finish, a key.
WORDS_OF = {"ends", "sample_prompts", "JudgeItem", "Part", "Role", "get", "Stage"}


def calls_by_string(source: str) -> list[str]:
    """The expressions of a file that call a role by a string, or could."""
    return [ast.unparse(node) for node in ast.walk(ast.parse(source)) if _by_string(node)]


def _by_string(node: ast.AST) -> bool:
    if isinstance(node, ast.Attribute):
        return node.attr == "remote"
    if not isinstance(node, ast.Call):
        return False
    name = node.func.attr if isinstance(node.func, ast.Attribute) else ast.unparse(node.func)
    given = [*node.args, *(keyword.value for keyword in node.keywords)]
    if name in ("getattr", "methodcaller"):
        return True
    return name not in WORDS_OF and any(isinstance(each, ast.Constant) and each.value in METHODS for each in given)


def driver_files() -> Iterator[Path]:
    yield ROOT / "launch.py"
    yield from (path for path in sorted((ROOT / "driver").rglob("*.py")) if path != THE_FILE)


def test_no_call_by_string_is_left() -> None:
    found = {str(path.relative_to(ROOT)): calls_by_string(path.read_text()) for path in driver_files()}
    assert len(found) > 70 and len(METHODS) > 40, "the test looks at the whole driver and at every role"
    assert {path: calls for path, calls in found.items() if calls} == {}
    assert calls_by_string(THE_FILE.read_text()), "and it sees those of the one file that may"


@pytest.mark.parametrize(
    "planted",
    [
        'cluster.call_all(cluster.learners, "train", 1)',
        'group.all(method="load_weights")',
        "getattr(role, name)(1)",
        "role.train.remote(1)",
    ],
)
def test_a_planted_call_by_string_is_found(planted: str) -> None:
    assert calls_by_string(planted)
    assert not calls_by_string("learners.train(1)")
