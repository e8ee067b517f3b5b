"""How much of the backbone's speed the rewarder keeps, and what is saved by doing once what a group shares.

    python -m benchmarks.scoring [--groups N] [--repeats N] [--responses MIN MAX] [--prompt N] [--prefixes N ...] [--out DIR]

A Llama of 12.7 M parameters with 19 objectives and random weights; groups of 8 responses. The peer is the bare backbone on the
same token ids without any padding: rows of the mean length, cut without regard to where a conversation ends, the cheapest way
to run so many tokens. Both run at most --batch-tokens a pass. All times of one ratio are taken in turns in this process; tokens
are real ones, pads do not count.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, LlamaModel, PreTrainedTokenizerFast

from benchmarks.measure import Row, in_turns, publish, rate, ratio
from common.types import Message
from rewarder.layout import ARMORM_OBJECTIVES, HeadSizes, RewardModelInfo
from rewarder.model import GatedRewardModel, RewardOutput
from rewarder.scoring import (
    Conversation,
    Rendered,
    batches,
    pad_conversations,
    render,
    score_responses,
    score_texts,
    states_of_group,
    states_on_prompt,
)

RESPONSES = 8  # of a group
LEAST_RATIO = 0.85
SPECIAL = ["<pad>", "<bos>", "<user>", "<assistant>", "<end>"]
VOCABULARY = 5440
TEMPLATE = "<bos>{% for m in messages %}<{{ m['role'] }}>{{ ' ' + m['content'] | trim + ' ' }}<end>{% endfor %}"

Group = tuple[Message, list[str]]


def main() -> None:
    """Measures and prints every row."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--groups", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--responses", type=int, nargs=2, default=(64, 512), metavar=("MIN", "MAX"), help="tokens")
    parser.add_argument("--prompt", type=int, default=128, help="tokens")
    parser.add_argument(
        "--prefixes",
        type=int,
        nargs="*",
        default=(16, 32, 64, 128, 256, 1024),
        help="prompts that are shared or not, tokens",
    )
    parser.add_argument("--batch-tokens", type=int, default=1024, help="of a pass, pads included")
    parser.add_argument("--out", type=Path, default=Path("data/benchmarks"))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    model, tokenizer = make_model(), make_tokenizer()
    lengths = asked.responses[0], asked.responses[1]
    groups = make_groups(asked.groups, asked.prompt, lengths)
    rows = scoring_rows(model, tokenizer, groups, asked.batch_tokens, asked.repeats)
    rows += gate_rows(model, tokenizer, groups, asked.repeats)
    for prompt in asked.prefixes:
        some = make_groups(max(1, asked.groups // 4), prompt, lengths)
        rows += prefix_rows(model, tokenizer, some, prompt, asked.batch_tokens, asked.repeats)
    settings = {name: value for name, value in vars(asked).items() if name != "out"}
    publish("scoring", settings | {"parameters": num_parameters(model.backbone)}, rows, asked.out)


# ---- what is measured -------------------------------------------------------------------------------------------------


def scoring_rows(
    model: GatedRewardModel,
    tokenizer: PreTrainedTokenizerFast,
    groups: Sequence[Group],
    batch_tokens: int,
    repeats: int,
) -> list[Row]:
    """The rewarder from texts to scores, against the bare backbone on packed tokens."""
    texts: list[Conversation] = [([prompt], text) for prompt, responses in groups for text in responses]
    rendered = [render(tokenizer, *text) for text in texts]
    packed = pack([r.ids for r in rendered], batch_tokens)
    tokens = sum(len(r.ids) for r in rendered)
    longest = max(len(r.ids) for r in rendered)
    parts = [[render(tokenizer, [prompt], text) for text in responses] for prompt, responses in groups]
    seconds = in_turns(
        {
            "packed": lambda: [bare(model, ids) for ids in packed],
            "sorted": lambda: score_texts(model, tokenizer, texts, longest, batch_tokens),
            "served": lambda: [score_responses(model, tokenizer, [p], rs, longest, batch_tokens) for p, rs in groups],
            "whole": lambda: [states_of_group(model, part, batch_tokens) for part in parts],
            "pass": lambda: [states_of_group(model, part, RESPONSES * longest) for part in parts],
            "render": lambda: [render(tokenizer, *text) for text in texts],
        },
        repeats,
    )
    lengths = [len(r.ids) for r in rendered]
    starts = range(0, len(lengths), RESPONSES)
    by_group = [
        [start + i for i in batch]
        for start in starts
        for batch in batches(lengths[start : start + RESPONSES], batch_tokens)
    ]
    one_pass = [list(range(start, start + RESPONSES)) for start in starts]
    limit = (">", LEAST_RATIO)
    return [
        rate("bare backbone, packed", sum(ids.numel() for ids in packed), seconds["packed"], "tokens/s"),
        rate("rewarder, groups as served", tokens, seconds["served"], "tokens/s"),
        rate("rewarder, a set of texts (evaluate_rm)", tokens, seconds["sorted"], "tokens/s"),
        ratio("groups as served / bare", seconds["packed"], seconds["served"], "", limit),
        ratio("set of texts / bare", seconds["packed"], seconds["sorted"], "", limit),
        ratio("hidden states of groups, prompt in each pass / bare", seconds["packed"], seconds["whole"], ""),
        ratio("hidden states of groups, each in one pass / bare", seconds["packed"], seconds["pass"], ""),
        Row("pads, set of texts", padding(rendered, list(batches(lengths, batch_tokens))), "of the positions"),
        Row("pads, groups", padding(rendered, by_group), "of the positions"),
        Row("pads, groups each in one pass", padding(rendered, one_pass), "of the positions"),
        ratio("rendering / scoring a set of texts", seconds["render"], seconds["sorted"], "of the time"),
    ]


def gate_rows(
    model: GatedRewardModel, tokenizer: PreTrainedTokenizerFast, groups: Sequence[Group], repeats: int
) -> list[Row]:
    """The gate on each response's copy of the prompt state, against once for the group."""
    prompt, responses = groups[0]
    rendered = [render(tokenizer, [prompt], text) for text in responses]
    output = forward(model, rendered)
    states, many = (output.prompt_state, output.response_state), 20

    @torch.no_grad()
    def heads(prompt_states: Tensor) -> RewardOutput:
        return model.heads(prompt_states, states[1])

    torch.testing.assert_close(heads(states[0][:1]).gate_weights[0], output.gate_weights[0], atol=1e-5, rtol=0)
    seconds = in_turns(
        {
            "each": lambda: [heads(states[0]) for _ in range(many)],
            "once": lambda: [heads(states[0][:1]) for _ in range(many)],
            "group": lambda: forward(model, rendered),
        },
        repeats,
    )
    saved = [(each - once) / many for each, once in zip(seconds["each"], seconds["once"], strict=True)]
    return [ratio("gate once per group: saved", saved, seconds["group"], "of a group's pass")]


def prefix_rows(
    model: GatedRewardModel,
    tokenizer: PreTrainedTokenizerFast,
    groups: Sequence[Group],
    prompt_tokens: int,
    batch_tokens: int,
    repeats: int,
) -> list[Row]:
    """Hidden states from whole conversations, against the prompt once and the responses on its keys and values."""
    rendered = [[render(tokenizer, [prompt], text) for text in responses] for prompt, responses in groups]
    for group in rendered:
        torch.testing.assert_close(
            states_on_prompt(model, group, batch_tokens),
            states_of_group(model, group, batch_tokens),
            atol=1e-4,
            rtol=1e-3,
        )
    seconds = in_turns(
        {
            "whole": lambda: [states_of_group(model, group, batch_tokens) for group in rendered],
            "prefix": lambda: [states_on_prompt(model, group, batch_tokens) for group in rendered],
        },
        repeats,
    )
    return [ratio(f"prompt of {prompt_tokens} tokens once per group", seconds["whole"], seconds["prefix"], "x faster")]


@torch.no_grad()
def forward(model: GatedRewardModel, rendered: Sequence[Rendered]) -> RewardOutput:
    """One forward pass over padded rows."""
    return model(*pad_conversations(rendered, model.device))


@torch.no_grad()
def bare(model: GatedRewardModel, ids: Tensor) -> Tensor:
    """The backbone's hidden states of padded rows, without the heads."""
    return model.backbone(input_ids=ids, use_cache=False).last_hidden_state


# ---- what it is measured on -------------------------------------------------------------------------------------------


def make_model() -> GatedRewardModel:
    """A gated reward model with random weights."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=384,
        intermediate_size=1024,
        num_hidden_layers=6,
        num_attention_heads=6,
        max_position_embeddings=4096,
    )
    sizes = HeadSizes(config.hidden_size, len(ARMORM_OBJECTIVES), 1024, 3, 10.0)
    return GatedRewardModel(LlamaModel(config), sizes, RewardModelInfo(ARMORM_OBJECTIVES), 1.0).eval()


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer with one token for each word."""
    words = SPECIAL + [f"w{i}" for i in range(VOCABULARY - len(SPECIAL))]
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    made = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<bos>", eos_token="<end>", pad_token="<pad>")
    made.add_special_tokens({"additional_special_tokens": SPECIAL[2:4]})  # pyright: ignore[reportArgumentType]
    made.chat_template = TEMPLATE
    return made


def make_groups(count: int, prompt_tokens: int, response_tokens: tuple[int, int]) -> list[Group]:
    """Random words: prompts of one length, responses of lengths uniform between the two, ends included."""
    generator = np.random.default_rng(0)

    def words(number: int) -> str:
        return " ".join(f"w{i}" for i in generator.integers(0, VOCABULARY - len(SPECIAL), number))

    low, high = response_tokens
    return [
        (Message("user", words(prompt_tokens)), [words(n) for n in generator.integers(low, high + 1, RESPONSES)])
        for _ in range(count)
    ]


def pack(rows: Sequence[Sequence[int]], batch_tokens: int) -> list[Tensor]:
    """All tokens in rows of the mean length without pads, in batches of about batch_tokens; the last short row is left out."""
    ids = torch.tensor([token for row in rows for token in row])
    width = len(ids) // len(rows)
    whole = ids[: len(ids) // width * width].view(-1, width)
    return list(whole.split(max(1, batch_tokens // width)))


def padding(rendered: Sequence[Rendered], cut: Sequence[Sequence[int]]) -> float:
    """Share of pads among the positions of these batches."""
    positions = sum(len(batch) * max(len(rendered[i].ids) for i in batch) for batch in cut)
    return 1 - sum(len(r.ids) for r in rendered) / positions


def num_parameters(module: torch.nn.Module) -> int:
    """The number of parameters of a module."""
    return sum(parameter.numel() for parameter in module.parameters())


if __name__ == "__main__":
    main()
