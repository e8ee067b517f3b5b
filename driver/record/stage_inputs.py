"""What a finished stage was done with, in `stages/<name>.json`: the values of its sections and the hashes of its files.

It keeps values, not a hash over them, so that a run may be older than a key. A key that one side lacks is not compared here:
the preflight compares the whole saved configuration, in which such a key has its default. Called by driver/stages.py.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from operator import attrgetter
from pathlib import Path
from typing import Any

from common.config.config import Config

# no number depends on them, and a resumed run may change them
FREE = ("actors.sync_tolerance", "checkpoint.resume")


def stage_inputs(config: Config, sections: Sequence[str], files: Sequence[str]) -> dict[str, Any]:
    """Each section by its dotted name, and the hash of each file of the data section that is there."""
    values = {name: attrgetter(name)(config) for name in sections}
    hashes = {f"data.{name}": _hash(source) for name in files if (source := attrgetter(name)(config.data))}
    plain = json.loads(json.dumps(values, default=asdict))
    return {"sections": plain, "files": {name: digest for name, digest in hashes.items() if digest}}


def changed_inputs(recorded: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """The names of the keys and files that a finished stage was done with and that are others now."""
    if "sections" not in recorded:  # an older record has hashes alone, by which no key can be told from another
        files = {name: digest for name, digest in recorded.items() if name.startswith("data.")}
        return _changed_files(files, now["files"])
    sections = (_changed(name, recorded["sections"].get(name), value) for name, value in now["sections"].items())
    return sorted(name for found in sections for name in found) + _changed_files(recorded["files"], now["files"])


def _changed_files(recorded: dict[str, str], now: dict[str, str]) -> list[str]:
    return sorted(name for name in {*recorded, *now} if recorded.get(name) != now.get(name))


def _changed(name: str, recorded: Any, now: Any) -> list[str]:
    if isinstance(recorded, dict) and isinstance(now, dict):
        both = sorted(recorded.keys() & now.keys())
        return [found for key in both for found in _changed(f"{name}.{key}", recorded[key], now[key])]
    return [name] if recorded != now and name not in FREE else []


def _hash(source: str) -> str | None:
    path = Path(source)
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
