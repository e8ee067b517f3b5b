"""What lies in a directory of prepared data: the recipe that it was made by, and the hash of each file.

Called by the prepare files of examples/smollm and examples/real_data. The manifest is written last, so that a finished
directory is left alone and a half-written one is made again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from common.json_text import json_text

MANIFEST = "manifest.json"


def is_prepared(out: Path, recipe: Mapping[str, object]) -> bool:
    """True where the manifest has this recipe, and every file that it lists is there unchanged."""
    if not (out / MANIFEST).is_file():
        return False
    manifest = json.loads((out / MANIFEST).read_text())
    files = manifest.pop("files")
    return manifest == recipe and all((out / name).is_file() and file_hash(out / name) == files[name] for name in files)


def write_manifest(out: Path, recipe: Mapping[str, object]) -> None:
    """Writes it in one piece, over all files that are there, and says so."""
    files = {path.relative_to(out).as_posix(): file_hash(path) for path in sorted(out.rglob("*")) if path.is_file()}
    partial = out / f"{MANIFEST}.partial"
    partial.write_text(json_text({**recipe, "files": files}, indent=2) + "\n")
    partial.rename(out / MANIFEST)
    print(f"wrote {out / MANIFEST} ({len(files)} files listed)")


def code_hash(files: Iterable[Path]) -> str:
    """One hash over the contents of source files, in the order of their names."""
    return hashlib.sha256("".join(map(file_hash, sorted(files))).encode()).hexdigest()


def file_hash(path: Path) -> str:
    """SHA-256 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
