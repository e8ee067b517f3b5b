"""Text to scores: rendering with known positions, right-padded batches sorted by length, one gate per prompt; a long
prompt passes through the backbone once for all its responses.

Owns how a conversation becomes tokens for the reward model; the rewarder's worker scores groups with `score_responses`,
the learner's reward-model stages and evaluations use `render`, `batches` and `pad_conversations`, or `score_texts`. Rendering
is by the reward model's own chat template (common/chat), token level, so it has exactly the BOS that the template has.

The gate reads the last token of the prompt's rendering (no generation prompt), the heads the last token of the whole;
both are counted, never searched for, and control tokens spelled out in a text are split into plain pieces: neither a user
nor a policy can forge a turn.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedTokenizerBase

from common.chat.chat import chat_of
from common.chat.template import RenderError
from common.data.sources import short
from common.types import Message
from rewarder.model import GatedRewardModel, RewardOutput

BATCH_TOKENS = 4096
SHARED_PROMPT_TOKENS = 64  # a longer prompt is cheaper once for a group than once a response (docs/benchmarks.md)

Conversation = tuple[Sequence[Message], str]
OVERFLOW = "the backbone's passes overflow: use rewarder.dtype float32 or bfloat16, and check its weights"


class ConversationTooLong(ValueError):
    """A prompt and response longer than rewarder.max_tokens; a cut one would be scored at the wrong token."""


class Rendered(NamedTuple):
    """Token ids [T] of prompt and response, and the index of the last token of each."""

    ids: list[int]
    prompt_end: int
    response_end: int


class Batch(NamedTuple):
    """What GatedRewardModel.forward takes: input_ids [B, T] int64, attention_mask [B, T] bool, both ends [B] int64."""

    input_ids: Tensor
    attention_mask: Tensor
    prompt_end: Tensor
    response_end: Tensor


def render(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], response: str) -> Rendered:
    """Prompt `messages` (the last by the user) and `response` as tokens, by the tokenizer's chat template.

    prompt_end is the last token of the messages alone without generation prompt: the token that ends the user's turn.
    Raises RenderError (a ValueError) where there is no template, where the template refuses a turn, or where the messages
    render differently once the response follows."""
    return render_all(tokenizer, [(messages, response)])[0]


def render_all(tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Conversation]) -> list[Rendered]:
    """`render` of each; a prompt is rendered once for all its responses. Raises the first RenderError."""
    found = chat_of(tokenizer).conversations(conversations)
    for item in found:
        if isinstance(item, RenderError):
            raise item
    return [Rendered(*item, len(item.ids) - 1) for item in found if not isinstance(item, RenderError)]


def check_length(rendered: Rendered, max_tokens: int) -> Rendered:
    """The conversation itself; ConversationTooLong if it has more than max_tokens tokens."""
    if len(rendered.ids) > max_tokens:
        raise ConversationTooLong(
            f"a conversation has {len(rendered.ids)} tokens (prompt {rendered.prompt_end + 1}), over "
            f"rewarder.max_tokens {max_tokens}; raise it, or lower data.max_prompt_tokens or actors.max_response_tokens"
        )
    return rendered


def check_finite(scores: Tensor, gates: Tensor, responses: Sequence[str]) -> None:
    """ValueError naming the first response with a score or a gate weight that is not finite; scores [N, K], gates [N, K] or
    one for all [K]."""
    wrong = ~(scores.isfinite().all(-1) & gates.isfinite().all(-1))
    if bool(wrong.any()):
        raise ValueError(
            f"scores or gate weights of {int(wrong.sum())} of {len(wrong)} responses are not finite, first of the response "
            f"{short(responses[int(wrong.nonzero()[0])])}; {OVERFLOW}"
        )


def pad_conversations(conversations: Sequence[Rendered], device: torch.device | str = "cpu") -> Batch:
    """Right-padded tensors; pads are masked and never read, so their id (0) does not matter."""
    lengths = torch.tensor([len(c.ids) for c in conversations])
    ids = torch.zeros(len(conversations), int(lengths.max()), dtype=torch.long)
    for row, conversation in enumerate(conversations):
        ids[row, : len(conversation.ids)] = torch.tensor(conversation.ids)
    mask = torch.arange(ids.shape[1])[None] < lengths[:, None]
    ends = (torch.tensor([c.prompt_end for c in conversations]), torch.tensor([c.response_end for c in conversations]))
    return Batch(*(values.to(device) for values in (ids, mask, *ends)))


def batches(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Indices grouped by length, shortest first, each batch at most batch_tokens with its padding (or a single
    item)."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        if batch and (len(batch) + 1) * lengths[index] > batch_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


@torch.no_grad()
def score_responses(
    model: GatedRewardModel,
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    responses: Sequence[str],
    max_tokens: int,
    batch_tokens: int = BATCH_TOKENS,
) -> tuple[Tensor, Tensor]:
    """One group: raw scores [G, K] and the prompt's gate weights [K], float32 on the CPU.

    batch_tokens bounds the padded tokens of a forward pass; which responses share one depends on this group alone, so
    that scores repeat bit by bit. The gate sees only the prompt and is taken once. Raises ConversationTooLong, and
    ValueError for a value that is not finite."""
    if not responses:
        raise ValueError("score_responses got no responses; want at least one")
    conversations = [(messages, response) for response in responses]
    rendered = [check_length(item, max_tokens) for item in render_all(tokenizer, conversations)]
    # A recurrent backbone has no keys and values to hand on.
    share = len(rendered) > 1 and rendered[0].prompt_end >= SHARED_PROMPT_TOKENS and not model.backbone._is_stateful
    output = model.heads(*(states_on_prompt if share else states_of_group)(model, rendered, batch_tokens))
    scores, gate = output.scores.cpu(), output.gate_weights.cpu()
    check_finite(scores, gate, responses)
    return scores, gate


@torch.no_grad()
def states_of_group(model: GatedRewardModel, rendered: Sequence[Rendered], batch_tokens: int) -> tuple[Tensor, Tensor]:
    """h_P [H] of the prompt that all `rendered` begin with and h_R [G, H], from whole conversations."""
    cut = list(batches([len(r.ids) for r in rendered], batch_tokens))
    parts = [model.states(*pad_conversations([rendered[i] for i in batch], model.device)) for batch in cut]
    return parts[0][0][0], _in_order(cut, [responses for _, responses in parts])


@torch.no_grad()
def states_on_prompt(model: GatedRewardModel, rendered: Sequence[Rendered], batch_tokens: int) -> tuple[Tensor, Tensor]:
    """States from one pass of the prompt, with the responses on its keys and values. They are equal but for rounding."""
    prompt = rendered[0].ids[: rendered[0].prompt_end + 1]
    cache, ids = DynamicCache(config=model.backbone.config), torch.tensor([prompt], device=model.device)
    prompt_state = model.backbone(input_ids=ids, past_key_values=cache, use_cache=True).last_hidden_state[0, -1]
    rest = [Rendered(r.ids[len(prompt) :], 0, r.response_end - len(prompt)) for r in rendered]
    cut = list(batches([len(r.ids) for r in rest], batch_tokens))
    parts = [_states_after(model, copy.deepcopy(cache), len(prompt), [rest[i] for i in batch]) for batch in cut]
    return prompt_state, _in_order(cut, parts)


def _in_order(cut: Sequence[Sequence[int]], parts: Sequence[Tensor]) -> Tensor:
    """The rows of all parts [B, H], each dealt there by `cut`, at their indices [G, H]."""
    rows = torch.tensor([index for batch in cut for index in batch])
    return torch.cat(list(parts))[rows.argsort().to(parts[0].device)]


def _states_after(model: GatedRewardModel, cache: DynamicCache, start: int, rest: Sequence[Rendered]) -> Tensor:
    """h_R [B, H] of responses that begin at position `start`; the cache, of one row, is used up."""
    cache.batch_repeat_interleave(len(rest))
    batch = pad_conversations(rest, model.device)
    mask = torch.cat([batch.attention_mask.new_ones(len(rest), start), batch.attention_mask], 1)
    hidden = model.backbone(
        input_ids=batch.input_ids,
        attention_mask=mask,
        position_ids=torch.arange(start, mask.shape[1], device=model.device)[None].expand(len(rest), -1),
        past_key_values=cache,
        use_cache=True,
    ).last_hidden_state
    return hidden[torch.arange(len(rest), device=model.device), batch.response_end]


def score_texts(
    model: GatedRewardModel,
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Conversation],
    max_tokens: int,
    batch_tokens: int,
) -> tuple[Tensor, Tensor]:
    """Any (messages, response) list: raw scores [N, K] and gate weights [N, K], float32 on the CPU, in the input's
    order.

    batch_tokens bounds the padded tokens of a forward pass. Raises ConversationTooLong, and ValueError for a value that is
    not finite."""
    rendered = [check_length(item, max_tokens) for item in render_all(tokenizer, conversations)]
    scores = torch.zeros(len(rendered), len(model.objectives))
    gates = torch.zeros_like(scores)
    for batch in batches([len(r.ids) for r in rendered], batch_tokens):
        with torch.no_grad():
            output: RewardOutput = model(*pad_conversations([rendered[i] for i in batch], model.device))
        scores[batch], gates[batch] = output.scores.cpu(), output.gate_weights.cpu()
    check_finite(scores, gates, [response for _, response in conversations])
    return scores, gates
