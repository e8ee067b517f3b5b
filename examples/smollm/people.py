"""People's preference pairs about harmless answers, where they can be had: from a folder, or from the Hub.

Called by prepare.py. The conversations are dealt into three parts by a hash of their opening, so that none is in two: pairs
that train the reward model (and prompts of the loop), pairs that train the second one, which only judges, and prompts of the
evaluation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

import numpy as np
from transformers import PreTrainedTokenizerBase

from common.data.data import PreferencePair, read_pairs
from common.data.sources import DataError, fields_of, raw_rows, short
from common.data.split import opening_key, prompt_key
from common.types import Message
from examples.smollm.prompts import draw_constraints, meta

FILE, QUESTIONS = "hh_harmless.jsonl.gz", "mt_bench_questions.jsonl"
HUB = "Anthropic/hh-rlhf:test[:2312]"  # its first rows are harmless-base
PARTS = ("train", "train", "second", "evaluate")
MAX_PROMPT_TOKENS, MAX_RESPONSE_TOKENS = 96, 64


def find_pairs(folder: Path | None) -> tuple[list[PreferencePair], str] | None:
    """The pairs and where they come from, or None where there are none to be had; that is said."""
    if folder is not None:
        if not (folder / FILE).is_file():
            raise DataError(f"{folder} has no {FILE}; correct ITER_RLHF_DATA or --data, or leave it out")
        return list(read_pairs(folder / FILE)), FILE
    try:
        return list(read_pairs(HUB)), HUB
    except DataError as error:
        print(
            f"no preference pairs: {HUB} cannot be read ({str(error).splitlines()[0]}) and ITER_RLHF_DATA is not set;"
        )
        print("the run goes without an objective that people's pairs train")
        return None


def part_of(messages: Sequence[Message]) -> str:
    """Which part a conversation is in, by its opening."""
    return PARTS[int(opening_key(messages)[-8:], 16) % len(PARTS)]


def usable(pairs: Sequence[PreferencePair], tokenizer: PreTrainedTokenizerBase) -> list[PreferencePair]:
    """The pairs that are short enough, each conversation once, in an order that a hash gives."""
    by_key: dict[str, PreferencePair] = {}
    for pair in pairs:
        sides = (pair.chosen, pair.rejected)
        if _num_prompt_tokens(tokenizer, pair) <= MAX_PROMPT_TOKENS and all(
            0 < len(tokenizer.encode(side, add_special_tokens=False)) < MAX_RESPONSE_TOKENS for side in sides
        ):
            by_key.setdefault(prompt_key(pair.messages), pair)
    return [by_key[key] for key in sorted(by_key)]


def asked(rows: Sequence[PreferencePair], rng: np.random.Generator, held_out: bool) -> Iterator[dict[str, object]]:
    """The pairs' prompts with a constraint on the answer, as rows of data.prompts."""
    for pair in rows:
        yield constrained(pair.messages, "hh", rng, held_out)


def questions(path: Path, rng: np.random.Generator, most_characters: int = 200) -> Iterator[dict[str, object]]:
    """The first turns of MT-bench that are short, with a constraint on the answer. Raises DataError."""
    for number, raw in raw_rows(str(path)):
        turns = fields_of(raw).get("turns")
        if not isinstance(turns, list) or not turns or not isinstance(turns[0], str) or not turns[0].strip():
            raise DataError(f'{path}:{number}: "turns" is {short(turns)}; wanted a list of texts, the first not empty')
        if len(turns[0]) <= most_characters:
            yield constrained((Message("user", turns[0].strip()),), "mt_bench", rng, True)


def constrained(
    messages: Sequence[Message], source: str, rng: np.random.Generator, held_out: bool
) -> dict[str, object]:
    """A conversation whose last turn also asks for something that a program checks."""
    constraints = draw_constraints(rng, held_out)
    *before, last = messages
    text = " ".join([last.content.strip(), *(constraint.text() for constraint in constraints)])
    turns = [*before, Message(last.role, text)]
    return {
        "prompt": [{"role": turn.role, "content": turn.content} for turn in turns],
        "meta": meta(source, constraints),
    }


def _num_prompt_tokens(tokenizer: PreTrainedTokenizerBase, pair: PreferencePair) -> int:
    turns = [{"role": message.role, "content": message.content} for message in pair.messages]
    ids = tokenizer.apply_chat_template(turns, tokenize=True, add_generation_prompt=True, return_dict=False)
    return len(cast("list[int]", ids))
