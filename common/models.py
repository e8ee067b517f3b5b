"""Models by name: a local directory or a Hub id; no torch.

Used by every role: each node downloads what it needs to its own cache, no node reads another's disk.
"""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import snapshot_download
from safetensors import safe_open

FILES = ["*.json", "*.safetensors", "*.model", "*.jinja"]


def absolute(model: str | Path) -> str:
    """A name that means the same in every process: an absolute path for a directory, a Hub id as it is."""
    return str(Path(model).resolve()) if Path(model).is_dir() else str(model)


def local_directory(model: str, revision: str | None) -> Path:
    """The directory of a model on this node, downloaded to the cache if it is a Hub id that is not there yet."""
    if Path(model).is_dir():
        return Path(model)
    return Path(snapshot_download(model, revision=revision, allow_patterns=FILES))


def tensor_names(directory: Path) -> list[str]:
    """Names of the tensors in a directory's safetensors files, sorted."""
    names: list[str] = []
    for file in directory.glob("*.safetensors"):
        with safe_open(file, "np") as tensors:
            names += tensors.keys()
    return sorted(names)
