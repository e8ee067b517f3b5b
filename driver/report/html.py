"""How the pages are written: the one jinja2 environment, and numbers in the words of the pages.

Templates are files beside the code that fills them. Every value is escaped, since responses are written by a model and
names by a user; only a chart passes as it is. A name that a template asks for and does not get is an error. Called by the
files that write a page; the model cards use the numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from driver.report.records import Interval

MOST_CHARACTERS = 4000  # of one text
POLICY = "default-src 'none'; style-src 'unsafe-inline'"  # a page may load and run nothing, whatever a response says


def render(template: str, **values: object) -> str:
    """The page that a template makes of the values; `template` is its path from driver/, as in explain/page.html."""
    page = TEMPLATES.get_template(template).render(values) + "\n"
    return page.encode("utf-8", "replace").decode("utf-8")  # half surrogates, which UTF-8 cannot hold, become ?


def cut(text: str) -> str:
    """The beginning of a long text; it ends by saying how much is missing."""
    rest = len(text) - MOST_CHARACTERS
    return text if rest <= 0 else f"{text[:MOST_CHARACTERS]} \N{HORIZONTAL ELLIPSIS} ({rest:,} more characters)"


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


def first_to_last(values: Sequence[float], digits: int = 3) -> str:
    """The first and last measured value, with an arrow."""
    known = [value for value in values if math.isfinite(value)]
    if not known:
        return "not measured"
    ends = known[:1] if len(known) == 1 else [known[0], known[-1]]
    return " \N{RIGHTWARDS ARROW} ".join(number(value, digits) for value in ends)


def count(value: int) -> str:
    """A count with its thousands apart."""
    return f"{value:,}"


def percent(value: float) -> str:
    """A share as per cent with one decimal."""
    return f"{value:.1%}"


def width(value: float, largest: float) -> str:
    """How much of a bar a value fills, in per cent, where `largest` fills it."""
    share = min(100.0, 100 * abs(value) / largest) if math.isfinite(value) and largest > 0 else 0.0
    return f"{share:.0f}"


def _environment() -> Environment:
    made = Environment(
        loader=FileSystemLoader(Path(__file__).parents[1]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    said = (cut, number, fixed, interval, first_to_last, count, percent, width)
    made.filters.update({function.__name__: function for function in said})
    made.tests["finite"] = math.isfinite
    made.globals.update(policy=POLICY, nan=math.nan)
    return made


TEMPLATES = _environment()
