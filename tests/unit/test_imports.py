"""The import contracts hold what they say: a planted import breaks the contract that names its home.

The plants go into a copy of the packages, so that the working tree is never touched.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parents[2]
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
BINARIES = Path(sys.executable).parent
PLANTS = {
    "deepspeed in the fine-tuning": ("learner/policy/sft.py", "deepspeed", "deepspeed only in learner.ranks.engine"),
    "deepspeed in the maths": ("learner/adaptation/meta_rm.py", "deepspeed", "pure maths knows no frameworks"),
    "redis in the metrics": ("common/metrics.py", "redis", "redis only in common.queue"),
    "vllm in a new file": ("actors/x.py", "vllm", "vllm only in actors.engine and actors.extension"),
    "jinja2 beside its home": ("driver/report/sections.py", "jinja2", "jinja2 only in driver.report.html"),
    "ray in a new room": ("driver/loop/x.py", "ray", "ray only in driver.cluster and driver.record.gauges"),
}
ROLES = ("actors", "learner", "rewarder")
FRAMEWORKS = ("ray", "redis", "vllm", "deepspeed", "transformers")
RANKS = ("learner.ranks.engine", "learner.ranks.perturb")


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of pyproject.toml and of the Python files of every package that the contracts name."""
    copy = tmp_path_factory.mktemp("tree")
    shutil.copy(ROOT / "pyproject.toml", copy)
    for package in SETTINGS["root_packages"]:
        for path in (ROOT / package).rglob("*.py"):
            target = copy / path.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    return copy


def lint(tree: Path) -> tuple[int, list[str]]:
    """Exit code, and the names of the contracts that are broken."""
    command = [str(BINARIES / "lint-imports"), "--no-cache"]
    environment = {**os.environ, "PYTHONPATH": str(tree), "COLUMNS": "400"}
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, timeout=60)
    return done.returncode, re.findall(r"^(.+) BROKEN", done.stdout, re.M)


def test_the_unplanted_tree_keeps_every_contract(tree: Path) -> None:
    assert lint(tree) == (0, [])


@pytest.mark.parametrize(("file", "framework", "contract"), PLANTS.values(), ids=PLANTS)
def test_a_planted_import_breaks_its_contract(tree: Path, file: str, framework: str, contract: str) -> None:
    path = tree / file
    before = path.read_text(encoding="utf-8") if path.exists() else None
    path.write_text((before or "") + f"\n\ndef planted() -> None:\n    import {framework}\n", encoding="utf-8")
    try:
        code, broken = lint(tree)
    finally:
        path.unlink() if before is None else path.write_text(before, encoding="utf-8")
    assert code == 1 and contract in broken


@pytest.mark.parametrize(
    ("file", "code"), [("learner/policy/advantages.py", 1), ("driver/x.py", 1), ("learner/ranks/engine.py", 0)]
)
def test_torch_distributed_stays_with_the_ranks(file: str, code: int) -> None:
    """import-linter sees torch alone, so ruff holds this rule."""
    command = [str(BINARIES / "ruff"), "check", "--no-cache", "--select", "TID251", "--stdin-filename", file, "-"]
    source = "import torch.distributed as dist\n\nprint(dist)\n"
    done = subprocess.run(command, cwd=ROOT, input=source, capture_output=True, text=True, timeout=60)
    assert done.returncode == code, done.stdout


def test_every_file_of_a_role_that_reaches_no_framework_is_in_the_pure_contract() -> None:
    graph = grimp.build_graph(*SETTINGS["root_packages"], include_external_packages=True, cache_dir=None)
    reached = set(RANKS).union(*(graph.find_downstream_modules(name) for name in (*FRAMEWORKS, *RANKS)))
    own = {name for name in graph.modules if name.split(".")[0] in ROLES}
    packages = {name for name in own if graph.find_children(name)}  # a package's own file is empty
    pure = own - packages - reached
    contract = next(entry for entry in SETTINGS["contracts"] if entry["name"] == "pure maths knows no frameworks")
    missing = sorted(pure - set(contract["source_modules"]))
    assert not missing, f"add {missing} to source_modules of contract {contract['name']!r} in pyproject.toml"
