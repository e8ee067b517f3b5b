"""The model cards: a head that the Hub can read, numbers of the run's files, nothing of this machine. Made-up numbers."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from common.config.config import Config
from common.config.file import BASE, load_config, save_config
from common.metrics import StepLog
from driver.export.card_parts import hub_id, read_facts, table
from driver.export.card_policy import policy_card
from driver.export.card_reward_model import reward_model_card

NAMES = ["helpful", "harmless", "long|odd\nname"]
STAGES = "stages=[sft,collect,reward_model,iterate,evaluate,export]"


def gold(policy: str, step: int | None, mean: float) -> dict[str, Any]:
    objectives = {} if step is None else {"helpful": mean / 2, "harmless": mean}
    return {"policy": policy, "step": step, "gold": mean, "low": mean - 0.02, "high": mean + 0.02, "prompts": 8} | {
        "objectives": objectives
    }


def write_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def write_reward_model(directory: Path) -> None:
    report = {"rm/pair_accuracy": 0.711, "rm/pair_accuracy_uniform_gate": 0.722, "rm/held_out_pairs": 120.0}
    r2 = {f"rm/r2/{name}": value for name, value in zip(NAMES, (0.533, 0.125, math.nan), strict=True)}
    r2[f"rm/constant/{NAMES[2]}"] = 1.0
    fit = {"nll": 0.512, "nll_at_one": 0.634, "brier": 0.21, "brier_at_one": 0.25, "ece": 0.0512, "num_pairs": 60}
    calibration = {"temperatures": [1.25, 0.375], "reports": [fit, fit]}
    write_json(directory / "report.json", {"report": report | r2, "calibration": calibration, "held_out_prompts": 77})
    write_json(directory / "config.json", {"objectives": NAMES, "rm_version": 0, "verbosity": None})


def make_config(run_dir: Path, *overrides: str) -> Config:
    groups = "aggregation.groups={quality: [helpful], safety: [harmless]}"
    given = [f"run.dir={run_dir}", "run.name=made-up", f"rewarder.objectives={json.dumps(NAMES)}", groups, STAGES]
    data = [f"data.prompts={run_dir}/secret/prompts.jsonl", f"policy.model={run_dir}/models/base"]
    judge = ["judge.function=my.judge:ask", "judge.labeler=my.judge:label"]
    return load_config(BASE, [*given, *data, *judge, *overrides])


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """A run with every file that the cards read."""
    made = make_config(tmp_path)
    log = StepLog(made.run_dir / "metrics.jsonl")
    for step in range(8):
        log.write(
            step, {"reward/mean": -1 + step / 10, "policy/kl_sequence": 0.25 * step, "sync/max_logprob_diff": 3e-6}
        )
    rows = [gold("SFT policy", 0, 0.612), gold("iteration 1", 6, 0.734), gold("ideal answer", None, 0.991)]
    write_json(made.run_dir / "evaluation.json", rows)
    write_json(made.run_dir / "environment.json", {"versions": {"torch": "0.0-made-up"}, "git_commit": "abc123"})
    write_reward_model(made.run_dir / "rm" / "version_0")
    save_config(made, made.run_dir / "config.yaml")
    return made


def cards(config: Config, step: int = 6) -> tuple[str, str]:
    facts = read_facts(config, step)
    return policy_card(facts), reward_model_card(facts, config.run_dir / "rm" / "version_0")


def test_the_head_is_one_that_the_hub_reads(config: Config, tmp_path: Path) -> None:
    policy, reward_model = (ModelCard(text).data.to_dict() for text in cards(config))
    assert policy == {"library_name": "transformers", "pipeline_tag": "text-generation", "tags": ["iter-rlhf", "rlhf"]}
    assert reward_model == {"library_name": "iter-rlhf", "tags": ["iter-rlhf", "rlhf", "reward-model"]}
    known = make_config(tmp_path, "policy.model=some/base", "data.prompts=some/prompts:train[:5%]")
    policy, reward_model = (ModelCard(text).data.to_dict() for text in cards(known))
    assert (policy["base_model"], policy["datasets"], reward_model["base_model"]) == (
        *("some/base", ["some/prompts"], "some/base"),
    )


def test_the_gold_table_is_the_evaluation_of_the_run(config: Config) -> None:
    policy, _ = cards(config)
    assert "| SFT policy | 0.612 | 0.592 to 0.632 | 8 |" in policy
    assert "| iteration 1 (this model) | 0.734 | 0.714 to 0.754 | 8 |" in policy
    assert "| ideal answer | 0.991 | 0.971 to 1.011 | 8 |" in policy
    assert "| helpful | 0.306 | 0.367 |" in policy and "my.judge:ask" in policy


def test_numbers_end_at_the_exported_step(config: Config) -> None:
    policy, _ = cards(config)
    minus, arrow = "\N{MINUS SIGN}", "\N{RIGHTWARDS ARROW}"
    assert f"| mean reward of a step's responses | {minus}1 {arrow} {minus}0.400 |" in policy
    assert "moved 1.50 nats" in policy and f"| 3.0e{minus}6 |" in policy
    assert "| torch | 0.0-made-up |" in policy and "| iter-rlhf commit | abc123 |" in policy


def test_a_policy_that_nobody_judged_says_so(config: Config) -> None:
    (config.run_dir / "evaluation.json").unlink()
    assert "It was not judged" in cards(config)[0] and "gold" not in cards(config)[0]
    write_json(config.run_dir / "evaluation.json", [])
    assert "It was not judged" in cards(config)[0]


def test_the_reward_model_names_its_objectives_in_order_and_reports_what_was_held_out(config: Config) -> None:
    _, text = cards(config)
    rows = re.findall(r"^\| (\d) \| (.*) \| (.*) \| (.*) \|$", text, re.MULTILINE)
    assert [row[1:] for row in rows] == [
        *[("helpful", "quality", "0.533"), ("harmless", "safety", "0.125")],
        ("long\\|odd name", "", "constant"),
    ]
    assert "| pair accuracy | 0.711 |" in text and "| held-out prompts | 77 |" in text
    assert "| quality | 1.25 | 0.512 | 0.634 | 0.210 | 0.0512 | 60 |" in text
    assert "harmless (0.125)" in text and "no better than equal weights" in text


def test_a_reward_model_without_a_report_says_so(config: Config) -> None:
    (config.run_dir / "rm" / "version_0" / "report.json").unlink()
    policy, text = cards(config)
    assert "did not measure it" in text and "0.711" not in policy + text


def test_nothing_of_this_machine_is_in_a_card(config: Config, tmp_path: Path) -> None:
    for text in cards(config):
        assert str(tmp_path) not in text and "secret" not in text and "/tmp" not in text and "nan" not in text


def test_the_code_is_code_and_loads_from_where_the_model_went(config: Config, tmp_path: Path) -> None:
    pushed = make_config(tmp_path, "export.push_to_hub=some/one")
    for text, name, other in zip(cards(pushed), ("some/one", "some/one-rm"), cards(config), strict=True):
        blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
        assert blocks and all(compile(block, "card", "exec") for block in blocks)
        assert f'"{name}"' in blocks[0] and f'"{name}"' not in other
    assert "https://huggingface.co/some/one-rm" in cards(pushed)[0]


def test_every_kind_of_reward_is_described(config: Config, tmp_path: Path) -> None:
    weights = make_config(tmp_path, "aggregation.kind=weighted_sum", "aggregation.weights={helpful: 1, harmless: -0.5}")
    assert all("fixed weighted sum: helpful 1, harmless -0.5" in text for text in cards(weights))
    assert all("one gated score" in text for text in cards(make_config(tmp_path, "aggregation.kind=final_score")))
    members = cards(make_config(tmp_path, "aggregation.kind=ensemble", "aggregation.objectives=[helpful, harmless]"))
    assert all(
        "log-sigmoid of the mean less 0.5 times the variance of the members helpful, harmless" in t for t in members
    )
    given = cards(make_config(tmp_path, "rewarder.model=some/rm"))[1]
    assert "| start | some/rm; calibrated, not trained |" in given and "base_model: some/rm" in given


@pytest.mark.parametrize("name", [None, "tests/unit", "/a/b", "./a/b", "~/a", "a", "a/b/c", "a/b.jsonl", "some/--x"])
def test_what_is_no_name_of_the_hub(name: str | None) -> None:
    assert hub_id(name) is None


def test_a_table_keeps_its_shape() -> None:
    assert table(["a", "b"], [("x|y\nz", "<b>")]).splitlines()[2] == "| x\\|y z | &lt;b> |"
