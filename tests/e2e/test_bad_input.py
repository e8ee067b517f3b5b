"""The command line with what people get wrong: one clear message each, exit code 2, before any model is loaded.

Two tests run the real command. The others call its main in this process, with --check, so that nothing can be started.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import launch
from tests.launched import ROOT

TINY, RECIPE = ROOT / "tests" / "e2e" / "tiny.yaml", ROOT / "configs" / "iter_rlhf.yaml"


def run(data: Path, *arguments: str) -> tuple[int, str]:
    """Exit code and everything printed by a process of its own."""
    command = [sys.executable, "launch.py", "--config", str(TINY), *arguments]
    environment = {**os.environ, "TINY_DATA": str(data)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)
    return done.returncode, done.stdout + done.stderr


class Checked:
    """Runs launch.py --check in this process."""

    def __init__(self, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
        self._patch, self._capsys = monkeypatch, capsys
        monkeypatch.setenv("TINY_DATA", str(data))
        monkeypatch.chdir(ROOT)

    def __call__(self, *arguments: str, config: Path = TINY) -> tuple[int, str]:
        """Exit code and everything printed."""
        self._patch.setattr(sys, "argv", ["launch.py", "--config", str(config), "--check", *arguments])
        with pytest.raises(SystemExit) as ended:
            launch.main()
        said = self._capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return ended.value.code, said.out + said.err


@pytest.fixture
def checked(data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Checked:
    return Checked(data, monkeypatch, capsys)


def test_check_of_a_good_configuration(data: Path, tmp_path: Path) -> None:
    code, said = run(data, "--check", f"run.dir={tmp_path}")
    assert code == 0, said
    assert "actors" in said and "rewarder" in said and "learner" in said
    assert not list(tmp_path.iterdir()), "--check writes nothing"


def test_a_mistake_ends_the_real_command_before_anything_is_written(data: Path, tmp_path: Path) -> None:
    code, said = run(data, f"run.dir={tmp_path}", "iteration.max_staleness=9")
    assert code == 2
    assert "must be between 0 and 8" in said and "Traceback" not in said
    assert not list(tmp_path.iterdir())


def test_the_cluster_recipe_explains_itself_on_this_machine(checked: Checked) -> None:
    code, said = checked(config=RECIPE)
    assert code == 2
    assert "configs/quickstart.yaml" in said and "GPU" in said
    assert "redis" in said and "Ray cluster" in said


def test_every_problem_is_listed_at_once(checked: Checked, tmp_path: Path) -> None:
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"prompt": "hi"}\n{"prompt": \n')
    code, said = checked(
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
        (["--stages", "sft,iterat"], "--stages has iterat"),
        (["--resume", "run.name=never-ran"], "never-ran"),
        (["redis.url=redis://127.0.0.1:1/0"], "127.0.0.1:1"),
    ],
)
def test_single_mistakes(checked: Checked, arguments: list[str], words: str) -> None:
    code, said = checked(*arguments)
    assert code == 2
    assert words in said
