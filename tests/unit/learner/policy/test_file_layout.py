"""What is published of a policy has the names and values of its files, whatever the loaded module calls them; what cannot be
published is refused before anything is sampled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from common.models import tensor_names
from learner.policy.file_layout import check_publishable, kept_tensors, published_shards
from rewarder.model import GatedRewardModel
from tests.integration.families import EXPERTS, FAMILIES, STORED_HEAD, store_head, tiny_family

FUSED = "model.layers.0.mlp.experts.gate_up_proj"


def loaded(directory: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)


def published(module: Any, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    shards, names = published_shards(module, module.named_parameters(), dtype, keep=True)
    tensors = {name: tensor for shard in shards for name, tensor in load(shard).items()}
    assert sorted(tensors) == sorted(names)
    return tensors


@pytest.mark.parametrize("family", FAMILIES)
def test_published_tensors_are_those_of_the_files(family: str, tmp_path: Path) -> None:
    tiny_family(family, tmp_path)
    module, stored = loaded(tmp_path), load_file(tmp_path / "model.safetensors")
    check_publishable(module, tmp_path)
    tensors = published(module)
    assert set(stored) - set(tensors) == ({"lm_head.weight"} if family == STORED_HEAD else set())
    assert all(torch.equal(tensor, stored[name]) for name, tensor in tensors.items())
    if family in EXPERTS:
        assert FUSED in dict(module.named_parameters()), "transformers fuses the experts when it loads"


@pytest.mark.parametrize("family", FAMILIES)
def test_an_export_of_trained_weights_loads_as_they_are_and_can_be_published_again(family: str, tmp_path: Path) -> None:
    tiny_family(family, tmp_path / "policy")
    module = loaded(tmp_path / "policy")
    for parameter in module.parameters():
        parameter.data += 0.1
    tensors = kept_tensors(module, module.named_parameters(), torch.float32, keep=True)
    module.save_pretrained(tmp_path / "export", state_dict=tensors)
    again = loaded(tmp_path / "export")
    check_publishable(again, tmp_path / "export")
    assert sorted(published(module)) == tensor_names(tmp_path / "export")
    ids = torch.tensor([[1, 9, 33, 4]])
    torch.testing.assert_close(again(ids).logits, module(ids).logits)


def test_a_rank_that_keeps_nothing_still_walks_every_parameter(tmp_path: Path) -> None:
    tiny_family("qwen3_moe", tmp_path)
    module, walked = loaded(tmp_path), list[str]()

    def parameters() -> Any:
        for name, parameter in module.named_parameters():
            walked.append(name)
            yield name, parameter

    assert published_shards(module, parameters(), torch.bfloat16, keep=False) == ([], [])
    assert walked == [name for name, _ in module.named_parameters()]
    assert all(tensor.dtype == torch.bfloat16 for tensor in published(module, torch.bfloat16).values())


def test_a_stored_head_that_is_not_the_embedding_is_refused(tmp_path: Path) -> None:
    """transformers unties it, with a warning; vLLM goes by config.json and would sample with the embedding."""
    tiny_family("llama_tied", tmp_path)
    store_head(tmp_path, lambda embedding: embedding + 1)
    with pytest.raises(
        ValueError, match="config.json ties lm_head.weight to another tensor, but the files hold another value"
    ):
        check_publishable(loaded(tmp_path), tmp_path)


@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_files_that_lack_a_tensor_or_have_one_that_nothing_reads_are_refused(family: str, tmp_path: Path) -> None:
    tiny_family(family, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    module, norm = loaded(tmp_path), tensors.pop("model.norm.weight")
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"the files lack 1 tensors of \w+, first model.norm.weight"):
        check_publishable(module, tmp_path)
    tensors |= {"model.norm.weight": norm, "model.layers.9.extra.weight": norm.clone()}
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"leaves 1 tensors of the files unread, first model.layers.9.extra"):
        check_publishable(loaded(tmp_path), tmp_path)


def test_rotary_frequencies_of_old_files_are_no_reason_to_refuse(tmp_path: Path) -> None:
    tiny_family("llama", tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(16)
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    check_publishable(loaded(tmp_path), tmp_path)


@pytest.mark.parametrize("family", [*EXPERTS, STORED_HEAD])
def test_a_reward_model_on_such_a_policy_loads_as_it_was_saved(family: str, tmp_path: Path) -> None:
    tiny_family(family, tmp_path / "policy")
    made = GatedRewardModel.from_policy(tmp_path / "policy", ["a", "b"], 8, 1, 1.0, 1.0, seed=0).eval()
    made.save(tmp_path / "rm", AutoTokenizer.from_pretrained(tmp_path / "policy"))
    again = GatedRewardModel.load(tmp_path / "rm", "float32")
    ids = torch.tensor([[1, 9, 33, 4]])
    row = ids, torch.ones_like(ids), torch.tensor([1]), torch.tensor([3])
    assert torch.equal(again(*row).scores, made(*row).scores)
