"""Gold: what the judge says of the policy's samples on held-out prompts, before training and after each iteration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from common.config.config import Config
from common.data.data import write_jsonl
from common.judge import JudgeItem, ask_judge, load_function
from common.metrics import read_rows
from common.types import Prompt, Rollout
from driver.cluster.doors import Actors
from driver.loop.references import sample_prompts


def judge_policy(actors: Actors, config: Config, prompts: Sequence[Prompt], step: int, directory: Path) -> float | None:
    """Samples one response to each held-out prompt with the weights in place, judges them, keeps the rows; mean gold.
    None without a judge or held-out prompts."""
    if config.judge.function is None or not prompts:
        return None
    judge = load_function(config.judge.function)
    sampled = sample_prompts(actors, prompts, 1, config.run.seed, f"evaluate-{step}")
    rows: list[dict[str, object]] = []
    for prompt, (rollout,) in zip(prompts, sampled, strict=True):
        item = JudgeItem(prompt.messages, prompt.meta, rollout.response, rollout.finish_reason)
        rows.append(_row(prompt, rollout, ask_judge(judge, item)))
    directory.mkdir(parents=True, exist_ok=True)
    write_jsonl(directory / f"step_{step}.jsonl", rows)
    return mean_gold(rows)


def _row(prompt: Prompt, rollout: Rollout, scores: dict[str, float]) -> dict[str, object]:
    """One line of evaluations/step_N.jsonl; logprob is of the whole response, in nats, as it was sampled."""
    return {
        "prompt": prompt.messages[-1].content,
        "messages": [asdict(message) for message in prompt.messages],
        "response": rollout.response,
        "token_ids": rollout.token_ids.tolist(),
        "logprob": float(rollout.rollout_logprobs.sum(dtype=np.float64)),
        "finish_reason": rollout.finish_reason,
        "meta": prompt.meta,
        "scores": scores,
    }


def mean_gold(rows: Sequence[dict[str, object]]) -> float:
    """The mean gold score of judged responses."""
    return float(np.mean(golds(rows)))


def golds(rows: Sequence[dict[str, object]]) -> list[float]:
    """The gold score of each judged response."""
    return [float(row["scores"]["gold"]) for row in rows]  # type: ignore[index]


def bootstrap_interval(values: Sequence[float], samples: int, seed: int) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean."""
    generator, array = np.random.default_rng(seed), np.asarray(values)
    means = array[generator.integers(0, len(array), (samples, len(array)))].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def gold_table(config: Config, directory: Path, ideal: Sequence[float] | None) -> list[dict[str, object]]:
    """One row for the SFT policy, each iteration, and the scripted ideal where the judge has one: mean gold with its 95 %
    bootstrap interval and the mean of each objective."""
    table: list[dict[str, object]] = []
    for iteration in range(config.iteration.num + 1):
        step = iteration * config.iteration.steps
        if not (path := directory / f"step_{step}.jsonl").is_file():
            continue
        rows = read_rows(path)
        name = "SFT policy" if iteration == 0 else f"iteration {iteration}"
        table.append({"policy": name, "step": step, **_interval(golds(rows), config), "objectives": _means(rows)})
    if ideal:
        table.append({"policy": "ideal answer", "step": None, **_interval(ideal, config), "objectives": {}})
    return table


def _means(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The mean of each objective over the responses that the judge gave it to: not every prompt asks for each."""
    names = dict.fromkeys(key for row in rows for key in row["scores"] if key != "gold")
    return {key: float(np.mean([row["scores"][key] for row in rows if key in row["scores"]])) for key in names}


def _interval(values: Sequence[float], config: Config) -> dict[str, object]:
    low, high = bootstrap_interval(values, config.evaluate.bootstrap_samples, config.run.seed)
    return {"gold": float(np.mean(values)), "low": low, "high": high, "prompts": len(values)}


def format_table(table: Sequence[dict[str, object]]) -> str:
    """The gold table as text, and whether the last iteration is above the start outside the intervals."""
    lines = [f"{'policy':<14} {'mean gold':>9}   95 % interval     prompts"]
    for row in table:
        lines.append(
            f"{row['policy']:<14} {row['gold']:>9.3f}   [{row['low']:.3f}, {row['high']:.3f}]    {row['prompts']}"
        )
    return "\n".join(lines)
