"""Which preference pairs are used, and for what: limits in tokens, the held-out side, prompts.

Called by prepare. Held out (a fifth, by common/data/split.py) means: not in the loop's prompts; the reward-model stage draws
its own line by the same rule, on the same side.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import cast

from transformers import PreTrainedTokenizerBase

from common.data.data import PreferencePair, PromptRow
from common.data.sources import DataError, fields_of, raw_rows, short
from common.data.split import is_held_out, prompt_key
from common.types import Message

HELD_OUT = 0.2
MAX_RESPONSE_TOKENS = 96  # its end included
MAX_PROMPT_TOKENS = 224  # chat template and generation prompt included
Messages = Sequence[Message]


def held_out(messages: Messages) -> bool:
    return is_held_out(messages, HELD_OUT)


def prompt_fits(tokenizer: PreTrainedTokenizerBase, messages: Messages) -> bool:
    turns = [{"role": message.role, "content": message.content} for message in messages]
    ids = tokenizer.apply_chat_template(turns, tokenize=True, add_generation_prompt=True, return_dict=False)
    return len(cast("list[int]", ids)) <= MAX_PROMPT_TOKENS


def response_fits(tokenizer: PreTrainedTokenizerBase, response: str) -> bool:
    return len(tokenizer.encode(response, add_special_tokens=False)) < MAX_RESPONSE_TOKENS


def usable(tokenizer: PreTrainedTokenizerBase, pairs: Sequence[PreferencePair]) -> list[PreferencePair]:
    """The pairs whose prompt and both responses are within the limits. Raises DataError where a side would be empty."""
    kept = [pair for pair in pairs if _fits(tokenizer, pair)]
    sides = sum(not held_out(pair.messages) for pair in kept), sum(held_out(pair.messages) for pair in kept)
    if not all(sides):
        raise DataError(
            f"of {len(pairs)} pairs, {sides[0]} for training and {sides[1]} held out have a prompt of at most "
            f"{MAX_PROMPT_TOKENS} tokens and responses of at most {MAX_RESPONSE_TOKENS}; both sides need some: give more "
            "pairs, or shorter ones"
        )
    return kept


def prompts(tokenizer: PreTrainedTokenizerBase, pairs: Iterable[PreferencePair], of_held_out: bool) -> list[PromptRow]:
    """The distinct prompts of one side that fit."""
    distinct = {prompt_key(pair.messages): pair.messages for pair in pairs if held_out(pair.messages) == of_held_out}
    fitting = {key: messages for key, messages in distinct.items() if prompt_fits(tokenizer, messages)}
    return [PromptRow(key[:16], messages, {"source": "pairs"}) for key, messages in fitting.items()]


def questions(tokenizer: PreTrainedTokenizerBase, path: Path) -> list[PromptRow]:
    """The first turn of each MT-bench question that fits. Raises DataError with the line that is not one."""
    found: list[PromptRow] = []
    for number, raw in raw_rows(str(path)):
        turns = fields_of(raw).get("turns")
        if not isinstance(turns, list) or not turns or not isinstance(turns[0], str) or not turns[0].strip():
            raise DataError(f'{path}:{number}: "turns" is {short(turns)}; wanted a list of texts, the first not empty')
        messages = (Message("user", turns[0]),)
        if prompt_fits(tokenizer, messages):
            found.append(PromptRow(prompt_key(messages)[:16], messages, {"source": "questions"}))
    return found


def _fits(tokenizer: PreTrainedTokenizerBase, pair: PreferencePair) -> bool:
    short_enough = all(response_fits(tokenizer, response) for response in (pair.chosen, pair.rejected))
    return short_enough and prompt_fits(tokenizer, pair.messages)
