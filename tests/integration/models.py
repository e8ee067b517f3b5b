"""Tiny models and a tiny finished run for integration tests: made here, loaded by the real loading code."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from common.config.config import Config
from common.config.file import BASE, load_config, save_config
from common.metrics import StepLog
from rewarder.model import GatedRewardModel

OBJECTIVES = ["help", "safe", "brief"]
SPECIAL = ["<pad>", "<bos>", "<user>", "<assistant>", "<end>"]
WORDS = [f"w{i}" for i in range(59)]
TEMPLATE = (
    "<bos>{% for m in messages %}<{{ m['role'] }}>{{ ' ' + m['content'] + ' ' }}<end>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def tiny_policy(directory: Path, seed: int, tied: bool = True) -> LlamaForCausalLM:
    """A Llama of 2 layers with sharp predictions (so that a wrong weight shows), saved with its tokenizer."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(SPECIAL) + len(WORDS),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=128,
        max_position_embeddings=128,
        tie_word_embeddings=tied,
        initializer_range=0.3,
        bos_token_id=1,
        eos_token_id=4,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config)
    model.save_pretrained(directory)
    save_tokenizer(directory)
    return model.eval()


def save_tokenizer(directory: Path) -> None:
    """A tokenizer of whole words with a chat template, for a model of 64 tokens."""
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(SPECIAL + WORDS)}, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", bos_token="<bos>", eos_token="<end>", chat_template=TEMPLATE
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<user>", "<assistant>"]})
    tokenizer.save_pretrained(directory)


def tiny_run(directory: Path) -> Config:
    """A run that has iterated: its configuration, its models, and what the cards read; no export yet."""
    policy, reward_model = directory / "policy", directory / "rm"
    tiny_policy(policy, 0)
    model = GatedRewardModel.from_policy(policy, OBJECTIVES, 16, 2, 1.0, 4.0, 7)
    model.save(reward_model, AutoTokenizer.from_pretrained(policy))
    (reward_model / "optimizer.bin").write_text("not of the layout")
    models = [f"policy.model={policy}", f"rewarder.model={reward_model}", f"rewarder.objectives={OBJECTIVES}"]
    small = ["aggregation.kind=final_score", "actors.max_response_tokens=8", "rewarder.max_tokens=64"]
    dtypes = ["policy.dtype=float32", "rewarder.dtype=float32", "stages=[iterate,export,report]"]
    config = load_config(BASE, [f"run.dir={directory}/runs", *models, *small, *dtypes])
    (config.run_dir / "checkpoints" / "step_3").mkdir(parents=True)
    log = StepLog(config.run_dir / "metrics.jsonl")
    for step in range(4):
        log.write(step, {"reward/mean": -1.0 + step / 10})
    save_config(config, config.run_dir / "config.yaml")
    return config
