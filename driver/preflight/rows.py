"""Every row of a file under every tokenizer that will render it: what is refused is named, what is left out is counted.

    rows -> template once a row, a batch of texts through the tokenizer -> a verdict a row -> problems, counts, the rows left

Called by the checks of the preflight. A verdict follows from the file, the tokenizer, the limit and this code alone, so that
it is kept under a hash of all four (driver/preflight/kept.py): the run that follows a check does not render the rows again.
Says on stderr how far it is. Waits for the disk only.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from common.chat.chat import Conversation, chat_of
from common.chat.template import RenderError
from common.data.data import Demonstration, PreferencePair, PromptRow
from common.data.fields import Answer
from common.data.rows import MAX_PROBLEMS, LeftOut, Rows
from common.data.sides import named_sides, why_unusable
from driver.preflight.findings import Findings
from driver.preflight.kept import Verdicts, keep, kept, key_of
from driver.record.progress import Progress

CHUNK = 512  # rows that are rendered at a time
Verdict = LeftOut | ValueError | None  # left out, refused, or used
Try = Callable[[Any, Sequence[Any], int], list[Verdict]]  # (tokenizer, rows, most tokens)
LONG_PROMPT = LeftOut("longer than data.max_prompt_tokens")


@dataclass(frozen=True)
class Use:
    """How rows will be rendered: by whose tokenizer, up to how many tokens, in which way."""

    whose: str
    tokenizer: Any
    max_tokens: int
    attempt: Try


def walk(key: str, rows: Rows[Any], uses: Sequence[Use], findings: Findings) -> Rows[Any]:
    """The rows that every use takes, the others counted; a line for each reason for which a template refuses rows. Uses
    without a tokenizer on this machine are passed over."""
    for use in uses:
        if use.tokenizer is not None and rows:
            rows = _walk(key, rows, use, findings)
    return rows


def _walk(key: str, rows: Rows[Any], use: Use, findings: Findings) -> Rows[Any]:
    name = key_of(rows, use.tokenizer, (key, use.attempt, use.max_tokens))
    verdicts = kept(name)
    if verdicts is None:
        verdicts = _tried(key, rows, use)
        keep(name, verdicts, findings)
    _say_refused(key, rows, use, verdicts, findings)
    return rows.keep([verdicts.left_out.get(number) for number in rows.numbers])


def _tried(key: str, rows: Rows[Any], use: Use) -> Verdicts:
    found, progress = Verdicts({}, {}), Progress(f"{key} by {use.whose}", len(rows), "rows", to=sys.stderr)
    for start in range(0, len(rows), CHUNK):
        chunk = rows[start : start + CHUNK]
        for number, verdict in zip(
            rows.numbers[start:], use.attempt(use.tokenizer, chunk, use.max_tokens), strict=False
        ):
            if isinstance(verdict, ValueError):
                found.refused[number] = str(verdict)
            elif verdict is not None:
                found.left_out[number] = str(verdict)
        progress.advance(len(chunk))
    return found


def _say_refused(key: str, rows: Rows[Any], use: Use, verdicts: Verdicts, findings: Findings) -> None:
    counts, said = Counter(verdicts.refused.values()), set[str]()
    for number, reason in sorted(verdicts.refused.items()):
        if reason in said or len(said) == MAX_PROBLEMS:
            continue
        said.add(reason)
        more = f" (and {counts[reason] - 1} more rows)" if counts[reason] > 1 else ""
        findings.problem(f"{key}: {rows.source}:{number}{more}: {use.whose}'s tokenizer: {reason}")


# ---- ways to render a row ---------------------------------------------------------------------------------------------


def as_prompt(tokenizer: Any, rows: Sequence[PromptRow], most: int) -> list[Verdict]:
    """A prompt that the policy answers."""
    found = chat_of(tokenizer).prompts([row.messages for row in rows])
    return [ids if isinstance(ids, ValueError) else LONG_PROMPT if len(ids) > most else None for ids in found]


def as_scored_prompt(tokenizer: Any, rows: Sequence[PromptRow], most: int) -> list[Verdict]:
    """A prompt whose answers a reward model will score; what they say is not known yet, so they are taken to be empty."""
    verdicts = as_answers(lambda row: ([Answer(row.messages, "hello")], []), tokenizer, rows, most)
    return [
        ValueError(f"the prompt alone is {verdict}; raise it, or lower data.max_prompt_tokens")
        if isinstance(verdict, LeftOut)
        else verdict
        for verdict in verdicts
    ]


def as_demonstration(tokenizer: Any, rows: Sequence[Demonstration], most: int) -> list[Verdict]:
    """A response that the policy imitates."""
    found = chat_of(tokenizer).demonstrations([(row.messages, row.response) for row in rows])
    return [item if isinstance(item, ValueError) else None for item in found]


def as_learned_pair(tokenizer: Any, rows: Sequence[PreferencePair], most: int) -> list[Verdict]:
    """A pair of whose responses the policy gives the log-probabilities."""
    chosen = as_demonstration(tokenizer, [Demonstration(row.messages, row.chosen) for row in rows], most)
    rejected = as_demonstration(tokenizer, [Demonstration(row.messages, row.rejected) for row in rows], most)
    return [one or other for one, other in zip(chosen, rejected, strict=True)]


def as_answers(sides_of: Callable[[Any], Any], tokenizer: Any, rows: Sequence[Any], most: int) -> list[Verdict]:
    """Answers that a reward model scores; `sides_of` gives the right and the wrong ones of a row."""
    sides = [sides_of(row) for row in rows]
    different = list(dict.fromkeys(answer for right, wrong in sides for answer in (*right, *wrong)))
    rendered = chat_of(tokenizer).conversations([(answer.messages, answer.response) for answer in different])
    found = dict(zip(different, rendered, strict=True))
    return [_verdict([found[a] for a in right], [found[a] for a in wrong], most) for right, wrong in sides]


def _verdict(
    right: Sequence[Conversation | RenderError], wrong: Sequence[Conversation | RenderError], most: int
) -> Verdict:
    if refused := [answer for answer in (*right, *wrong) if isinstance(answer, RenderError)]:
        return refused[0]
    rights, wrongs = ([answer.ids for answer in side if isinstance(answer, Conversation)] for side in (right, wrong))
    return why_unusable(rights, wrongs, most)


def as_explained(tokenizer: Any, rows: Sequence[Any], most: int) -> list[Verdict]:
    """Answers that are explained: each of them was asked for, so none is left out."""
    return [
        ValueError(f"an answer is {verdict}; raise it, or leave the row out")
        if isinstance(verdict, LeftOut)
        else verdict
        for verdict in as_answers(named_sides, tokenizer, rows, most)
    ]


def answers(sides_of: Callable[[Any], Any]) -> Try:
    """as_answers for one kind of rows."""
    return partial(as_answers, sides_of)
