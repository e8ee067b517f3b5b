"""An explanation as text and as JSON. Pure; called by driver/explain/command.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from driver.evaluate_rm.tables import text_table
from rewarder.explain import Contributions


@dataclass(frozen=True)
class Explained:
    """One prompt, its responses by name, the objectives' names in the head's order, and the parts of each score."""

    prompt: str
    responses: dict[str, str]
    objectives: tuple[str, ...]
    parts: Contributions

    @property
    def is_pair(self) -> bool:
        """Whether there are two responses, which can be compared."""
        return len(self.responses) == 2


def format_explained(explained: Explained) -> str:
    """The table of each response, and for two the contributions to the difference."""
    lines = ["prompt: " + _one_line(explained.prompt)]
    for g, (name, response) in enumerate(explained.responses.items()):
        lines += [f"{name}: {_one_line(response)}", *text_table(_rows(explained, g))]
    if explained.is_pair:
        lines += ["difference: " + " - ".join(explained.responses), *text_table(_difference_rows(explained))]
    return "\n".join(lines)


def to_dict(explained: Explained) -> dict[str, Any]:
    """JSON-ready: lists in the order of `objectives`."""
    parts, names = explained.parts, list(explained.responses)
    responses = [
        {
            "name": name,
            "response": explained.responses[name],
            "scores": parts.scores[g].tolist(),
            "debiased": parts.debiased[g].tolist(),
            "contributions": parts.contributions[g].tolist(),
            "score": float(parts.total[g]),
        }
        for g, name in enumerate(names)
    ]
    found: dict[str, Any] = {
        "prompt": explained.prompt,
        "objectives": list(explained.objectives),
        "gate_weights": parts.gate_weights.tolist(),
        "responses": responses,
    }
    if explained.is_pair:
        difference = (parts.contributions[0] - parts.contributions[1]).tolist()
        found["difference"] = {"contributions": difference, "score": float(parts.total[0] - parts.total[1])}
    return found


def _rows(explained: Explained, g: int) -> list[list[str]]:
    parts = explained.parts
    rows = [["objective", "raw score", "debiased", "gate weight", "contribution"]]
    for k, name in enumerate(explained.objectives):
        values = (parts.scores[g, k], parts.debiased[g, k], parts.gate_weights[k], parts.contributions[g, k])
        rows.append([name, *(f"{float(value):.4f}" for value in values)])
    return [*rows, ["score", "", "", "", f"{float(parts.total[g]):.4f}"]]


def _difference_rows(explained: Explained) -> list[list[str]]:
    parts = explained.parts
    rows = [["objective", "debiased", "gate weight", "contribution"]]
    debiased, contributions = parts.debiased[0] - parts.debiased[1], parts.contributions[0] - parts.contributions[1]
    for k, name in enumerate(explained.objectives):
        values = (debiased[k], parts.gate_weights[k], contributions[k])
        rows.append(
            [name, *(f"{float(value):+.4f}" if at != 1 else f"{float(value):.4f}" for at, value in enumerate(values))]
        )
    return [*rows, ["score", "", "", f"{float(parts.total[0] - parts.total[1]):+.4f}"]]


def _one_line(text: str, most: int = 100) -> str:
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most - 3]}..."
