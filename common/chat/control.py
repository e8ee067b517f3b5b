"""Control tokens, and text that must never become one.

A tokenizer turns `<end>` into its token wherever the five characters stand, in a user's text too, and so a text could end its
own turn and open another. Here the markup of the template keeps its control tokens, and the same characters inside a turn's
text are split into plain pieces. Clean text has the ids that it always had: nothing here touches it.

While a template writes, each control token that a text spells is hidden behind a character of its own.
Used by common/chat/chat.py; waits for nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from common.chat.template import RenderError, Tokenizer
from common.types import Message

FIRST_PRIVATE = 0xF0000  # a plane of characters that stand for nothing
LAST_PRIVATE = 0xFFFFD
BRACKETED = re.compile(
    r"<[^<>\s]+>|\[[^\[\]\s]+\]"
)  # a markup word that may be in the vocabulary without being declared
NEVER = re.compile(r"(?!)")


class Written(NamedTuple):
    """A rendered text, and what each private character in it stands for."""

    text: str
    marks: tuple[tuple[str, str], ...] = ()


class Control:
    """The control tokens of one tokenizer under one template. `turn_markup` is what the template writes around turns in
    general; `all_markup` may hold what stands inside an assistant's turn too, a mark of its thoughts for one."""

    def __init__(self, tokenizer: Tokenizer, turn_markup: str, all_markup: str) -> None:
        self._tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder
        self._added = {token.content: token for token in added.values() if token.content.strip()}
        special = {content for content, token in self._added.items() if token.special}
        vocabulary = tokenizer.get_vocab()
        turns = special | self._in_markup(turn_markup, vocabulary)
        everywhere = turns | self._in_markup(all_markup, vocabulary)
        self._patterns = {
            "assistant": _any_of(turns)
        }  # a response may hold the marks of thoughts, which the policy samples
        self._pattern = _any_of(everywhere)
        self._separator = self._separators(turns | everywhere)
        self._marks = {content: chr(FIRST_PRIVATE + index) for index, content in enumerate(sorted(everywhere))}
        unknown = self._unknown_ids()
        self._turn_ids = {vocabulary[content] for content in turns if content in vocabulary} - unknown
        self._all_ids = {vocabulary[content] for content in everywhere if content in vocabulary} - unknown

    @property
    def pattern(self) -> re.Pattern[str]:
        """Finds the control tokens in a piece of markup."""
        return self._pattern

    def hide(self, messages: Sequence[Message]) -> tuple[list[Message], tuple[tuple[str, str], ...]]:
        """The messages with each spelled control token behind a private character, and what each character hides."""
        spelled = {match for message in messages for match in self._spelled(message)}
        if not spelled:
            return list(messages), ()
        if any(mark in message.content for message in messages for mark in self._marks.values()):
            raise RenderError(
                f"a text spells the control token {sorted(spelled)[0]} and has characters from U+{FIRST_PRIVATE:X} on, which "
                "stand for such tokens here; take out either"
            )
        hidden = [
            Message(m.role, self._of(m).sub(lambda found: self._marks[found.group()], m.content)) for m in messages
        ]
        return hidden, tuple((self._marks[content], content) for content in sorted(spelled))

    def encode(self, written: Written) -> list[int]:
        """Token ids of a rendered text, in which each marked character stands for plain text. Raises RenderError where the
        tokenizer has no other way to write such a text than by a control token."""
        text, hidden = written.text, dict(written.marks)
        marks = _any_of(hidden)
        if not marks.search(text):
            return self._checked(text, self._ids_of(text))
        ids: list[int] = []
        clean = ""
        for piece in self._separator.split(text):
            if marks.search(piece):
                ids += self._ids_of(clean) + self._plain(piece, hidden, marks)
                clean = ""
            else:
                clean += piece
        return ids + self._ids_of(clean)

    def encode_all(self, texts: Iterable[Written]) -> dict[Written, list[int] | RenderError]:
        """Each different text once, those without marks in one batch; the error where one cannot be encoded."""
        different = list(dict.fromkeys(texts))
        batch = [written for written in different if not written.marks]
        try:
            ids = (
                self._tokenizer([written.text for written in batch], add_special_tokens=False)["input_ids"]
                if batch
                else []
            )
        except Exception:  # one text that cannot be written fails the batch: each by itself says which
            ids, batch = [], []
        known = {written: self._checked_or_why(written.text, row) for written, row in zip(batch, ids, strict=True)}
        return {written: known[written] if written in known else self._encoded_or_why(written) for written in different}

    def _encoded_or_why(self, written: Written) -> list[int] | RenderError:
        try:
            return self.encode(written)
        except RenderError as error:
            return error

    def _checked_or_why(self, text: str, ids: list[int]) -> list[int] | RenderError:
        try:
            return self._checked(text, ids)
        except RenderError as error:
            return error

    def _spelled(self, message: Message) -> list[str]:
        return self._of(message).findall(message.content)

    def _of(self, message: Message) -> re.Pattern[str]:
        return self._patterns.get(message.role, self._pattern)

    def _in_markup(self, markup: str, vocabulary: Iterable[str]) -> set[str]:
        """Tokens of the markup that mark something though nobody declared them special."""
        known = {content for content in self._added if content in markup and not content.isalnum()}
        return known | {word for word in BRACKETED.findall(markup) if word in vocabulary}

    def _separators(self, contents: set[str]) -> re.Pattern[str]:
        """Control tokens with the white space that they take with them."""
        parts = []
        for content in sorted(contents, key=len, reverse=True):
            token = self._added.get(content)
            before, after = (token is not None and token.lstrip, token is not None and token.rstrip)
            parts.append(("\\s*" if before else "") + re.escape(content) + ("\\s*" if after else ""))
        return re.compile(f"({'|'.join(parts)})") if parts else re.compile("((?!))")

    def _plain(self, piece: str, hidden: dict[str, str], marks: re.Pattern[str]) -> list[int]:
        """Ids of a piece between two control tokens of the markup, all of it plain text."""
        whole = marks.sub(lambda mark: hidden[mark.group()], piece)
        ids = self._ids_of(whole, split_special_tokens=True)
        if not self._all_ids & set(ids):
            return ids
        # The vocabulary itself has the word: each spelling is cut behind its first character.
        cut = marks.sub(lambda mark: hidden[mark.group()][0] + mark.group() + hidden[mark.group()][1:], piece)
        parts = [part for part in marks.split(cut) if part]
        ids = [token for part in parts for token in self._ids_of(part, split_special_tokens=True)]
        if self._all_ids & set(ids):
            raise RenderError(self._no_other_way(whole))
        return ids

    def _ids_of(self, text: str, **options: bool) -> list[int]:
        if not text:
            return []
        try:
            return self._tokenizer(text, add_special_tokens=False, **options)["input_ids"]
        except Exception as error:  # a vocabulary without an unknown token, for one, raises what it likes
            raise RenderError(
                f"the tokenizer of {self._tokenizer.name_or_path} cannot write a text of this row: {error}; take out what is "
                "not in its vocabulary (spelled control tokens are split into pieces)"
            ) from error

    def _checked(self, text: str, ids: list[int]) -> list[int]:
        """The ids; RenderError where they hold more control tokens than the text spells, which are the markup's."""
        if sum(token in self._turn_ids for token in ids) > len(self._patterns["assistant"].findall(text)):
            raise RenderError(self._no_other_way(text))
        return ids

    def _no_other_way(self, text: str) -> str:
        return (
            f"the tokenizer of {self._tokenizer.name_or_path} turns plain text of this row into a control token: "
            f"{text.strip()[:80]!r}; take the spelled control token out of the row"
        )

    def _unknown_ids(self) -> set[int]:
        """What the tokenizer writes for characters that it does not know; may be a declared special token."""
        try:
            return set(self._tokenizer(chr(LAST_PRIVATE), add_special_tokens=False)["input_ids"])
        except Exception:  # there is no unknown token
            return set()


def _any_of(contents: Iterable[str]) -> re.Pattern[str]:
    """A pattern of these texts, the longest first; without any, one that matches nothing."""
    parts = [re.escape(content) for content in sorted(contents, key=len, reverse=True)]
    return re.compile("|".join(parts)) if parts else NEVER
