"""The sizes that the house limits: functions, files, folders, and calls to roles by a string.

`python -m tests.sizes [ROOT]` prints them; tests/unit/test_sizes.py holds the limits that ruff has no rule for.
"""

from __future__ import annotations

import ast
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROOMS = ("actors", "benchmarks", "common", "driver", "examples", "learner", "rewarder", "studies", "tests")
MOST_LINES = 300
SHOWN = 12
ROLES = ("actors/", "rewarder/", "learner/", "driver/")  # the rooms of classes that run as Ray actors
ACTORS = ("Worker", "Judge", "Adapter", "Disk", "Watched")  # how their names end, and the base class of three


@dataclass(frozen=True, slots=True, order=True)
class Function:
    """One function or method and its length with its decorators left out."""

    lines: int
    file: str
    name: str


def sources(root: Path) -> dict[str, str]:
    """The text of every Python file of the repository, by its path from the root."""
    paths = [*root.glob("*.py"), *(path for room in ROOMS for path in (root / room).rglob("*.py"))]
    return {path.relative_to(root).as_posix(): path.read_text(encoding="utf-8") for path in sorted(paths)}


def file_lines(files: dict[str, str]) -> dict[str, int]:
    """The number of lines of each file."""
    return {name: text.count("\n") for name, text in files.items()}


def functions(files: dict[str, str]) -> list[Function]:
    """Every function of the files outside tests/, the longest first."""
    found = [
        Function((node.end_lineno or node.lineno) - node.lineno + 1, name, node.name)
        for name, text in files.items()
        if not name.startswith("tests/")
        for node in ast.walk(ast.parse(text))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    ]
    return sorted(found, reverse=True)


def string_calls(files: dict[str, str]) -> Counter[str]:
    """How often each file of driver/ passes the name of a role's method as a string to another function."""
    methods = {name for file, text in files.items() if file.startswith(ROLES) for name in _methods(text)}
    counts = {
        file: sum(_names_a_method(node, methods) for node in ast.walk(ast.parse(text)))
        for file, text in files.items()
        if file.startswith("driver/")
    }
    return Counter({file: count for file, count in counts.items() if count})


def _methods(text: str) -> Iterator[str]:
    """The methods of the classes that run as Ray actors."""
    for node in ast.parse(text).body:
        if isinstance(node, ast.ClassDef) and node.name.endswith(ACTORS):
            yield from (part.name for part in node.body if isinstance(part, (ast.FunctionDef, ast.AsyncFunctionDef)))


def _names_a_method(node: ast.AST, methods: set[str]) -> bool:
    """Whether the node is a call such as cluster.call(role, "method")."""
    if not isinstance(node, ast.Call):
        return False
    words = [argument.value for argument in node.args[1:3] if isinstance(argument, ast.Constant)]
    return any(word in methods for word in words)


def folders(files: dict[str, str]) -> Counter[str]:
    """The number of files in each folder; the empty file of a package is not counted."""
    return Counter(Path(name).parent.as_posix() for name, text in files.items() if text)


def summary(root: Path) -> str:
    """The figures as text: the largest of each kind and the totals."""
    files = sources(root)
    product = {name: text for name, text in files.items() if not name.startswith("tests/")}
    lines, calls = Counter(file_lines(product)), string_calls(files)
    found = functions(files)
    parts = [f"{len(product)} files with {sum(lines.values())} lines outside tests/", "largest functions (lines):"]
    parts += [f"  {one.lines:4} {one.file} {one.name}" for one in found[:SHOWN]]
    parts += [f"median function: {found[len(found) // 2].lines} lines", "largest files (lines):"]
    parts += [f"  {count:4} {name}" for name, count in lines.most_common(SHOWN)]
    parts += ["fullest folders (files):"]
    parts += [f"  {count:4} {name}" for name, count in folders(product).most_common(SHOWN)]
    parts += [f"calls to roles by string: {sum(calls.values())} in {len(calls)} files"]
    parts += [f"  {count:4} {name}" for name, count in calls.most_common()]
    return "\n".join(parts)


if __name__ == "__main__":
    print(summary(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT))
