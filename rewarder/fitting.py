"""Which rows a reward model can be used on: every conversation renders, fits, and the answers of a pair differ in its tokens.

Called by the stages that read pairs and ratings (learner/reward_model/data.py, learner/preferences/worker.py) and by
driver/evaluate_rm; the preflight gives the same verdicts (driver/preflight/rows.py). A conversation is rendered once, and many
at a time, since a fast tokenizer takes a batch in a fraction of the time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

from transformers import PreTrainedTokenizerBase

from common.data.fields import Answer
from common.data.rows import Rows
from common.data.sides import Sides, why_unusable
from rewarder.scoring import Rendered, check_length, render_all

CHUNK = 512  # rows that are rendered at a time
Row = TypeVar("Row")


class Fitting:
    """Renders conversations for one model, each once, and says which rows it cannot use."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_tokens: int):
        self.tokenizer, self._max_tokens = tokenizer, max_tokens
        self._known: dict[Answer, Rendered] = {}

    def rendered(self, answers: Iterable[Answer]) -> list[Rendered]:
        """Each conversation in tokens. Raises RenderError for the first that the template refuses."""
        wanted = list(answers)
        if missing := list(dict.fromkeys(answer for answer in wanted if answer not in self._known)):
            found = render_all(self.tokenizer, [(answer.messages, answer.response) for answer in missing])
            self._known.update(zip(missing, found, strict=True))
        return [self._known[answer] for answer in wanted]

    def whole(self, answers: Iterable[Answer]) -> list[Rendered]:
        """Each conversation in tokens. Raises ConversationTooLong for the first that does not fit."""
        return [check_length(found, self._max_tokens) for found in self.rendered(answers)]

    def usable(self, rows: Rows[Row], sides_of: Callable[[Row], Sides]) -> Rows[Row]:
        """The rows that can be used; the others are counted by their reason. Raises RenderError."""
        reasons: list[str | None] = []
        for start in range(0, len(rows), CHUNK):
            sides = [sides_of(row) for row in rows[start : start + CHUNK]]
            self.rendered(answer for right, wrong in sides for answer in (*right, *wrong))
            ids = [[[found.ids for found in self.rendered(side)] for side in both] for both in sides]
            reasons += [why_unusable(right, wrong, self._max_tokens) for right, wrong in ids]
        return rows.keep(reasons)
