"""Conversations that a data set wrote as one text, with its own marks of turns: read as turns, never as words.

    "\\n\\nHuman: hi\\n\\nAssistant: hello"   ->   a user turn "hi" and an assistant turn "hello"

Called by common/data/rows.py for every row, which counts what was converted, so that it can be said. A text counts as a
conversation where it begins with a mark; the marks of SteerLM data are special enough to count anywhere. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from common.data.sources import Fields

# Columns that hold a conversation or its end
COLUMNS = ("prompt", "chosen", "rejected", "response", "completion", "input")
ROLES = {
    **{"human": "user", "user": "user", "assistant": "assistant", "model": "assistant", "system": "system"},
    **{"gpt": "assistant", "bot": "assistant"},
}


@dataclass(frozen=True)
class Markup:
    """A way to write turns: its name, what opens a turn (group 1 is the role), what closes one, and whether the opening counts
    anywhere in a text (before the first one is then a user turn) or only at its beginning."""

    name: str
    opening: re.Pattern[str]
    closing: str = ""
    anywhere: bool = False


MARKUPS = (
    Markup('"\\n\\nHuman: .. \\n\\nAssistant: .."', re.compile(r"(?:^\s*|\n\n)(Human|Assistant): ?")),
    Markup('"<extra_id_1>"', re.compile(r"\s*<extra_id_[01]>(System|User|Assistant)[ ]*(?:\n|$)"), "", True),
    Markup('"<|im_start|>"', re.compile(r"\s*<\|im_start\|>(system|user|assistant)[ ]*(?:\n|$)"), "<|im_end|>"),
    Markup(
        '"<|start_header_id|>"',
        re.compile(r"\s*(?:<\|begin_of_text\|>)?<\|start_header_id\|>(system|user|assistant)<\|end_header_id\|>\s*"),
        "<|eot_id|>",
    ),
    Markup('"<start_of_turn>"', re.compile(r"\s*(?:<bos>)?<start_of_turn>(user|model)[ ]*(?:\n|$)"), "<end_of_turn>"),
    Markup('"<|user|>"', re.compile(r"\s*(?:<s>)?<\|(system|user|assistant)\|>[ ]*(?:\n|$)"), "</s>"),
    Markup('"### Human: .."', re.compile(r"(?:^\s*|\n\s*)### ?(Human|User|Assistant|System):[ ]*")),
)
_ANY = re.compile(
    r"Human:|Assistant:|<extra_id_|<\|im_start\|>|<\|start_header|<start_of_turn>|<\|user\|>|<\|system\|>|###"
)


def with_turns(fields: Fields) -> tuple[Fields, str | None]:
    """The row with turns in place of each text that is written in a known markup, and the markup's name; the row itself and
    None where there is none. Where the prompt is a list of turns already, the other columns hold words."""
    found = {name: turns for name in COLUMNS if (turns := turns_in(_text(name, fields)))}
    if not found:
        return fields, None
    names = {markup for markup, _ in found.values()}
    return {**fields, **{name: turns for name, (_, turns) in found.items()}}, " and ".join(sorted(names))


def _text(name: str, fields: Fields) -> object:
    """What may be a conversation in one text: a column, or the only turn of a prompt."""
    prompt = fields.get("prompt")
    if not isinstance(prompt, list):
        return fields.get(name)
    (turn, *rest) = prompt or [None]
    return turn.get("content") if name == "prompt" and isinstance(turn, Mapping) and not rest else None


def turns_in(text: object) -> tuple[str, list[Mapping[str, str]]] | None:
    """(the markup's name, turns) of a text that is a conversation; None where it is a plain text. A last turn of the assistant
    without words, which prompts end with, is left out."""
    if not isinstance(text, str) or not _ANY.search(text):
        return None
    for markup in MARKUPS:
        heads = list(markup.opening.finditer(text))
        if heads and _is_conversation(markup, heads, text):
            return markup.name, _turns(markup, heads, text)
    return None


def _is_conversation(markup: Markup, heads: list[re.Match[str]], text: str) -> bool:
    """Whether the text is written in this markup; one that only opens with "Human:" and goes on may well be words."""
    if markup.anywhere:
        return True
    return heads[0].start() == 0 and (text.startswith("\n\n") or len(heads) > 1 or bool(markup.closing))


def _turns(markup: Markup, heads: list[re.Match[str]], text: str) -> list[Mapping[str, str]]:
    ends = [head.start() for head in heads[1:]] + [len(text)]
    before = text[: heads[0].start()].strip()
    turns: list[Mapping[str, str]] = [{"role": "user", "content": before}] if before else []
    for head, end in zip(heads, ends, strict=True):
        said = text[head.end() : end].strip().removesuffix(markup.closing).strip()
        turns.append({"role": ROLES[head[1].lower()], "content": said})
    if len(turns) > 1 and turns[-1] == {"role": "assistant", "content": ""}:
        turns.pop()
    if turns[0] == {"role": "system", "content": ""}:  # SteerLM data open with an empty one
        turns.pop(0)
    return turns
