"""What a preflight finds: problems, which stop a run, notes, which do not, and what becomes of the rows of each file. Filled by
the checks in driver/."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Findings:
    """Collected rather than raised, so that the user sees every problem at once."""

    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    rows: list[str] = field(default_factory=list)

    def problem(self, text: str) -> None:
        """Adds a problem, which keeps the run from starting."""
        self.problems.append(text)

    def note(self, text: str) -> None:
        """Adds a note, which is printed."""
        self.notes.append(text)


def first_line(error: BaseException) -> str:
    """An error's kind and the first line of its message: enough for a list of problems."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
