"""What a template refuses has one typed error that names the turn."""

from __future__ import annotations

import pytest

from common.chat.chat import chat_of
from common.chat.template import RenderError
from common.types import Message
from tests.unit.templates import LLAMA3, tokenizer_of

NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + LLAMA3
)
ALTERNATING = (
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{% endfor %}" + LLAMA3
)
ONE_TURN = "{% if messages | length > 2 %}{{ raise_exception('one question at a time') }}{% endif %}" + LLAMA3


@pytest.mark.parametrize(
    ("template", "roles", "turn", "role", "message"),
    [
        (
            NO_SYSTEM,
            ("system", "user"),
            1,
            "system",
            "System role not supported; move its text into the first user turn",
        ),
        (ALTERNATING, ("user", "user"), 2, "user", "roles must alternate; let user and assistant turns alternate"),
        (ALTERNATING, ("user", "assistant", "assistant", "user"), 3, "assistant", "roles must alternate"),
        (ONE_TURN, ("user", "assistant", "user"), 3, "user", "one question at a time"),
    ],
)
def test_the_refused_turn_is_named(template: str, roles: tuple[str, ...], turn: int, role: str, message: str) -> None:
    chat = chat_of(tokenizer_of(template))
    messages = [Message(name, "w1") for name in roles]
    for render in (
        chat.prompt,
        lambda turns: chat.conversation(turns, "w2"),
        lambda turns: chat.demonstration(turns, "w2"),
    ):
        with pytest.raises(RenderError, match=f"refuses turn {turn} of .*, role {role}: {message}") as refused:
            render(messages)
        assert (refused.value.turn, refused.value.role) == (turn, role)
