"""The files of DeepSpeed's states, read without running what they hold, wherever they lie.

Used by learner/ranks/engine.py. DeepSpeed (0.19) reads its files with pickle, which runs what a file says; here only tensors,
plain values and its own records of them are made. It also looks for its files by glob, to which brackets in a path are a
pattern. Waits for the disk.
"""

from __future__ import annotations

import glob
import pickle
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch


class UnsafeState(RuntimeError):
    """A file of states that holds more than states; nothing of it was run."""


def safe_load(records: Sequence[type]) -> Callable[..., Any]:
    """A reader of a file of states, in place of the one of DeepSpeed's checkpoint engine; `records` are DeepSpeed's own classes
    that its files hold. Raises UnsafeState."""

    def load(path: str, map_location: Any = None) -> Any:
        try:
            with torch.serialization.safe_globals(list(records)):
                return torch.load(path, map_location=map_location, weights_only=True)
        except pickle.UnpicklingError as error:
            said = " ".join(str(error).split())[:300]
            raise UnsafeState(
                f"{path} holds more than tensors and plain values, and was not read: {said}. A learner did not write this; "
                "restore the checkpoint from where you trust"
            ) from error

    return load


@contextmanager
def plain_path(directory: Path) -> Iterator[Path]:
    """The directory under a name that glob takes as it is."""
    if glob.escape(str(directory)) == str(directory):
        yield directory
        return
    with tempfile.TemporaryDirectory(prefix="states-", dir="/tmp") as above:
        name = Path(above) / "states"
        name.symlink_to(directory.resolve(), target_is_directory=True)
        yield name
