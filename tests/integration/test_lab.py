"""One unit of a study with everything real and small: SFT, labels, reward model, two steps on the engine, a row."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from studies.rows import Row, read_rows
from studies.study import Arm, Study

ROOT = Path(__file__).resolve().parents[2]
HERE = "tests.integration.test_lab"
SMALL = (
    "learner.sft.epochs=1",
    "learner.reward_model.epochs=3",
    "learner.reward_model.gate_steps=20",
    "learner.reward_model.held_out_fraction=0.3",
    "learner.groups_per_step=2",
    "judge.collect_prompts=400",
    "iteration.num=1",
    "iteration.steps=2",
    "actors.responses_per_prompt=4",
    "aggregation.references_per_prompt=2",
    "evaluate.prompts=48",
)
SUM = ("aggregation.kind=weighted_sum", "aggregation.weights={correct: 1, safe: 1}")
STUDIES = (
    Study(
        "small",
        "Does a unit run?",
        (
            Arm("grouped", "studies.measures:policy", SMALL),
            Arm("fitted", "studies.measures:policy", (*SMALL, *SUM), ("fitted",)),
            Arm("gold", "studies.measures:policy", (*SMALL, "aggregation.kind=final_score"), ("gold",)),
        ),
        page="",
        seeds=(0,),
        rows=Path("rows"),
    ),
)


pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Row]:
    directory = tmp_path_factory.mktemp("lab")
    code = f"from studies.runner import run; from {HERE} import STUDIES; from pathlib import Path; "
    code += (
        f"failed = run(STUDIES[0].units(), 1, Path('logs'), {HERE!r}); print(failed); raise SystemExit(bool(failed))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code]
    ended = subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, timeout=2000)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return {row.arm: row for row in read_rows(directory / "rows" / "small")}


def test_every_arm_has_its_curves(rows: dict[str, Row]) -> None:
    assert set(rows) == {"grouped", "fitted", "gold"}
    for row in rows.values():
        assert row.curve("step") == [0.0, 2.0]
        assert all(math.isfinite(value) for name, value in row.end.items() if name != "onpolicy_accuracy")
        assert 0 <= row.end["gold"] <= 1 and 0 <= row.end["violations"] <= 1


def test_arms_of_a_seed_start_from_the_same_policy_and_samples_and_part(rows: dict[str, Row]) -> None:
    for name in ("gold", "proxy"):
        assert len({row.curve(name)[0] for row in rows.values()}) == 1
        assert len({row.curve(name)[-1] for row in rows.values()}) == 3


def test_the_policy_starts_at_its_reference_and_moves(rows: dict[str, Row]) -> None:
    for row in rows.values():
        assert abs(row.curve("kl")[0]) < 1e-3 < abs(row.end["kl"])
