"""One rank of tests/integration/test_learner.py. For every job it trains three steps on fixed groups through
learner/ranks/engine.py and learner/policy/train.py; rank 0 writes what came out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from safetensors.torch import save_file
from transformers import LlamaForCausalLM

from common.config.config import LearnerConfig
from common.config.file import load_config
from common.types import Message, Prompt, Reward, Rollout, RolloutGroup, ScoredGroup
from learner.policy.train import PolicyStep
from learner.ranks.engine import Engine, freeze, init_process_group

ROOT = Path(__file__).parent.parent.parent


def groups(step: int) -> list[ScoredGroup]:
    """Four groups of three responses of uneven lengths, the same for every caller."""
    generator = np.random.default_rng([7, step])
    return [_group(slot, generator) for slot in range(4 * step, 4 * step + 4)]


def _group(slot: int, generator: np.random.Generator) -> ScoredGroup:
    prompt = generator.integers(5, 60, int(generator.integers(3, 9))).astype(np.int32)
    rollouts, rewards = [], []
    for _ in range(3):
        ids = generator.integers(5, 60, int(generator.integers(1, 12))).astype(np.int32)
        rollouts.append(Rollout("", ids, np.full(len(ids), np.nan, dtype=np.float32), "stop", ((0, 0),)))
        value = generator.normal(size=1).astype(np.float32)
        rewards.append(Reward(value, np.ones(1, np.float32), value, np.ones(1, np.float32), 0.0))
    message = (Message("user", "x"),)
    return ScoredGroup(RolloutGroup(slot, Prompt("p", message, prompt, {}), tuple(rollouts)), tuple(rewards), 0, "r")


def on_policy(module: LlamaForCausalLM, scored: list[ScoredGroup]) -> list[ScoredGroup]:
    """The groups with the log-probs of the starting policy as those of the sampler."""
    return [_with_logprobs(module, group) for group in scored]


def _with_logprobs(module: LlamaForCausalLM, scored: ScoredGroup) -> ScoredGroup:
    prompt, rollouts = scored.group.prompt, []
    for rollout in scored.group.rollouts:
        ids = torch.from_numpy(np.concatenate([prompt.token_ids, rollout.token_ids]).astype(np.int64))
        with torch.no_grad():
            table = torch.log_softmax(module(ids[None]).logits[0, :-1], -1)
        picked = table.gather(-1, ids[1:, None])[len(prompt.token_ids) - 1 :, 0].numpy().astype(np.float32)
        rollouts.append(Rollout("", rollout.token_ids, picked, "stop", ((0, 0),)))
    return ScoredGroup(RolloutGroup(scored.group.slot, prompt, tuple(rollouts)), scored.rewards, 0, "r")


def work(rank: int, ranks: int, port: int, jobs: Mapping[str, Mapping[str, object]], policy: str, root: Path) -> None:
    """Trains all jobs in one process group; the results of a job lie in root/NAME."""
    torch.set_num_threads(1)
    device = init_process_group(rank, ranks, "127.0.0.1", port, gpus=0)
    anchor = LlamaForCausalLM.from_pretrained(policy)
    batches = [on_policy(anchor, groups(step)) for step in range(3)]
    for name, settings in jobs.items():
        _train(rank, ranks, settings, policy, batches, root / name, device)
    dist.barrier()
    dist.destroy_process_group()  # gloo's threads may not outlive it: std::terminate at exit


def _train(
    rank: int,
    ranks: int,
    settings: Mapping[str, object],
    policy: str,
    batches: list[list[ScoredGroup]],
    out: Path,
    device: torch.device,
) -> None:
    out.mkdir(parents=True, exist_ok=True)
    config = _config(ranks, {key: value for key, value in settings.items() if key != "restart_after"})
    engine = _engine(policy, config, device)
    reference = freeze(LlamaForCausalLM.from_pretrained(policy), config.zero_stage, device)
    metrics = []
    for step, batch in enumerate(batches):
        metrics.append(PolicyStep(engine, reference, config, 1.0, rank, device).run(batch, step))
        if step == settings.get("restart_after"):
            engine.save(out / "checkpoint")
            engine = _engine(policy, config, device)
            engine.load(out / "checkpoint")
    parameters = {name: parameter.clone().contiguous() for name, parameter in engine.full_parameters()}
    if rank == 0:
        save_file(parameters, out / "parameters.safetensors")
        (out / "metrics.json").write_text(json.dumps(metrics))
    engine.free()


def _config(ranks: int, settings: Mapping[str, object]) -> LearnerConfig:
    fixed = [
        "learner.autocast=false",
        "learner.importance_cap=null",
        f"learner.ranks={ranks}",
        "learner.learning_rate=0.003",
        "learner.warmup_steps=2",
        "learner.groups_per_step=4",
    ]
    overrides = [f"learner.{key}={value}" for key, value in settings.items()]
    return load_config(ROOT / "configs" / "quickstart.yaml", [*fixed, *overrides]).learner


def _engine(policy: str, config: LearnerConfig, device: torch.device) -> Engine:
    module = LlamaForCausalLM.from_pretrained(policy)
    return Engine(module.train(), config, config.learning_rate, device)
