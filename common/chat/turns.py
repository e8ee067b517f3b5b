"""Where a template opens and closes the assistant's turn, found by rendering a conversation with made-up texts.

    prompt, closed    ... user text <end>
    prompt, opened    ... user text <end> <assistant>                          `generation` stands behind the closed prompt
    conversation      ... user text <end> <assistant> response <end>           `opening` before the response, `closing` behind

Most templates open the turn where `add_generation_prompt` asks for it. Others always open it, behind a whole conversation too,
or behind each user turn, or never; some write an end of text where nothing is opened. What such a template adds behind a closed
prompt or behind a conversation is `prompt_extra` and `conversation_extra`, which are taken off again.

Used by common/chat/chat.py. Waits for nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from common.chat.template import RenderError, Tokenizer, text_of
from common.types import Message

USER, ANSWER, OTHER = "Xq1userqX", "Xq2answerqX", "Xq3otherqX"
ASKED = (Message("user", USER),)


@dataclass(frozen=True)
class Turns:
    """Pieces of markup, as in the picture above; `user_end` closes a user's turn."""

    user_end: str
    opening: str
    generation: str
    closing: str
    prompt_extra: str
    conversation_extra: str
    opens_if_asked: bool

    @property
    def header(self) -> str:
        """What opens a turn both for sampling and before a response that is there."""
        return common_start(self.opening, self.generation)


@dataclass(frozen=True)
class _Seen:
    """What the template made of the probes: the prompt without and with the turn opened, and what stands around the answer."""

    closed: str
    opened: str
    head: str
    tail: str

    @property
    def between(self) -> str:
        """From the end of the user's text to the answer."""
        return _behind_user(self.head)


def markup_of(tokenizer: Tokenizer) -> tuple[str, str]:
    """What the template writes around turns: (in an earlier turn of the assistant, everywhere), with the texts taken out."""
    asked, answered = (text_of(tokenizer, ASKED, opened) for opened in (False, True)), _answered(tokenizer, ANSWER)
    prompt, opened = asked
    try:
        earlier = text_of(tokenizer, [*ASKED, Message("assistant", ANSWER), Message("user", OTHER)], opened=False)
    except RenderError:  # a template for single answers
        earlier = prompt
    texts = (earlier, "\n".join((earlier, prompt, opened, answered)))
    turns, everywhere = (re.sub(f"{USER}|{ANSWER}|{OTHER}", " ", text) for text in texts)
    return turns, everywhere


def find_turns(tokenizer: Tokenizer, control: re.Pattern[str]) -> Turns:
    """The pieces of the tokenizer's template; `control` finds its control tokens. Raises RenderError where they cannot be
    told."""
    seen = _seen(tokenizer)
    found = _as_asked(seen, control) if seen.opened != seen.closed else _whatever_is_asked(seen, control)
    if found is None:
        raise RenderError(_unclear(tokenizer, seen))
    return found


def common_start(first: str, second: str) -> str:
    """The longest text that both begin with."""
    pairs = zip(first, second, strict=False)
    length = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))
    return first[:length]


def _answered(tokenizer: Tokenizer, answer: str) -> str:
    return text_of(tokenizer, [*ASKED, Message("assistant", answer)], opened=False)


def _seen(tokenizer: Tokenizer) -> _Seen:
    closed, opened = (text_of(tokenizer, ASKED, opened) for opened in (False, True))
    one, two = (_around(tokenizer, answer) for answer in (ANSWER, OTHER))
    if one != two or any(text.count(USER) != 1 for text in (closed, opened, one[0])):
        raise RenderError(
            f"the chat template of {tokenizer.name_or_path} writes a turn's text more than once, or writes other markup for "
            "another text, so that the place of a response cannot be told; use a template that writes each turn once"
        )
    return _Seen(closed, opened, *one)


def _around(tokenizer: Tokenizer, answer: str) -> tuple[str, str]:
    text = _answered(tokenizer, answer)
    if text.count(answer) != 1:
        raise RenderError(
            f"the chat template of {tokenizer.name_or_path} writes the response {text.count(answer)} times; wanted once, so "
            "that its tokens can be told; use the template of the model's family"
        )
    head, tail = text.split(answer)
    return head, tail


def _as_asked(seen: _Seen, control: re.Pattern[str]) -> Turns | None:
    """A template that heeds add_generation_prompt."""
    closed = seen.closed
    if not (seen.head.startswith(closed) and seen.opened.startswith(closed)):
        closed = _common_pieces((seen.closed, seen.opened, seen.head), control)
    return _turns(seen, closed, seen.opened[len(closed) :], "")


def _whatever_is_asked(seen: _Seen, control: re.Pattern[str]) -> Turns | None:
    """A template that writes the same whether or not it is asked to open the turn."""
    if seen.head.rstrip() == seen.closed.rstrip():
        if _is_plain_and_the_same(seen, control):
            return None
        extra, tail = _always_opened(seen, control)
        closed = seen.closed.removesuffix(extra)
        return _turns(seen, closed, seen.closed[len(closed) :], tail)
    if seen.head.startswith(seen.closed):  # never opened: the prompt is opened as a conversation is
        return _turns(seen, seen.closed, seen.head[len(seen.closed) :], "")
    return None


def _always_opened(seen: _Seen, control: re.Pattern[str]) -> tuple[str, str]:
    """What opens the turn at the end of each prompt and (or "") of each conversation; "" twice where a user's turn ends with
    what opens the answer, as in [/INST]."""
    between, behind = _behind_user(seen.closed), _after_end(seen.tail, control)
    if behind.strip() and seen.closed.endswith(behind):
        return behind, behind
    if seen.tail and between.startswith(seen.tail) and between[len(seen.tail) :].strip():
        return between[len(seen.tail) :], ""
    rest = _after_end(between, control)
    return (rest, "") if rest.strip() else ("", "")


def _is_plain_and_the_same(seen: _Seen, control: re.Pattern[str]) -> bool:
    """Each turn is followed by the same words without a control token: what of them opens the next turn cannot be told."""
    between = _behind_user(seen.closed)
    return bool(between.strip()) and between == seen.tail and not control.search(between)


def _behind_user(text: str) -> str:
    return text[text.rindex(USER) + len(USER) :]


def _after_end(markup: str, control: re.Pattern[str]) -> str:
    """Markup without the control token (and its white space) that ends the turn before it."""
    end = control.search(markup)
    return markup[end.end() :].lstrip() if end else ""


def _turns(seen: _Seen, closed: str, generation: str, conversation_extra: str) -> Turns | None:
    """The pieces around a closed prompt; None where the user's text is not whole in it."""
    if not closed.count(USER) or not seen.head.startswith(closed):
        return None
    return Turns(
        user_end=closed[closed.rindex(USER) + len(USER) :],
        opening=seen.head[len(closed) :],
        generation=generation,
        closing=seen.tail.removesuffix(conversation_extra),
        prompt_extra=seen.closed[len(closed) :],
        conversation_extra=conversation_extra,
        opens_if_asked=seen.opened == closed + generation,
    )


def _common_pieces(texts: tuple[str, ...], control: re.Pattern[str]) -> str:
    """The longest common beginning that cuts no control token in two, nor the text between two."""
    split = [re.split(f"({control.pattern})", text) for text in texts]
    same = ""
    for pieces in zip(*split, strict=False):
        if len(set(pieces)) > 1:
            break
        same += pieces[0]
    return same


def _unclear(tokenizer: Tokenizer, seen: _Seen) -> str:
    return (
        f"the chat template of {tokenizer.name_or_path} ends a prompt with {seen.closed[-40:]!r} but goes on before a response "
        f"with {seen.between[-40:]!r}, so that the end of the prompt cannot be told; wanted a template that leaves earlier "
        "turns as they are and opens the assistant's turn under `if add_generation_prompt`; use the one of the model's family"
    )
