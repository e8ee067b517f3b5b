"""The command line with what people get wrong: one clear message each, exit code 2, before any model is loaded."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


def launch(data: Path, tmp_path: Path, *arguments: str, config: str = "tests/e2e/tiny.yaml") -> tuple[int, str]:
    """Exit code and everything printed."""
    command = [sys.executable, "launch.py", "--config", config, *arguments]
    if config.endswith("tiny.yaml"):
        command.append(f"run.dir={tmp_path}")
    environment = {**os.environ, "TINY_DATA": str(data)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    return done.returncode, done.stdout + done.stderr


def test_check_of_a_good_configuration(data: Path, tmp_path: Path) -> None:
    code, said = launch(data, tmp_path, "--check")
    assert code == 0, said
    assert "actors" in said and "rewarder" in said and "learner" in said
    assert not list(tmp_path.iterdir()), "--check writes nothing"


def test_the_cluster_recipe_explains_itself_on_this_machine(data: Path, tmp_path: Path) -> None:
    code, said = launch(data, tmp_path, "--check", config="configs/iter_rlhf.yaml")
    assert code == 2
    assert "configs/quickstart.yaml" in said and "GPU" in said
    assert "redis" in said and "Ray cluster" in said


def test_every_problem_is_listed_at_once(data: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"prompt": "hi"}\n{"prompt": \n')
    code, said = launch(
        data,
        tmp_path,
        f"data.prompts={broken}",
        "data.eval_prompts=nowhere.jsonl",
        "policy.model=no/such/directory/here",
        "actors.gpus=1",
    )
    assert code == 2
    assert f"{broken}:2" in said
    for words in ("nowhere.jsonl", "no/such/directory/here", "configs/quickstart.yaml"):
        assert words in said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["learner.kl_coeff=1"], "the nearest valid key is learner.kl_coef"),
        (["iteration.max_staleness=9"], "must be between 0 and 8"),
        (["--stages", "sft,iterat"], "--stages has iterat"),
        (["--resume", "run.name=never-ran"], "never-ran"),
        (["redis.url=redis://127.0.0.1:1/0"], "127.0.0.1:1"),
    ],
)
def test_single_mistakes(data: Path, tmp_path: Path, arguments: list[str], words: str) -> None:
    code, said = launch(data, tmp_path, *arguments)
    assert code == 2
    assert words in said
    assert "Traceback" not in said
