"""The references pass: what the anchor would answer, so that rewards mean "better than that".

At the start of an iteration the engines hold the anchor and sample K responses to every prompt of the shard; the rewarders
turn them into r_ref per prompt and term. Samples and values are kept under a key of everything they depend on: a resumed
run finds them again, another reward model, template or sampling does not. An aggregation that centres on nothing
(weighted_sum) has no such pass.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from actors.prompts import response_seed
from common.config import Config
from common.data import write_jsonl
from common.types import FloatArray, Prompt, Rollout
from driver.cluster import Cluster
from driver.progress import Progress
from driver.publish import Publisher
from rewarder.references import reference_key
from rewarder.worker import ReferenceSamples

CHUNK_PROMPTS = 128


def references_key(config: Config, shard: Sequence[Prompt], anchor: str, reward_model: str) -> str:
    """The key of this shard's references."""
    sampling = {"temperature": config.actors.temperature, "top_p": config.actors.top_p, "seed": config.run.seed}
    return reference_key(
        {
            "rm_hash": model_hash(reward_model),
            "aggregation": str(sorted(asdict(config.aggregation).items())),
            "anchor_hash": model_hash(anchor),
            "sampling": str((config.aggregation.references_per_prompt, config.actors.max_response_tokens, sampling)),
            "template": hashlib.sha256(b"".join(prompt.token_ids.tobytes() for prompt in shard)).hexdigest(),
            "prompt_ids": " ".join(prompt.prompt_id for prompt in shard),
        }
    )


def load_references(directory: Path, key: str) -> dict[str, FloatArray] | None:
    """The references kept under `key`, or None."""
    if not (path := directory / f"{key}.npz").is_file():
        return None
    with np.load(path) as stored:
        return dict(zip(stored["prompt_ids"].tolist(), stored["values"], strict=True))


def sample_references(
    cluster: Cluster, publisher: Publisher, config: Config, shard: Sequence[Prompt], directory: Path, key: str
) -> dict[str, FloatArray]:
    """Samples and scores the references of a shard and keeps them under `key`; prompt_id -> r_ref [M]."""
    publisher.anchor()
    count, progress = config.aggregation.references_per_prompt, Progress("references", len(shard), "prompts")
    values: dict[str, FloatArray] = {}
    rows: list[dict[str, object]] = []
    for start in range(0, len(shard), CHUNK_PROMPTS * config.actors.num):
        part = shard[start : start + CHUNK_PROMPTS * config.actors.num]
        samples = _samples(part, sample_prompts(cluster, part, count, config.run.seed, "references"))
        values.update(_score(cluster, samples))
        rows += [{"prompt_id": sample.prompt_id, "responses": list(sample.responses)} for sample in samples]
        progress.advance(len(part))
    directory.mkdir(parents=True, exist_ok=True)
    write_jsonl(directory / f"{key}.jsonl", rows)
    _keep(directory / f"{key}.npz", values)
    return values


def sample_prompts(
    cluster: Cluster, prompts: Sequence[Prompt], num_responses: int, seed: int, purpose: str
) -> list[list[Rollout]]:
    """num_responses for each prompt by the weights in place, dealt to the engines; seeds depend on the prompt's id and the
    purpose alone, and the prefix cache is not shared with another purpose."""
    deal = max(1, -(-len(prompts) // len(cluster.actors)))
    parts = [prompts[start : start + deal] for start in range(0, len(prompts), deal)]
    arguments = [(part, num_responses, [_seed(purpose, p, seed) for p in part], purpose) for part in parts]
    return [rollouts for answer in cluster.scatter(cluster.actors, "sample", arguments) for rollouts in answer]


def model_hash(model: str) -> str:
    """SHA-256 over the names and contents of a model directory's files; of the name itself for a Hub id."""
    directory = Path(model)
    digest = hashlib.sha256(b"" if directory.is_dir() else model.encode())
    for file in sorted(directory.glob("*.safetensors")) + sorted(directory.glob("*.json")):
        digest.update(file.name.encode())
        with file.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()


def _seed(purpose: str, prompt: Prompt, seed: int) -> int:
    digest = hashlib.sha256(f"{purpose}\0{prompt.prompt_id}".encode()).digest()
    return response_seed(seed, int.from_bytes(digest[:7], "big"))


def _samples(prompts: Sequence[Prompt], sampled: Sequence[Sequence[Rollout]]) -> list[ReferenceSamples]:
    return [
        ReferenceSamples(prompt.prompt_id, prompt.messages, tuple(rollout.response for rollout in rollouts))
        for prompt, rollouts in zip(prompts, sampled, strict=True)
    ]


def _score(cluster: Cluster, samples: Sequence[ReferenceSamples]) -> dict[str, FloatArray]:
    deal = max(1, -(-len(samples) // len(cluster.rewarders)))
    parts = [(samples[start : start + deal],) for start in range(0, len(samples), deal)]
    merged: dict[str, FloatArray] = {}
    for values in cluster.scatter(cluster.rewarders, "score_references", parts):
        merged.update(values)
    return merged


def _keep(path: Path, values: dict[str, FloatArray]) -> None:
    aside = path.with_suffix(".tmp.npz")
    np.savez(aside, prompt_ids=np.array(list(values)), values=np.stack(list(values.values())))
    aside.rename(path)
