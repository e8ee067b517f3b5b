"""The gated multi-objective reward model: one decoder, a linear head per objective, a gate that reads the prompt.

    h_R = hidden state at the response's last token       r = W h_R                      [K] scores, raw
    h_P = hidden state at the prompt's last token          g = s softmax(MLP(h_P) / tau)  [K] gate weights
    score = sum_k g_k (r T)_k                              T removes verbosity (`aggregate.debias`)

Owns the module and its reading and writing in the ArmoRM layout (`layout`). The rewarder scores with it; the learner
trains it. The backbone keeps its own dtype; heads, gate and T are float32 in memory and in every computation, autocast
or not, because scores differ by less than a bfloat16 step. Positions are given, never searched for: text in a response
cannot move the gate.

Source: Wang et al. 2406.12845 and the released checkpoint RLHFlow/ArmoRM-Llama3-8B-v0.1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_MAPPING
from transformers.utils import logging

from rewarder import layout
from rewarder.layout import CheckpointError, HeadSizes, RewardModelInfo

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class RewardOutput:
    """scores [B, K] raw (before debiasing), gate_weights [B, K], prompt_state h_P [B, H], response_state h_R [B, H];
    float32."""

    scores: Tensor
    gate_weights: Tensor
    prompt_state: Tensor
    response_state: Tensor


class GatingNetwork(nn.Module):
    """g = logit_scale * softmax(MLP(h_P) / temperature) over the objectives (last axis, whatever the rank): >= 0, sum =
    scale."""

    def __init__(self, sizes: HeadSizes, initial_scale: float) -> None:
        super().__init__()
        widths = sizes.gate_widths()
        linear = (nn.Linear(before, after, dtype=torch.float32) for before, after in pairwise(widths))
        self.layers = nn.ModuleList(linear)
        self.logit_scale = nn.Parameter(torch.tensor([initial_scale], dtype=torch.float32))
        self.temperature = sizes.gate_temperature

    def forward(self, prompt_state: Tensor) -> Tensor:
        """prompt_state [..., H] float32 -> gate weights [..., K]."""
        *hidden, last = self.layers
        x = prompt_state
        for layer in hidden:
            x = torch.relu(layer(x))
        return self.logit_scale * torch.softmax(last(x) / self.temperature, dim=-1)


class GatedRewardModel(nn.Module):
    """Backbone, regression_layer, gating, reward_transform_matrix; `info` says what the objectives are called."""

    def __init__(
        self, backbone: PreTrainedModel, sizes: HeadSizes, info: RewardModelInfo, initial_scale: float
    ) -> None:
        super().__init__()
        assert len(info.objectives) == sizes.num_objectives, f"{info.objectives} for {sizes.num_objectives} objectives"
        self.backbone = backbone
        self.sizes = sizes
        self.info = info
        self.regression_layer = nn.Linear(sizes.hidden, sizes.num_objectives, bias=False, dtype=torch.float32)
        self.gating = GatingNetwork(sizes, initial_scale)
        identity = torch.eye(sizes.num_objectives, dtype=torch.float32)
        self.reward_transform_matrix = nn.Parameter(identity, requires_grad=False)

    @property
    def objectives(self) -> tuple[str, ...]:
        """Names of the K objectives, in the order of the head."""
        return self.info.objectives

    @property
    def device(self) -> torch.device:
        """Where the heads are."""
        return self.regression_layer.weight.device

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, prompt_end: Tensor, response_end: Tensor
    ) -> RewardOutput:
        """input_ids [B, T] int, attention_mask [B, T] (True = keep, padded on the right), prompt_end [B] and
        response_end [B]: index of the last token of the prompt and of the response. Raises ValueError for positions
        outside the text."""
        return self.heads(*self.states(input_ids, attention_mask, prompt_end, response_end))

    def states(
        self, input_ids: Tensor, attention_mask: Tensor, prompt_end: Tensor, response_end: Tensor
    ) -> tuple[Tensor, Tensor]:
        """h_P and h_R [B, H] of the same input, in the backbone's dtype."""
        check_positions(attention_mask, prompt_end, response_end)
        hidden = self.backbone(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state
        rows = torch.arange(hidden.shape[0], device=hidden.device)
        return hidden[rows, prompt_end], hidden[rows, response_end]

    def heads(self, prompt_state: Tensor, response_state: Tensor) -> RewardOutput:
        """Scores and gate of hidden states h_P, h_R [..., H] (cached features train the heads without the backbone)."""
        assert self.regression_layer.weight.dtype == torch.float32, "heads were cast; cast model.backbone only"
        prompt_state, response_state = prompt_state.float(), response_state.float()
        with torch.autocast(prompt_state.device.type, enabled=False):
            scores, gate_weights = self.regression_layer(response_state), self.gating(prompt_state)
        return RewardOutput(scores, gate_weights, prompt_state, response_state)

    @classmethod
    def from_policy(
        cls,
        model_dir: str | Path,
        objectives: Sequence[str],
        gate_hidden: int,
        gate_layers: int,
        gate_temperature: float,
        initial_scale: float,
        seed: int,
        dtype: str = "float32",
        verbosity: str | None = None,
        revision: str | None = None,
    ) -> GatedRewardModel:
        """A new model on a copy of a language model's (or classifier's) decoder; heads at random from `seed`, T =
        identity.

        gate_layers hidden layers; initial_scale is the gate's sum at the start. rm_version is 0, calibration None."""
        with _without_load_report():
            backbone, report = AutoModel.from_pretrained(
                str(model_dir),
                dtype=_dtype(dtype),
                revision=revision,
                trust_remote_code=False,
                output_loading_info=True,
            )
        if report["missing_keys"]:
            raise CheckpointError(f"{model_dir}: decoder weights {sorted(report['missing_keys'])} are missing")
        sizes = HeadSizes(backbone.config.hidden_size, len(objectives), gate_hidden, gate_layers, gate_temperature)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cls(backbone, sizes, RewardModelInfo(tuple(objectives), verbosity=verbosity), initial_scale)

    @classmethod
    def load(
        cls, directory: str | Path, dtype: str, revision: str | None = None, objectives: Sequence[str] = ()
    ) -> GatedRewardModel:
        """Read a checkpoint in the ArmoRM layout onto the CPU: a directory, or a hub name at a revision. `dtype`
        (float32, bfloat16, float16) is the backbone's. Raises CheckpointError with what is missing or does not fit."""
        files = layout.read_layout(directory, objectives, revision)
        backbone_state, heads_state = layout.read_tensors(files)
        backbone = _backbone(directory, files.backbone, backbone_state, _dtype(dtype))
        model = cls(backbone, files.sizes, files.info, initial_scale=1.0)
        result = model.load_state_dict(heads_state, strict=False)
        left = [name for name in result.missing_keys if not name.startswith("backbone.")]
        assert not left and not result.unexpected_keys, f"heads do not match the layout: {result}"
        return model.eval()

    def save(self, directory: str | Path, tokenizer: PreTrainedTokenizerBase, max_shard_size: str = "5GB") -> None:
        """Write the ArmoRM layout: sharded safetensors (backbone in its dtype under `model.`, heads F32), config.json
        with our keys, the tokenizer."""
        state = {layout.stored_name(name): value for name, value in self.state_dict().items()}
        values = layout.config_values(self.backbone.config, self.sizes, self.info)
        layout.write(Path(directory), state, values, max_shard_size)
        tokenizer.save_pretrained(str(directory))


def check_positions(attention_mask: Tensor, prompt_end: Tensor, response_end: Tensor) -> None:
    """ValueError unless every row is padded on the right and 0 <= prompt_end < response_end < its number of tokens."""
    mask = attention_mask.bool()
    lengths = mask.sum(-1)
    right_padded = (mask[:, 1:] <= mask[:, :-1]).all(-1)
    ok = right_padded & (prompt_end >= 0) & (prompt_end < response_end) & (response_end < lengths)
    if not bool(ok.all()):
        row = int((~ok).nonzero()[0])
        where = f"prompt_end {int(prompt_end[row])}, response_end {int(response_end[row])}, {int(lengths[row])} tokens"
        side = "" if bool(right_padded[row]) else ", not padded on the right"
        raise ValueError(f"row {row}: {where}{side}; want 0 <= prompt_end < response_end < tokens, padded on the right")


@contextmanager
def _without_load_report() -> Iterator[None]:
    """transformers prints which tensors a model leaves out (here: the head that is not the decoder's), as if it were wrong."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _dtype(name: str) -> torch.dtype:
    if name not in DTYPES:
        raise ValueError(f"dtype is {name!r}; want one of {sorted(DTYPES)}")
    return DTYPES[name]


def _backbone(
    source: str | Path, config: PreTrainedConfig, state: dict[str, Tensor], dtype: torch.dtype
) -> PreTrainedModel:
    """The decoder with exactly these weights; CheckpointError where one is missing, left over or of another shape."""
    kind = cast(type[PreTrainedModel], MODEL_MAPPING[type(config)])
    load = cast(Callable[..., tuple[PreTrainedModel, dict[str, list[str]]]], kind.from_pretrained)
    model, report = load(None, config=config, state_dict=state, dtype=dtype, output_loading_info=True)
    wrong = {key: sorted(map(str, names)) for key, names in report.items() if names}
    if wrong:
        raise CheckpointError(
            f"{source}: the backbone's weights do not fit config.json: {wrong}; download or export it again"
        )
    return model
