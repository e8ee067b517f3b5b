"""The model card of export/policy. Every number comes from the run's files. Called by driver/export/stage.py."""

from __future__ import annotations

import math

from huggingface_hub import ModelCardData

from common.config.config import Config
from driver.export.card_parts import (
    LICENCE,
    TAGS,
    Facts,
    aggregation_settings,
    bullets,
    card,
    code,
    hub_id,
    repo_name,
    source,
    table,
    versions,
)
from driver.report.html import first_to_last, fixed, number
from driver.report.records import NAN, Gold, RunFiles

CURVES = {
    "reward/mean": "mean reward of a step's responses",
    "policy/kl_sequence": "KL to the frozen reference, nats per response",
    "policy/entropy": "entropy, nats per token",
    "rollout/response_tokens": "tokens per response",
    "rollout/truncated_frac": "share of responses that hit the length limit",
}
POLICY_CODE = """
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{name}")
model = AutoModelForCausalLM.from_pretrained("{name}", dtype="auto")
turns = [{{"role": "user", "content": "..."}}]
prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
answer = model.generate(**prompt, max_new_tokens={tokens})
print(tokenizer.decode(answer[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True))
"""
VLLM_CODE = """
from vllm import LLM, SamplingParams

llm = LLM("{name}")
turns = [{{"role": "user", "content": "..."}}]
print(llm.chat(turns, SamplingParams(max_tokens={tokens}, temperature={temperature:g}))[0].outputs[0].text)
"""


def policy_card(facts: Facts) -> str:
    """README.md of export/policy."""
    config, name = facts.config, repo_name(facts.config, 0, "export/policy")
    values = {"name": name, "tokens": config.actors.max_response_tokens, "temperature": config.actors.temperature}
    head = ModelCardData(
        base_model=hub_id(config.policy.model),
        datasets=[found for found in (hub_id(config.data.prompts), hub_id(config.data.demonstrations)) if found]
        or None,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=TAGS,
    )
    parts = [
        f"# {config.run.name}: policy",
        f"A language model after {facts.step} steps of online iterative RLHF with iter-rlhf: it was trained on its own "
        "samples, scored by a reward model with named objectives" + _where_reward_model(config) + ".",
        "## How to load it\n\n"
        + code(POLICY_CODE.format(**values))
        + "\n\nWith vLLM:\n\n"
        + code(VLLM_CODE.format(**values)),
        "## How good it is\n\n" + _gold(facts),
        "## How it was trained\n\n" + table(["setting", "value"], _policy_settings(config)),
        "## The run in numbers\n\n" + _curves(facts.files),
        "## Limits\n\n" + bullets(_policy_limits(facts)),
        versions(facts),
    ]
    return card(head, parts)


def _where_reward_model(config: Config) -> str:
    given = None if "reward_model" in config.stages else hub_id(config.rewarder.model)
    repo = given or repo_name(config, 1, "")  # one that the Hub has is not exported
    return f" ([{repo}](https://huggingface.co/{repo}))" if repo else ""


def _policy_settings(config: Config) -> list[tuple[str, object]]:
    learner, actors, iteration = config.learner, config.actors, config.iteration
    start = hub_id(config.policy.model) or "a model that the run was given as files"
    sft = f", then fine-tuned on {source(config.data.demonstrations)}" if "sft" in config.stages else ""
    clip = f"ratio clip {1 - learner.clip_low:g} to {1 + learner.clip_high:g}, gradient norm {learner.grad_clip:g}"
    return [
        ("start", start + sft),
        ("prompts", source(config.data.prompts)),
        ("iterations", f"{iteration.num} of {iteration.steps} steps, start of each: {iteration.policy_start}"),
        (
            "step",
            f"{learner.groups_per_step} prompts x {actors.responses_per_prompt} responses, {learner.num_updates} update",
        ),
        ("sampling", f"temperature {actors.temperature:g}, at most {actors.max_response_tokens} tokens"),
        *aggregation_settings(config),
        ("truncation penalty", f"{config.rewarder.truncation_penalty:g}"),
        ("optimizer", f"AdamW, learning rate {learner.learning_rate:g}, {clip}"),
        ("KL to the reference", f"{learner.kl_coef:g} ({learner.kl_estimator})"),
        ("staleness", f"at most {iteration.max_staleness} step(s)"),
        (
            "precision",
            f"float32 parameters, bfloat16 passes: {_passes(learner.autocast)}; saved in {config.policy.dtype}",
        ),
        ("seed", config.run.seed),
    ]


def _passes(autocast: bool | None) -> str:
    """Whether trained passes were in bfloat16, as far as the configuration says it."""
    return "where the hardware multiplies bfloat16" if autocast is None else ("yes" if autocast else "no")


def _gold(facts: Facts) -> str:
    if not (facts.files.evaluated and facts.files.golds):
        return (
            "It was not judged: the run has no judge, no held-out prompts or no evaluation yet. That its reward rose says "
            "only that it learned what the reward model likes."
        )
    golds, judge = facts.files.golds, facts.config.judge.function
    rows = [(_marked(gold, facts.step), *_interval(gold), gold.prompts) for gold in golds]
    judged = f"Judged by `{judge}` on held-out prompts, one response each; the intervals are 95 % bootstrap ones."
    return f"{judged}\n\n{table(['policy', 'mean gold', '95 % interval', 'prompts'], rows)}{_by_objective(facts)}"


def _marked(gold: Gold, step: int) -> str:
    return f"{gold.policy} (this model)" if gold.step == step else gold.policy


def _interval(gold: Gold) -> tuple[str, str]:
    return fixed(gold.gold.mean), f"{fixed(gold.gold.low)} to {fixed(gold.gold.high)}"


def _by_objective(facts: Facts) -> str:
    """What the judge says of each objective, at the start and now; empty where it said nothing of this step."""
    by_step = {gold.step: gold.objectives for gold in facts.files.golds}
    if 0 not in by_step or facts.step not in by_step or not by_step[facts.step]:
        return ""
    before, now = by_step[0], by_step[facts.step]
    rows = [(name, fixed(before[name].mean) if name in before else "", fixed(now[name].mean)) for name in now]
    return "\n\n" + table(["judged objective", "SFT policy", "this model"], rows)


def _curves(files: RunFiles) -> str:
    rows = [(words, first_to_last(files.series(name))) for name, words in CURVES.items()]
    differences = [value for value in files.series("sync/max_logprob_diff") if math.isfinite(value)]
    rows.append(("largest difference of engine and learner on the probe, nats", number(max(differences, default=NAN))))
    return table(["measured at each step", "first and last"], rows)


def _policy_limits(facts: Facts) -> list[str]:
    config, report = facts.config, facts.files.reward_model
    found = ["One run with one seed: intervals, where there are any, are over prompts and say nothing of other seeds."]
    if report is not None:
        found.append(
            f"Its reward model orders {fixed(report.accuracy.mean)} of {report.pairs:.0f} held-out pairs as their labels do; "
            "where it errs, the policy has learned the error."
        )
    found.append(
        f"It has moved {number(facts.files.last('policy/kl_sequence'))} nats per response from its reference; what was not "
        "in the reward may have become worse."
    )
    found.append("No benchmark of safety, facts or other languages is part of a run; test it for your use.")
    if config.policy.dtype != "float32":
        found.append(f"Trained in float32 and rounded to {config.policy.dtype} when it was saved.")
    return [*found, LICENCE]
