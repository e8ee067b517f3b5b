"""One pass of the prompt for all responses of a group: the states are those of whole conversations, in each family."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from transformers import (
    BloomConfig,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3MoeConfig,
)
from transformers.models.auto.modeling_auto import MODEL_MAPPING

from benchmarks.scoring import make_tokenizer
from common.types import Message
from rewarder.layout import HeadSizes, RewardModelInfo
from rewarder.model import GatedRewardModel
from rewarder.scoring import (
    SHARED_PROMPT_TOKENS,
    Rendered,
    render,
    score_responses,
    states_of_group,
    states_on_prompt,
)

SIZES: dict[str, Any] = {"vocab_size": 5440, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
WIDE: dict[str, Any] = SIZES | {"intermediate_size": 24, "num_key_value_heads": 1, "head_dim": 8}
SLIDING: dict[str, Any] = {
    "sliding_window": 7,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}
FAMILIES = [
    LlamaConfig(**WIDE),
    MistralConfig(**WIDE, sliding_window=7),
    Gemma3TextConfig(**WIDE, **SLIDING),
    Qwen3MoeConfig(**WIDE, moe_intermediate_size=8, num_experts=4, num_experts_per_tok=2),
    GPT2Config(vocab_size=5440, n_embd=16, n_layer=3, n_head=2),
    BloomConfig(vocab_size=5440, hidden_size=16, n_layer=3, n_head=2),
]
RECURRENT = MambaConfig(vocab_size=5440, hidden_size=16, num_hidden_layers=2, state_size=4)
RESPONSES = ["w1", "w2 w3 w4 w5 w6 w7 w8 w9 w10 w11 w12", "", "w1 w2"]


def make(config: PreTrainedConfig) -> GatedRewardModel:
    torch.manual_seed(0)
    info = RewardModelInfo(("help", "safe"))
    backbone = cast(type[PreTrainedModel], MODEL_MAPPING[type(config)])(config)
    return GatedRewardModel(backbone, HeadSizes(16, 2, 8, 1, 1.0), info, 1.0).eval()


def prompt(tokens: int) -> list[Message]:
    """Of that many tokens with the template's three."""
    return [Message("user", " ".join(f"w{i}" for i in range(tokens - 3)))]


def rendered(tokens: int) -> list[Rendered]:
    return [render(make_tokenizer(), prompt(tokens), response) for response in RESPONSES]


def passes(model: GatedRewardModel, prompt_tokens: int) -> list[tuple[int, ...]]:
    """Shapes of what went through the backbone while the group was scored."""
    seen: list[tuple[int, ...]] = []
    hook = model.backbone.register_forward_pre_hook(
        lambda _, __, given: seen.append(tuple(given["input_ids"].shape)), with_kwargs=True
    )
    score_responses(model, make_tokenizer(), prompt(prompt_tokens), RESPONSES, 1000)
    hook.remove()
    return seen


@pytest.mark.parametrize("config", FAMILIES, ids=lambda config: config.model_type)
@pytest.mark.parametrize("batch_tokens", [1, 16, 4096])
def test_states_on_the_prompt_are_those_of_whole_conversations(config: PreTrainedConfig, batch_tokens: int) -> None:
    model, group = make(config), rendered(12)
    prompt_state, states = states_on_prompt(model, group, batch_tokens)
    want = [states_of_group(model, [one], 4096) for one in group]
    torch.testing.assert_close(prompt_state, want[0][0], atol=2e-5, rtol=0)
    torch.testing.assert_close(states, torch.cat([state for _, state in want]), atol=2e-5, rtol=0)
    assert float((states[0] - states[1]).abs().max()) > 1e-3  # order matters
    torch.testing.assert_close(states_of_group(model, group, batch_tokens)[1], states, atol=2e-5, rtol=0)


def test_long_prompts_are_shared_and_short_ones_are_not() -> None:
    model = make(FAMILIES[0])
    assert passes(model, SHARED_PROMPT_TOKENS) == [(4, SHARED_PROMPT_TOKENS + 13)]
    assert passes(model, SHARED_PROMPT_TOKENS + 1) == [(1, SHARED_PROMPT_TOKENS + 1), (4, 13)]


def test_a_recurrent_backbone_reads_whole_conversations() -> None:
    model = make(RECURRENT)
    assert passes(model, 80) == [(4, 93)]
