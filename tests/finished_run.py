"""What must hold of the files of any run that has ended, whatever it was. Used by unit, integration and end-to-end tests."""

from __future__ import annotations

import json
from pathlib import Path


def problems_of(directory: Path) -> list[str]:
    """file(:line): the constant, for each JSON file or line under the directory with a number that JSON does not have."""
    found = list[str]()
    for path in sorted(path for kind in ("*.json", "*.jsonl") for path in directory.rglob(kind)):
        lines = (
            path.read_text(encoding="utf-8").splitlines()
            if path.suffix == ".jsonl"
            else [path.read_text(encoding="utf-8")]
        )
        for at, line in enumerate(lines, 1):
            where = f"{path.relative_to(directory)}" + (f":{at}" if path.suffix == ".jsonl" else "")
            json.loads(line, parse_constant=lambda constant, where=where: found.append(f"{where}: {constant}"))
    return found
