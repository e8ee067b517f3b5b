"""A checkpoint in the layout of RLHFlow/ArmoRM-Llama3-8B-v0.1, written by hand: names, shapes and dtypes of the released files
at their full size, and every number of a small one against the equations, computed here from the files alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaModel

from common.types import Message
from rewarder.aggregate import Aggregation, combined_scores, debias
from rewarder.layout import ARMORM_OBJECTIVES, HeadSizes, RewardModelInfo, stored_name
from rewarder.model import GatedRewardModel
from rewarder.scoring import score_responses
from tests.unit.templates import LLAMA3, PROMPT, tokenizer_of

HIDDEN, OBJECTIVES, GATE = 32, 4, 16
RESPONSES = ["w7", "w8 w9 w10", ""]
ALONE = [Message("user", "w1 w2")]
FINAL = Aggregation("final_score", (), 0.0, 0.0)


def llama(hidden: int, layers: int, heads: int, kv_heads: int, inner: int, vocabulary: int) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        intermediate_size=inner,
        vocab_size=vocabulary,
        initializer_range=0.3,
    )


def test_the_inventory_of_the_released_checkpoint() -> None:
    """Section 4 of the notes on it, from its safetensors headers: 7,511,320,957 parameters in 15.04 GB."""
    config = llama(4096, 32, 32, 8, 14336, 128257)
    with torch.device("meta"):
        backbone = LlamaModel(config)
        backbone.bfloat16()
        model = GatedRewardModel(backbone, HeadSizes(4096, 19, 1024, 3, 10.0), RewardModelInfo(ARMORM_OBJECTIVES), 1.0)
    stored = {stored_name(name): value for name, value in model.state_dict().items()}
    heads = {name: (tuple(v.shape), v.dtype) for name, v in stored.items() if not name.startswith("model.")}
    assert heads == {
        "regression_layer.weight": ((19, 4096), torch.float32),
        "reward_transform_matrix": ((19, 19), torch.float32),
        "gating.layers.0.weight": ((1024, 4096), torch.float32),
        "gating.layers.0.bias": ((1024,), torch.float32),
        "gating.layers.1.weight": ((1024, 1024), torch.float32),
        "gating.layers.1.bias": ((1024,), torch.float32),
        "gating.layers.2.weight": ((1024, 1024), torch.float32),
        "gating.layers.2.bias": ((1024,), torch.float32),
        "gating.layers.3.weight": ((19, 1024), torch.float32),
        "gating.layers.3.bias": ((19,), torch.float32),
        "gating.logit_scale": ((1,), torch.float32),
    }
    attention, mlp = {"q_proj": 4096, "k_proj": 1024, "v_proj": 1024, "o_proj": 4096}, ("gate_proj", "up_proj")
    layer: dict[str, tuple[int, ...]] = {f"self_attn.{name}": (rows, 4096) for name, rows in attention.items()}
    layer |= {f"mlp.{name}": (14336, 4096) for name in mlp} | {"mlp.down_proj": (4096, 14336)}
    layer |= dict.fromkeys(("input_layernorm", "post_attention_layernorm"), (4096,))
    decoder = {f"model.layers.{i}.{name}.weight": shape for i in range(32) for name, shape in layer.items()}
    decoder |= {"model.embed_tokens.weight": (128257, 4096), "model.norm.weight": (4096,)}
    found = {name: value for name, value in stored.items() if name not in heads}
    assert {name: tuple(value.shape) for name, value in found.items()} == decoder
    assert {value.dtype for value in found.values()} == {torch.bfloat16}
    assert sum(value.numel() for value in stored.values()) == 7_511_320_957
    assert sum(value.numel() * value.element_size() for value in stored.values()) / 1e9 == pytest.approx(
        15.04, abs=0.01
    )


def test_the_nineteen_objectives_in_order() -> None:
    """By the model card; no file of the checkpoint has them, and another order would mislabel every score."""
    assert (
        *("helpsteer-helpfulness", "helpsteer-correctness", "helpsteer-coherence", "helpsteer-complexity"),
        *("helpsteer-verbosity", "ultrafeedback-overall_score", "ultrafeedback-instruction_following"),
        *("ultrafeedback-truthfulness", "ultrafeedback-honesty", "ultrafeedback-helpfulness", "beavertails-is_safe"),
        *("prometheus-score", "argilla-overall_quality", "argilla-judge_lm", "code-complexity", "code-style"),
        *("code-explanation", "code-instruction-following", "code-readability"),
    ) == ARMORM_OBJECTIVES


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tensors and config.json as they were released, in small: no objective names, the gate's temperature and depth by
    default, a remote file named in auto_map. Random; the gate is far from uniform, T far from symmetric."""
    directory = tmp_path_factory.mktemp("released")
    tokenizer = tokenizer_of(LLAMA3)
    tokenizer.save_pretrained(directory)
    torch.manual_seed(0)
    config = llama(HIDDEN, 2, 4, 2, 48, len(tokenizer))
    decoder = {f"model.{name}": value.bfloat16() for name, value in LlamaModel(config).state_dict().items()}
    transform = torch.eye(OBJECTIVES)
    transform[1] -= torch.tensor([0.4, 1.0, 0.05, 0.25])
    heads = {"regression_layer.weight": torch.randn(OBJECTIVES, HIDDEN) / 10, "reward_transform_matrix": transform}
    widths = [HIDDEN, GATE, GATE, GATE, OBJECTIVES]
    for i in range(4):
        heads[f"gating.layers.{i}.weight"] = torch.randn(widths[i + 1], widths[i]) * (8 if i == 3 else 0.4)
        heads[f"gating.layers.{i}.bias"] = torch.randn(widths[i + 1])
    heads["gating.logit_scale"] = torch.tensor([1.7])
    save_file(decoder | heads, directory / "model.safetensors", {"format": "pt"})
    values = config.to_dict() | {"architectures": ["LlamaForRewardModelWithGating"], "num_objectives": OBJECTIVES}
    values |= {"gating_hidden_dim": GATE, "id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
    values["auto_map"] = {"AutoModelForSequenceClassification": "modeling_custom.LlamaForRewardModelWithGating"}
    (directory / "config.json").write_text(json.dumps(values))
    return directory


def positions(ids: list[int]) -> tuple[int, int]:
    """(prompt, response) as the released code finds them: the end of turn before the last assistant header, and the end."""
    tokenizer = tokenizer_of(LLAMA3)
    pattern = [tokenizer.convert_tokens_to_ids(piece) for piece in ("<eot>", "<start>", "assistant", "<stop>", "\n\n")]
    starts = [i for i in range(len(ids)) if ids[i : i + len(pattern)] == pattern]
    return starts[-1], len(ids) - 1


def with_temperature(directory: Path, copy: Path, tau: float) -> Path:
    shutil.copytree(directory, copy)
    values = json.loads((copy / "config.json").read_text()) | {"gating_temperature": tau}
    (copy / "config.json").write_text(json.dumps(values))
    return copy


def states(directory: Path, prompt: list[Message], response: str, dtype: torch.dtype) -> tuple[NDArray, NDArray]:
    """h_P and h_R of a bare decoder with the stored weights, on tokens of the template as text."""
    stored = load_file(directory / "model.safetensors")
    decoder = LlamaModel(LlamaConfig.from_pretrained(directory)).eval()
    decoder.load_state_dict({name.removeprefix("model."): v for name, v in stored.items() if name.startswith("model.")})
    turns = "".join(f"<start> {m.role} <stop>\n\n{m.content} <eot> " for m in [*prompt, Message("assistant", response)])
    ids = tokenizer_of(LLAMA3)("<bos> " + turns).input_ids
    decoder.double() if dtype == torch.float64 else decoder.float()
    with torch.no_grad():
        hidden = decoder(input_ids=torch.tensor([ids])).last_hidden_state[0].numpy()
    return hidden[positions(ids)[0]], hidden[positions(ids)[1]]


def gate_by_hand(w: dict[str, NDArray], h_prompt: NDArray, tau: float) -> NDArray:
    """g = s softmax(MLP(h_P) / tau), layer by layer."""
    z = h_prompt
    for layer in range(4):
        z = w[f"gating.layers.{layer}.weight"] @ z + w[f"gating.layers.{layer}.bias"]
        z = np.where(z > 0, z, 0) if layer < 3 else z
    e = np.exp((z - z.max()) / tau)
    return w["gating.logit_scale"][0] * e / e.sum()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    ("prompt", "tau"), [(PROMPT, 10), (ALONE, 10), (ALONE, 4)], ids=["two turns", "one turn", "another temperature"]
)
def test_every_part_is_the_equations(
    released: Path, tmp_path: Path, prompt: list[Message], tau: float, dtype: torch.dtype
) -> None:
    """r = W h_R, g = s softmax(MLP(h_P) / tau), r' = r T as a row, score = sum g r', and c = T g: each apart."""
    if tau != 10:
        released = with_temperature(released, tmp_path / "other", tau)
    model, tokenizer = GatedRewardModel.load(released, "float32"), tokenizer_of(LLAMA3)
    scores, gate = score_responses(model, tokenizer, prompt, RESPONSES, 64)
    matrix = model.reward_transform_matrix.detach()
    debiased, score = debias(scores, matrix), combined_scores(scores, gate, matrix, FINAL)[:, 0]
    stored = load_file(released / "model.safetensors")
    w = {name: value.to(dtype).numpy() for name, value in stored.items() if not name.startswith("model.")}
    for i, response in enumerate(RESPONSES):
        h_prompt, h_response = states(released, prompt, response, dtype)
        r = np.array([sum(w["regression_layer.weight"][k] * h_response) for k in range(OBJECTIVES)])
        np.testing.assert_allclose(scores[i].numpy(), r, rtol=1e-4, atol=1e-5)
        g = gate_by_hand(w, h_prompt, tau)
        np.testing.assert_allclose(gate.numpy(), g, rtol=1e-4, atol=1e-6)
        t = w["reward_transform_matrix"]
        r_debiased = np.array([sum(r[j] * t[j, k] for j in range(OBJECTIVES)) for k in range(OBJECTIVES)])
        np.testing.assert_allclose(debiased[i].numpy(), r_debiased, rtol=1e-4, atol=1e-5)
        assert debiased[i, 1] == 0, "verbosity counts as a penalty only"
        np.testing.assert_allclose(float(score[i]), sum(g * r_debiased), rtol=1e-4, atol=1e-5)
        c = np.array([sum(t[j, k] * g[k] for k in range(OBJECTIVES)) for j in range(OBJECTIVES)])
        np.testing.assert_allclose(float(score[i]), sum(c * r), rtol=1e-4, atol=1e-5)
    shares = gate.numpy() / gate.numpy().sum()
    assert shares.max() > 2 * shares.min(), "a uniform gate would check nothing"
    assert float((score[:, None] - score[None]).abs()[np.triu_indices(3, 1)].min()) > 1e-3


def test_it_is_written_back_bit_by_bit(released: Path, tmp_path: Path) -> None:
    """And again: what is read from our own files scores the same, bit by bit."""
    tokenizer, names = tokenizer_of(LLAMA3), ["a", "b", "c", "d"]
    model = GatedRewardModel.load(released, "bfloat16", objectives=names)
    model.save(tmp_path / "ours", tokenizer)
    before, after = (load_file(directory / "model.safetensors") for directory in (released, tmp_path / "ours"))
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert value.dtype == after[name].dtype and torch.equal(
            value.view(torch.uint8), after[name].view(torch.uint8)
        ), name
    again = GatedRewardModel.load(tmp_path / "ours", "bfloat16")
    assert again.objectives == tuple(names) and again.sizes == model.sizes == HeadSizes(
        HIDDEN, OBJECTIVES, GATE, 3, 10.0
    )
    ours, theirs = (score_responses(m, tokenizer, PROMPT, RESPONSES, 64) for m in (again, model))
    assert torch.equal(ours[0], theirs[0]) and torch.equal(ours[1], theirs[1])
