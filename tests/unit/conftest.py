"""Fixtures of several unit tests."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from common.config.file import BASE, load_config
from driver.preflight import preflight
from driver.preflight.preflight import Report
from learner.ranks.engine import init_single_rank
from tests.unit.preflights import GOOD, ITERATE, Check, make_model, make_reward_model
from tests.unit.reward_models import make_models


@pytest.fixture(scope="module")
def single_rank() -> Iterator[None]:
    """A process group of one, for code that is written for ranks."""
    torch.set_num_threads(1)
    init_single_rank()
    yield
    dist.destroy_process_group()


@pytest.fixture
def check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Check:
    """Checks base.yaml with a good model, good prompts and no GPU, changed by key=value overrides."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(preflight, "visible_gpus", list)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    make_model(tmp_path / "policy")
    make_reward_model(tmp_path / "rm")
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": f"word {n}"}) + "\n" for n in range(5)))

    def run(*overrides: str, stages: list[str] = ITERATE, resume: bool = False) -> Report:
        return preflight.check(load_config(BASE, [*GOOD, *overrides]), stages, resume)

    return run


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directories gated/ and classifier/ (tests/unit/reward_models.py), to be read only."""
    return make_models(tmp_path_factory.mktemp("models"))
