"""The prompts of a seed's world as the anchor reads them. Called by what makes artifacts and by the measures."""

from __future__ import annotations

from pathlib import Path

from actors.prompts import shard, tokenize_prompts
from common.config.config import Config
from common.data.data import read_prompts
from common.types import Prompt
from studies.lab import Lab


def training_prompts(config: Config, anchor: Path, limit: int | None = None) -> list[Prompt]:
    """data.prompts through the anchor's chat template."""
    return _prompts(config, config.data.prompts, anchor, limit)


def held_out_prompts(config: Config, anchor: Path, limit: int | None = None) -> list[Prompt]:
    """The first `limit` (default: evaluate.prompts) of data.eval_prompts."""
    return _prompts(config, config.data.eval_prompts, anchor, limit or config.evaluate.prompts)


def shards(config: Config, anchor: Path) -> list[list[Prompt]]:
    """The prompts of each iteration, as driver/loop/loop.py cuts them."""
    prompts, size = training_prompts(config, anchor), config.iteration.steps * config.learner.groups_per_step
    return [shard(prompts, i, config.iteration.num, config.run.seed)[:size] for i in range(config.iteration.num)]


def _prompts(config: Config, source: str | None, anchor: Path, limit: int | None) -> list[Prompt]:
    assert source is not None, "studies have prompts"
    tokenizer = Lab.tokenizer(anchor)
    rows = read_prompts(source, limit)
    return tokenize_prompts(rows, tokenizer, config.data.max_prompt_tokens, config.data.long_prompts)[0]
