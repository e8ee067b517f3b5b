"""The export with its real parts: a DeepSpeed learner that writes, transformers and our loader that read, the kernel that
refuses to write."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM

from common.config.config import Config
from common.types import Message
from driver.export.stage import ExportError, put_in_place
from rewarder.model import GatedRewardModel
from rewarder.scoring import score_responses
from tests.integration.models import OBJECTIVES, tiny_run

ROOT = Path(__file__).parent.parent.parent
PROMPT, RESPONSES = [Message("user", "w1 w2 w3")], ["w4 w5", "w6", "w7 w8 w9 w10"]
POLICY_FILES = {"README.md", "config.json", "generation_config.json", "model.safetensors"}
POLICY_FILES |= {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}


@dataclass(frozen=True)
class Exported:
    """A run with its export, made by the real learner; what failed under the limits on a file's size."""

    config: Config
    directory: Path
    failures: list[dict[str, Any]]

    @property
    def export(self) -> Path:
        return self.config.run_dir / "export"


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    directory = tmp_path_factory.mktemp("exported")
    config = tiny_run(directory)
    size = (directory / "policy" / "model.safetensors").stat().st_size
    limits = [50_000, size + 2_000]  # below the policy's weights; above them, below the reward model's
    assert limits[1] < (directory / "rm" / "model.safetensors").stat().st_size
    command = [sys.executable, "-m", "tests.integration.exporter", str(config.run_dir / "config.yaml")]
    command += [str(directory / "policy"), str(directory / "rm"), *map(str, limits)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    failures = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return Exported(config, directory, failures)


# ---- what is written ----------------------------------------------------------------------------------------------------


def test_the_policy_loads_in_transformers_with_equal_logprobs(exported: Exported) -> None:
    ids = torch.tensor([[1, 2, 17, 9, 33, 4, 3, 12, 60, 8]])
    found, source = (
        LlamaForCausalLM.from_pretrained(path)(ids).logits.log_softmax(-1)
        for path in (exported.export / "policy", exported.directory / "policy")
    )
    assert torch.equal(found, source)
    assert {path.name for path in (exported.export / "policy").iterdir()} == POLICY_FILES


def test_the_reward_model_loads_with_our_loader_and_scores_equally(exported: Exported) -> None:
    def scores(directory: Path) -> tuple[torch.Tensor, torch.Tensor]:
        model, tokenizer = GatedRewardModel.load(directory, "float32"), AutoTokenizer.from_pretrained(directory)
        assert model.objectives == tuple(OBJECTIVES)
        return score_responses(model, tokenizer, PROMPT, RESPONSES, 64)

    for ours, theirs in zip(scores(exported.export / "reward_model"), scores(exported.directory / "rm"), strict=True):
        assert torch.equal(ours, theirs)
    assert not (exported.export / "reward_model" / "optimizer.bin").exists()


@pytest.mark.parametrize("model", ["policy", "reward_model"])
def test_the_code_of_the_card_runs(
    model: str, exported: Exported, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(exported.config.run_dir)
    text = (exported.export / model / "README.md").read_text()
    found = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert found is not None
    exec(found[1].replace('"..."', '"w1 w2"'), {})
    printed = capsys.readouterr().out
    assert "'safe'" in printed if model == "reward_model" else re.match(r"(w\d+ ?)+$", printed.strip())


def test_no_path_of_this_machine_is_published(exported: Exported) -> None:
    for path in exported.export.rglob("*"):
        assert path.is_dir() or str(exported.directory).encode() not in path.read_bytes(), path


# ---- a full disk --------------------------------------------------------------------------------------------------------


def test_a_write_that_the_kernel_refuses_leaves_the_old_export(exported: Exported) -> None:
    first, second = exported.failures
    assert f"{exported.export}/policy could not be written: learner-0 failed in export" in first["error"]
    assert f"{exported.export}/reward_model could not be written: [Errno 27] File too large" in second["error"]
    for error in (first["error"], second["error"]):
        assert "what was there before is untouched" in error and "--resume --stages export" in error
    assert "about 0.000 GiB of disk" in second["error"]
    assert {path.name for path in exported.export.iterdir()} == {
        "policy",
        "reward_model",
    }  # so the next one is a new one
    for model in ("policy", "reward_model"):
        assert (exported.export / model / "README.md").is_file()
        assert (exported.export / model / "model.safetensors").stat().st_size > 100_000


def test_no_space_left_on_a_full_device(tmp_path: Path) -> None:
    """/dev/full answers every write with ENOSPC."""
    target = tmp_path / "export" / "policy"
    put_in_place(target, lambda aside: (aside / "weights").write_text("old"), 3)

    def write(aside: Path) -> None:
        (aside / "weights").symlink_to("/dev/full")
        shutil.copyfile(target / "weights", aside / "weights")

    with pytest.raises(ExportError, match=r"policy could not be written: \[Errno 28\] No space left on device"):
        put_in_place(target, write, 3)
    assert [path.name for path in target.parent.iterdir()] == ["policy"]
    assert (target / "weights").read_text() == "old"


def test_what_cannot_fit_is_not_begun(tmp_path: Path) -> None:
    begun: list[Path] = []
    with pytest.raises(
        ExportError, match=r"not enough room\. It takes about 1,?073,?741,?824.0 GiB .*nothing was left there"
    ):
        put_in_place(tmp_path / "policy", begun.append, 2.0**60)
    assert begun == [] and list(tmp_path.iterdir()) == []


def test_a_kill_between_the_two_renames_is_mended(tmp_path: Path) -> None:
    (tmp_path / "replaced_policy").mkdir()
    (tmp_path / "replaced_policy" / "weights").write_text("old")
    with pytest.raises(ExportError, match="what was there before is untouched"):
        put_in_place(tmp_path / "policy", lambda aside: (aside / "none" / "x").write_text(""), None)
    assert (tmp_path / "policy" / "weights").read_text() == "old"
    put_in_place(tmp_path / "policy", lambda aside: (aside / "weights").write_text("new"), None)
    assert [(path.name, (path / "weights").read_text()) for path in tmp_path.iterdir()] == [("policy", "new")]
