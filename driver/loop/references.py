"""The references pass: what the anchor would answer, so that rewards mean "better than that".

At the start of an iteration the engines hold the anchor and sample K responses to every prompt of the shard; the rewarders
turn them into r_ref per prompt and term (of a term with a canned response, the score of that). Both are kept, each under a key
of everything it depends on: a resumed run finds them again; another anchor, template or sampling finds neither, another reward
model or aggregation finds the samples. Called by driver/loop/reference_pass.py.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch

from actors.prompts import response_seed
from common.config.aggregations import term_names
from common.config.config import AggregationConfig, Config
from common.data.data import write_jsonl
from common.files import written_aside
from common.types import FloatArray, Prompt, Rollout
from driver.cluster.doors import Actors, Rewarders
from driver.loop.publish import Publisher
from driver.record.progress import Progress, say
from rewarder.calibrate import affine_warning
from rewarder.references import reference_key
from rewarder.worker import ReferenceSamples, ScoredReference

CHUNK_PROMPTS = 128


@dataclass(frozen=True)
class References:
    """r_ref of a shard: prompt_id -> [M], and by term the share of the anchor's samples that are no better than the r_ref of
    the other samples (near aggregation.quantile where the estimator fits them). Empty where nothing is centred."""

    values: dict[str, FloatArray] = field(default_factory=dict)
    coverage: tuple[float, ...] = ()


Facts = dict[str, str]


def shard_facts(config: Config, shard: Sequence[Prompt], anchor: str) -> Facts:
    """What the anchor's samples of a shard depend on."""
    sampling = {"temperature": config.actors.temperature, "top_p": config.actors.top_p, "seed": config.run.seed}
    return {
        "anchor_hash": model_hash(anchor),
        "sampling": str((config.aggregation.references_per_prompt, config.actors.max_response_tokens, sampling)),
        "template": hashlib.sha256(b"".join(prompt.token_ids.tobytes() for prompt in shard)).hexdigest(),
        "prompt_ids": " ".join(prompt.prompt_id for prompt in shard),
    }


def samples_key(facts: Facts) -> str:
    """The key of a shard's samples, whatever scores them."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def values_key(config: Config, facts: Facts, reward_model: str) -> str:
    """The key of r_ref of a shard under a reward model."""
    aggregation = str(sorted(asdict(config.aggregation).items()))
    return reference_key({**facts, "rm_hash": model_hash(reward_model), "aggregation": aggregation})


def load_references(directory: Path, key: str) -> References | None:
    """The references kept under `key`, or None."""
    if not (path := directory / f"{key}.npz").is_file():
        return None
    with np.load(path) as stored:
        values = dict(zip(stored["prompt_ids"].tolist(), stored["values"], strict=True))
        return References(values, tuple(stored["coverage"].tolist()))


def load_samples(directory: Path, key: str, shard: Sequence[Prompt]) -> list[ReferenceSamples] | None:
    """The anchor's samples of the shard kept under `key`, or None."""
    if not (path := directory / f"{key}.jsonl").is_file():
        return None
    with path.open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    kept = zip(shard, rows, strict=True)
    return [ReferenceSamples(prompt.prompt_id, prompt.messages, tuple(row["responses"])) for prompt, row in kept]


def keep_samples(directory: Path, key: str, samples: Sequence[ReferenceSamples]) -> None:
    """One row a prompt; whole or not at all."""
    directory.mkdir(parents=True, exist_ok=True)
    rows = [{"prompt_id": sample.prompt_id, "responses": list(sample.responses)} for sample in samples]
    write_jsonl(directory / f"{key}.jsonl", rows)


def sample_shard(
    actors: Actors, publisher: Publisher, config: Config, shard: Sequence[Prompt]
) -> list[ReferenceSamples]:
    """K samples of the anchor for each prompt; the engines then hold the anchor and serve nothing."""
    publisher.anchor()
    count, progress = config.aggregation.references_per_prompt, Progress("references", len(shard), "prompts")
    found: list[ReferenceSamples] = []
    for start in range(0, len(shard), CHUNK_PROMPTS * config.actors.num):
        part = shard[start : start + CHUNK_PROMPTS * config.actors.num]
        found += _samples(part, sample_prompts(actors, part, count, config.run.seed, "references"))
        progress.advance(len(part))
    return found


def score_samples(rewarders: Rewarders, config: Config, samples: Sequence[ReferenceSamples]) -> References:
    """r_ref by the reward model in place; says what the transform will make of them."""
    progress = Progress("references scored", len(samples), "prompts")
    scored: dict[str, ScoredReference] = {}
    for start in range(0, len(samples), CHUNK_PROMPTS * config.rewarder.num):
        part = samples[start : start + CHUNK_PROMPTS * config.rewarder.num]
        scored.update(_score(rewarders, part))
        progress.advance(len(part))
    z = np.concatenate([reference.z for reference in scored.values()])
    coverage = np.concatenate([reference.covered for reference in scored.values()]).mean(0)
    for line in describe(
        z, coverage, term_names(asdict(config.aggregation), config.rewarder.objectives), config.aggregation
    ):
        say(f"  {line}")
    return References({name: reference.value for name, reference in scored.items()}, tuple(coverage.tolist()))


def describe(z: FloatArray, coverage: FloatArray, terms: Sequence[str], settings: AggregationConfig) -> list[str]:
    """How r_ref lies among the anchor's samples z [N, M] by its coverage of samples left out [M], and a warning for each term
    that the transform does not bend."""
    shares = ", ".join(f"{share:.2f} ({term})" for term, share in zip(terms, coverage, strict=True))
    lines = [
        f"r_ref is at or above {shares} of the anchor's {len(z)} samples, each held against the others of its prompt; "
        f"aggregation.quantile is {settings.quantile:g}"
    ]
    warnings = [affine_warning(torch.from_numpy(z[:, m])) for m in range(len(terms))]
    return lines + [f"warning: term {t}: {text}" for t, text in zip(terms, warnings, strict=True) if text]


def sample_prompts(
    actors: Actors, prompts: Sequence[Prompt], num_responses: int, seed: int, purpose: str
) -> list[list[Rollout]]:
    """num_responses for each prompt by the weights in place, dealt to the engines; seeds depend on the prompt's id and the
    purpose alone, and the prefix cache is not shared with another purpose."""
    deal = max(1, -(-len(prompts) // len(actors)))
    parts = [prompts[start : start + deal] for start in range(0, len(prompts), deal)]
    asked = [(part, num_responses, [_seed(purpose, p, seed) for p in part], purpose) for part in parts]
    return [rollouts for answer in actors.sample(asked) for rollouts in answer]


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


def _score(rewarders: Rewarders, samples: Sequence[ReferenceSamples]) -> dict[str, ScoredReference]:
    deal = max(1, -(-len(samples) // len(rewarders)))
    parts = [samples[start : start + deal] for start in range(0, len(samples), deal)]
    merged: dict[str, ScoredReference] = {}
    for values in rewarders.score_references(parts):
        merged.update(values)
    return merged


def keep_references(directory: Path, key: str, references: References) -> None:
    """Whole or not at all."""
    values = references.values
    with written_aside(directory / f"{key}.npz") as aside:
        np.savez(
            aside,
            prompt_ids=np.array(list(values)),
            values=np.stack(list(values.values())),
            coverage=np.array(references.coverage),
        )
