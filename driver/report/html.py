"""How the report writes text, numbers, tables and sections as HTML. Pure; used by the other report files.

Every text of a run goes through `safe`, since responses are written by a model.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape

from driver.report.records import Interval

MOST_CHARACTERS = 4000  # of one text


def safe(text: object) -> str:
    """Text of a run as HTML; half surrogates, which UTF-8 cannot hold, become question marks."""
    return escape(str(text).encode("utf-8", "replace").decode("utf-8"))


def cut(text: str) -> str:
    """The beginning of a long text, as HTML that says how much is missing."""
    rest = len(text) - MOST_CHARACTERS
    more = f" \N{HORIZONTAL ELLIPSIS} ({rest:,} more characters)" if rest > 0 else ""
    return safe(text[:MOST_CHARACTERS]) + more


def number(value: float, digits: int = 3) -> str:
    """A number for people: `digits` significant ones, a true minus; a dash where it was not measured."""
    if not math.isfinite(value):
        return "\N{EN DASH}"
    size, whole = abs(value), value == round(value)
    text = f"{value:#.{digits}g}".rstrip(".")
    if whole or size >= 10**digits:
        text = f"{value:,.0f}"
    elif size < 1e-3:
        text = f"{value:.{digits - 2}e}".replace("e-0", "e-")
    return text.replace("-", "\N{MINUS SIGN}")


def fixed(value: float) -> str:
    """Three decimals, for columns."""
    return f"{value:.3f}".replace("-", "\N{MINUS SIGN}") if math.isfinite(value) else "\N{EN DASH}"


def interval(value: Interval) -> str:
    """Mean and interval as in 0.783 [0.768, 0.798]."""
    ends = f" [{fixed(value.low)}, {fixed(value.high)}]" if math.isfinite(value.low) else ""
    return fixed(value.mean) + ends


def absent(what: str, stage: str) -> str:
    return f'<p class="absent">{what} is absent; {stage} makes it.</p>'


def section(anchor: str, title: str, intro: str, body: str) -> str:
    words = f"<p class='note'>{intro}</p>" if intro else ""
    return f'<section id="{anchor}"><h2>{title}</h2>{words}{body}</section>\n'


def table(head: Sequence[str], rows: Iterable[str]) -> str:
    """head is HTML; each row a <tr>."""
    cells = "".join(f"<th>{name}</th>" for name in head)
    return f'<div class="scroll"><table><thead><tr>{cells}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def row(cells: Iterable[str], kind: str = "") -> str:
    return f'<tr class="{kind}">' + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def first_to_last(values: Sequence[float], digits: int = 3) -> str:
    """The first and last measured value, with an arrow."""
    known = [value for value in values if math.isfinite(value)]
    if not known:
        return "not measured"
    ends = known[:1] if len(known) == 1 else [known[0], known[-1]]
    return " \N{RIGHTWARDS ARROW} ".join(number(value, digits) for value in ends)


def bar(value: float, largest: float, kind: str = "") -> str:
    """A value's size as a bar; the number stands next to it. Negative values are red."""
    share = min(100.0, 100 * abs(value) / largest) if math.isfinite(value) and largest > 0 else 0.0
    below = " below" if value < 0 else ""
    return f'<span class="bar{kind}{below}"><i style="width:{share:.0f}%"></i></span>'
