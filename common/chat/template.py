"""The one door to a chat template: turns become text, and whatever a template refuses becomes one typed error.

Used by common/chat alone; others come in through common/chat/chat.py. Waits for nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from common.types import Message

WHAT_TO_DO = {
    "system": "move its text into the first user turn, or remove the turn",
    "user": "let user and assistant turns alternate, the first by the user, or remove the turn",
    "assistant": "let user and assistant turns alternate, the first by the user, or remove the turn",
}


class RenderError(ValueError):
    """A conversation that a tokenizer or its chat template cannot render at the right tokens. `turn` is the number of the turn
    (from 1) that is at fault and `role` its role; both are None where no single turn is."""

    def __init__(self, problem: str, turn: int | None = None, role: str | None = None) -> None:
        super().__init__(problem)
        self.turn, self.role = turn, role


class Tokenizer(Protocol):
    """What is used here of a Hugging Face tokenizer."""

    name_or_path: str

    @property
    def chat_template(self) -> Any:
        """The template, or several by name; None or empty where there is none."""
        ...

    @property
    def added_tokens_decoder(self) -> Mapping[int, Any]:
        """Id -> added token (its content, and whether it is special or takes white space with it)."""
        ...

    def apply_chat_template(self, conversation: Any, **options: Any) -> Any:
        """The turns as the template writes them."""
        ...

    def __call__(self, text: Any, **options: Any) -> Any:
        """A text, or a list of texts, as token ids under "input_ids"."""
        ...

    def get_vocab(self) -> Mapping[str, int]:
        """Token -> id, added tokens too."""
        ...

    def __len__(self) -> int: ...


def check_template_exists(tokenizer: Tokenizer) -> None:
    """RenderError where the tokenizer has no chat template."""
    if not tokenizer.chat_template:
        raise RenderError(
            f"tokenizer {tokenizer.name_or_path} has no chat template, so turns cannot be written as the model expects them; "
            "use a chat model, or put the template of its family in chat_template.jinja in the model's directory"
        )


def text_of(tokenizer: Tokenizer, messages: Sequence[Message], opened: bool) -> str:
    """The turns as the template writes them; `opened` asks it to open the assistant's turn behind them. Raises RenderError,
    which names the turn that the template refuses."""
    try:
        return _applied(tokenizer, messages, opened)
    except Exception as error:  # a template may raise anything
        turn = _first_refused(tokenizer, messages, str(error))
        role = messages[turn - 1].role
        raise RenderError(
            f"the chat template of {tokenizer.name_or_path} refuses turn {turn} of {len(messages)}, role {role}: {_line(error)}"
            f"; {WHAT_TO_DO.get(role, 'remove the turn')}",
            turn,
            role,
        ) from error


def _applied(tokenizer: Tokenizer, messages: Sequence[Message], opened: bool) -> str:
    turns = [{"role": message.role, "content": message.content} for message in messages]
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=opened)
    assert isinstance(text, str), "a template writes text"
    return text


def _first_refused(tokenizer: Tokenizer, messages: Sequence[Message], reason: str) -> int:
    """The number of the turn with which the refusal begins: the last turn of the shortest beginning that fails so."""
    for count in range(1, len(messages)):
        try:
            _applied(tokenizer, messages[:count], opened=False)
        except Exception as error:  # a template may raise anything
            if str(error) == reason:
                return count
    return len(messages)


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
