"""Pairs whose truth is known, and labels of which a known share is wrong: what study `denoising` is measured on.

    pairs   all twos of responses to one prompt whose gold differs by more than TIE, the better one by gold first
    turned  the pairs whose label says the opposite, a share of them at random
    states  what the study's models read, computed once: hidden states of the SFT policy's decoder, as it is, at the prompt's
            last token and averaged over the response. Its state at the response's last token, which the project's heads
            read, holds little of what came before, since no head was trained there: on seed 0 the same model with clean
            labels orders 65 % of the pairs from it, 69 % from it and the prompt's, 74 % from these

Called by denoising.py, and for states by real_pairs.py. Responses are those that the seed's reward model was trained on (in
distribution), or a shifted policy's (artifacts.shifted_of).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from common.config.config import Config
from common.data.fields import messages_of
from common.data.split import is_held_out
from common.judge import JudgeItem, load_function
from common.types import Message
from rewarder.scoring import BATCH_TOKENS, Conversation, Rendered, batches, pad_conversations, render
from studies import artifacts
from studies.evaluation import TIE
from studies.prompts import training_prompts

CPU = torch.device("cpu")
FLIPS, APART = 31, 33  # streams of the seed
TEST_FRACTION = 0.25  # of the prompts


@dataclass(frozen=True)
class Samples:
    """The responses to one prompt, with the gold of each."""

    messages: tuple[Message, ...]
    responses: tuple[str, ...]
    gold: tuple[float, ...]


@dataclass(frozen=True)
class Pairs:
    """states [N, H] of responses; rows [P, 2] of the better and the worse one; prompts [P] says which prompt each is of."""

    states: Tensor
    rows: Tensor
    prompts: NDArray[np.int64]


@dataclass(frozen=True)
class World:
    """What a unit trains on and is tested on, all with the truth as labels; states have mean 0 and deviation 1 in training."""

    training: Pairs
    test: Pairs
    shifted: Pairs


def load(config: Config) -> World:
    """The pairs of this configuration's seed; training and test have no prompt in common."""
    anchor = artifacts.sft_of(config).directory
    training, test = split(labelled_samples(config), TEST_FRACTION)
    found = [pairs_of(anchor, samples) for samples in (training, test, shifted_samples(config))]
    mean, deviation = found[0].states.mean(0), found[0].states.std(0)
    return World(*(replace(pairs, states=(pairs.states - mean) / deviation) for pairs in found))


def labelled_samples(config: Config) -> list[Samples]:
    """The SFT policy's responses of the seed's reward model; its ratings say neither the prompts' meta nor why they ended."""
    anchor, rm = artifacts.sft_of(config).directory, artifacts.reward_model_of(config).directory
    prompts = training_prompts(config, anchor, config.judge.collect_prompts)
    texts = [json.loads(line)["response"] for line in (rm / "ratings.jsonl").read_text().splitlines()]
    size, limit = config.judge.collect_responses, config.actors.max_response_tokens
    assert len(texts) == size * len(prompts), f"{rm} has {len(texts)} responses to {len(prompts)} prompts"
    parts = [texts[at : at + size] for at in range(0, len(texts), size)]
    return [
        judged(config, p.messages, p.meta, [(text, ending(text, limit)) for text in part])
        for p, part in zip(prompts, parts, strict=True)
    ]


def shifted_samples(config: Config) -> list[Samples]:
    """The shifted policy's responses to held-out prompts."""
    lines = (artifacts.shifted_of(config).directory / artifacts.SHIFTED_FILE).read_text().splitlines()
    groups: dict[str, list[dict[str, Any]]] = {}
    for fields in map(json.loads, lines):
        groups.setdefault(fields["prompt_id"], []).append(fields)
    return [
        judged(config, messages_of(rows[0]), rows[0]["meta"], [(r["response"], r["finish_reason"]) for r in rows])
        for rows in groups.values()
    ]


def ending(response: str, max_tokens: int) -> str:
    """Why a response of the sandbox ended: its words are its tokens, and one that ended by itself has the end's besides."""
    return "length" if len(response.split()) >= max_tokens else "stop"


def judged(
    config: Config, messages: tuple[Message, ...], meta: dict[str, str], answers: Sequence[tuple[str, str]]
) -> Samples:
    """With the gold of each (response, finish_reason)."""
    assert config.judge.function is not None, "studies have a judge"
    judge = load_function(config.judge.function)
    gold = tuple(judge(JudgeItem(messages, meta, text, end))["gold"] for text, end in answers)
    return Samples(messages, tuple(text for text, _ in answers), gold)


def split(samples: Sequence[Samples], fraction: float) -> tuple[list[Samples], list[Samples]]:
    """(training, test), by a hash of the prompt."""
    sides: tuple[list[Samples], list[Samples]] = ([], [])
    for one in samples:
        sides[is_held_out(one.messages, fraction)].append(one)
    return sides


def pairs_of(anchor: Path, samples: Sequence[Samples]) -> Pairs:
    """The samples' pairs with their states."""
    rows: list[tuple[int, int]] = []
    prompts: list[int] = []
    start = 0
    for number, one in enumerate(samples):
        found = ordered(one.gold)
        rows += [(start + better, start + worse) for better, worse in found]
        prompts += [number] * len(found)
        start += len(one.gold)
    conversations = [(one.messages, response) for one in samples for response in one.responses]
    return Pairs(states_of(anchor, rendered(anchor, conversations)), torch.tensor(rows), np.array(prompts))


def ordered(gold: Sequence[float]) -> list[tuple[int, int]]:
    """Index pairs (better, worse) of one prompt's responses whose gold differs by more than TIE."""
    twos = [(i, j) for i, j in combinations(range(len(gold)), 2) if abs(gold[i] - gold[j]) > TIE]
    return [(i, j) if gold[i] > gold[j] else (j, i) for i, j in twos]


def flipped(count: int, share: float, seed: int) -> NDArray[np.bool_]:
    """Which labels are turned: round(share x count) at random; what a small share turns a larger one does too."""
    order = np.random.default_rng([seed, FLIPS]).permutation(count)
    turned = np.zeros(count, bool)
    turned[order[: round(share * count)]] = True
    return turned


def apart(rows: Tensor, seed: int) -> NDArray[np.intp]:
    """Pairs, in order, of which no two share a response: taken one after another at random."""
    used: set[int] = set()
    taken = []
    for index in np.random.default_rng([seed, APART]).permutation(len(rows)):
        pair = set(rows[index].tolist())
        if used.isdisjoint(pair):
            used |= pair
            taken.append(index)
    return np.sort(np.array(taken))


def rendered(anchor: Path, conversations: Sequence[Conversation]) -> list[Rendered]:
    """The conversations as tokens of the policy's tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(anchor)
    return [render(tokenizer, messages, response) for messages, response in conversations]


@torch.no_grad()
def states_of(anchor: Path, rendered: Sequence[Rendered]) -> Tensor:
    """[N, 2 H]: the last hidden states of the decoder at the prompt's last token, and their mean over the response's."""
    decoder = AutoModel.from_pretrained(anchor, dtype=torch.float32)
    found = torch.zeros(len(rendered), 2 * decoder.config.hidden_size)
    for indices in batches([len(one.ids) for one in rendered], BATCH_TOKENS):
        batch = pad_conversations([rendered[i] for i in indices], CPU)
        hidden = decoder(batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).last_hidden_state
        found[indices] = pooled(hidden, batch.prompt_end, batch.response_end)
    return found


def pooled(hidden: Tensor, prompt_end: Tensor, response_end: Tensor) -> Tensor:
    """hidden [B, T, H] -> [B, 2 H]: at prompt_end, and the mean over what follows up to response_end."""
    at = torch.arange(hidden.shape[1])
    response = (at > prompt_end[:, None]) & (at <= response_end[:, None])
    mean = (hidden * response[..., None]).sum(1) / response.sum(1, keepdim=True)
    return torch.cat([hidden[torch.arange(len(hidden)), prompt_end], mean], -1)
