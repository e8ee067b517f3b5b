"""Verdicts on the rows of a file, kept between a check and the run that follows, in the user's cache directory.

    $XDG_CACHE_HOME (else ~/.cache) /iter_rlhf/rows/<hash>.json

Called by driver/preflight/rows.py. The hash is over the content of the file, the whole tokenizer with its chat template, the
limits, this project's code that reads and renders rows, and the versions of the libraries that do so: what is found under it
cannot be out of date. Files are some kilobytes; the directory may be deleted at any time.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from common.data.rows import Rows
from common.files import write_whole
from common.json_text import json_text
from driver.preflight.findings import Findings

ROOT = Path(__file__).parent.parent.parent
CODE = ("common/chat", "common/data", "driver/preflight/rows.py")
LIBRARIES = ("transformers", "tokenizers", "jinja2", "pyarrow")


@dataclass(frozen=True)
class Verdicts:
    """Row number -> why it is left out, and row number -> why a template refuses it; every other row is used."""

    left_out: dict[int, str]
    refused: dict[int, str]


def directory() -> Path:
    """Where verdicts are kept."""
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path("~/.cache").expanduser()) / "iter_rlhf" / "rows"


def key_of(rows: Rows[Any], tokenizer: Any, settings: tuple[object, ...]) -> str | None:
    """The hash of all that verdicts follow from; None where it is not known: no local file, or a tokenizer that is Python
    code."""
    path = Path(rows.source)
    if not path.is_file() or not tokenizer.is_fast:
        return None
    numbers = hashlib.sha256(json.dumps(rows.numbers).encode()).hexdigest()
    parts = [_content(path), numbers, _tokenizer(tokenizer), repr([_named(part) for part in settings]), _code()]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def kept(key: str | None) -> Verdicts | None:
    """What is kept under a key; None where there is nothing that can be read."""
    path = directory() / f"{key}.json"
    if key is None or not path.is_file():
        return None
    try:
        found = json.loads(path.read_bytes())
        return Verdicts(*({int(number): str(why) for number, why in found[part].items()} for part in PARTS))
    except (OSError, ValueError, KeyError, AttributeError, TypeError):  # cut by a kill or by hand: it is made again
        return None


def keep(key: str | None, verdicts: Verdicts, findings: Findings) -> None:
    """Keeps verdicts; where the directory cannot be written to, a note says so."""
    if key is None:
        return
    try:
        directory().mkdir(parents=True, exist_ok=True)
        write_whole(directory() / f"{key}.json", json_text(asdict(verdicts)))
    except OSError as error:
        findings.note(f"what was found of the rows cannot be kept for the run ({error}); it will look again")


PARTS = ("left_out", "refused")


def _content(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _tokenizer(tokenizer: Any) -> str:
    """All of a fast tokenizer, and the name by which messages call it."""
    whole = [tokenizer.backend_tokenizer.to_str(), tokenizer.chat_template, tokenizer.name_or_path]
    return hashlib.sha256(repr([*whole, tokenizer.special_tokens_map]).encode()).hexdigest()


def _named(part: object) -> object:
    """A setting as it is in every process: a function by its name, with what is bound to it."""
    if isinstance(part, functools.partial):
        return [_named(part.func), *map(_named, part.args)]
    return part.__qualname__ if callable(part) else part  # pyright: ignore[reportAttributeAccessIssue]


@functools.cache
def _code() -> str:
    found = hashlib.sha256(" ".join(version(name) for name in LIBRARIES).encode())
    for place in CODE:
        for file in sorted((ROOT / place).glob("*.py")) if (ROOT / place).is_dir() else [ROOT / place]:
            found.update(file.read_bytes())
    return found.hexdigest()
