"""The report on a synthetic run: every section, escaping, absent files, nulls, determinism. All numbers are made up."""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml

from common.metrics import StepLog, step_names
from driver.report.charts import tick
from driver.report.html import first_to_last, number
from driver.report.page import write_report
from driver.report.samples import spread

OBJECTIVES = ("helpful", "harmless")
TERMS = ("quality", "safety")
ITERATIONS, STEPS = 2, 6
EVIL = "<script>alert('x')</script> & \"quoted\""
SECTIONS = ["gold", "curves", "objectives", "terms", "gold-objectives"]
SECTIONS += ["reward-model", "samples", "ledger", "settings"]
VOID = {"meta", "br", "path", "rect", "use", "line"}


class Balanced(HTMLParser):
    """Fails on a tag that is closed out of order; collects tags and attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


def parse(page: str) -> Balanced:
    parser = Balanced()
    parser.feed(page)
    assert parser.open == []
    return parser


def step_values(step: int) -> dict[str, Any]:
    return {
        "reward/mean": -1.0 + 0.05 * step,
        "reward/gated_score": 2.0 + 0.1 * step,
        "reward/group_std": 0.3,
        "reward/all_good": 0.2,
        "reward/saturated_frac": 0.1,
        **{f"reward/binding/{name}": 0.5 for name in TERMS},
        **{f"reward/{name}": 0.5 + 0.01 * step * k for k, name in enumerate(OBJECTIVES)},
        **{f"gate/{name}": 0.25 + 0.5 * k for k, name in enumerate(OBJECTIVES)},
        **{f"reward/term/{name}": -0.7 + 0.01 * step for name in TERMS},
        "policy/kl_sequence": 0.5 * step,
        "policy/entropy": 2.0 - 0.05 * step,
        "policy/grad_norm": 0.1,
        "rollout/response_tokens": 20.0 + step,
        "rollout/truncated_frac": 0.02,
        "rollout/tokens_per_s": 4321.0,
        "sync/max_logprob_diff": 0.0 if step == 1 else 2e-6,
        "staleness/mean": 1.0,
        "queue/dead": 0,
        "time/wait_s": 1.0,
        "time/train_s": 0.5,
        "time/step_s": 1.5,
    }


def sample(step: int, response: str) -> dict[str, Any]:
    return {
        "step": step,
        "slot": 4 * step,
        "prompt": f"synthetic prompt {step}",
        "response": response,
        "finish_reason": "stop",
        "policy_version": step - 1,
        "rm_version": 0,
        "scores": {"helpful": 0.5, "harmless": -0.25},
        "gate": {"helpful": 1.5, "harmless": 0.5},
        "terms": dict.fromkeys(TERMS, -0.7),
        "weights": dict.fromkeys(TERMS, 0.5),
        "penalty": 0.0,
        "reward": -0.7,
        "logprob": -3.0,
    }


def gold_row(policy: str, step: int | None, gold: float) -> dict[str, Any]:
    objectives = {} if step is None else {"helpful": gold, "harmless": gold}
    return {"policy": policy, "step": step, "gold": gold, "low": gold - 0.02, "high": gold + 0.02, "prompts": 8} | {
        "objectives": objectives
    }


def write_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def write_metrics(run: Path, steps: int) -> None:
    log = StepLog(run / "metrics.jsonl", step_names(OBJECTIVES))
    log.write(0, {"gold/mean": 0.6, "sync/max_logprob_diff": 1e-6, "rm/version": 0})
    for step in range(1, steps + 1):
        log.write(step, step_values(step))


def write_settings(run: Path) -> None:
    config = {
        "run": {"name": "synthetic"},
        "redis": {"url": "redis://user:secret@host:6379/0"},
        "actors": {"sync_tolerance": 1e-4},
        "aggregation": {"kind": "grouped", "groups": {"quality": ["helpful"], "safety": ["harmless"]}},
        "iteration": {"num": ITERATIONS, "steps": STEPS, "max_staleness": 1},
    }
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    write_json(run / "environment.json", {"python": "3.11", "versions": {"torch": "0.0-synthetic"}})


def write_gold(run: Path, golds: tuple[float, float, float]) -> None:
    names = ("SFT policy", "iteration 1", "iteration 2")
    rows = [gold_row(name, at * STEPS, gold) for at, (name, gold) in enumerate(zip(names, golds, strict=True))]
    write_json(run / "evaluation.json", [*rows, gold_row("ideal answer", None, 0.99)])
    log = StepLog(run / "evaluations" / "step_0.jsonl")
    for at in range(8):
        log.write(at, {"prompt": "p", "response": EVIL, "scores": {"gold": 0.6, "helpful": at / 8, "harmless": 0.5}})


def write_reward_model(run: Path) -> None:
    report = {"rm/pair_accuracy": 0.711, "rm/pair_accuracy_uniform_gate": 0.622, "rm/held_out_pairs": 120.0}
    report |= {"rm/pair_accuracy_low": 0.624, "rm/pair_accuracy_high": 0.785, "rm/pair_accuracy_length": 0.555}
    r2 = {"rm/r2/helpful": 0.533, "rm/r2/harmless": math.nan}
    fit = {"nll": 0.5, "nll_at_one": 0.6, "brier": 0.2, "brier_at_one": 0.25, "ece": 0.0512, "num_pairs": 60}
    calibration = {"temperatures": [1.25, 0.375], "reports": [fit, fit]}
    record = {"report": report | r2, "calibration": calibration, "held_out_prompts": 77}
    write_json(run / "rm" / "version_0" / "report.json", record)


def write_ledger(run: Path) -> None:
    ledger = {"cursor": "9-0", "trained": [[1, 0, 45]], "dropped": [[46, "not finite"], [47, "<b>poison</b>"]]}
    write_json(run / "checkpoints" / "step_12" / "learner.json", {"updates": 12, "ledger": ledger})
    (run / "dead_letters.jsonl").write_text(json.dumps({"slot": 47, "stage": "scored", "reason": "<i>late</i>"}) + "\n")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with every file."""
    write_metrics(tmp_path, ITERATIONS * STEPS)
    write_settings(tmp_path)
    write_gold(tmp_path, (0.6, 0.7, 0.8))
    write_reward_model(tmp_path)
    write_ledger(tmp_path)
    log = StepLog(tmp_path / "samples.jsonl")
    for step in range(1, ITERATIONS * STEPS + 1):
        log.write(step, sample(step, EVIL if step == 1 else f"synthetic response {step}"))
    return tmp_path


def report(run: Path) -> str:
    path = write_report(run, OBJECTIVES)
    assert path == run / "report.html"
    return path.read_text(encoding="utf-8")


def verdict_of(page: str) -> str:
    found = re.search(r'<p class="verdict">(.*?)</p>', page)
    assert found is not None
    return re.sub("<.*?>", "", found[1])


def test_every_section_is_there_in_order(run: Path) -> None:
    page = report(run)
    assert re.findall(r'<section id="([\w-]+)">', page) == SECTIONS
    assert "synthetic: report" in page and 'class="absent"' not in page
    assert page.count("<svg") == 14 + 2 * len(OBJECTIVES) + len(TERMS) + len(OBJECTIVES)
    for text in (
        "Gated score",
        "Entropy",
        "Weight sync",
        "Staleness",
        "ideal answer",
        "0.780 to 0.820",
        "1e\N{MINUS SIGN}4",
    ):
        assert text in page


def test_numbers_of_the_reward_model_and_the_ledger(run: Path) -> None:
    page = report(run)
    for text in ("0.711 [0.624, 0.785]", "0.555", "0.622", "0.533", "1.25", "0.375", "0.0512", "<b>77</b>"):
        assert text in page
    assert "46 trained, 2 dropped" in page and "1 \N{MULTIPLICATION SIGN} not finite" in page
    assert "1 dead-lettered" in page


def test_untrusted_text_is_escaped_and_nothing_is_loaded(run: Path) -> None:
    page = report(run)
    parsed = parse(page)
    assert "script" not in parsed.tags and {"b", "i"} & parsed.tags
    assert "&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt; &amp; &quot;quoted&quot;" in page
    assert "&lt;b&gt;poison&lt;/b&gt;" in page and "&lt;i&gt;late&lt;/i&gt;" in page
    assert all(link.startswith("#") for link in parsed.links)
    assert "url(#" in page and "url(http" not in page and "@import" not in page


def test_names_of_objectives_and_of_the_run_are_escaped(tmp_path: Path) -> None:
    name = '<img src=x onerror="y">\\1 $x$'
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"run": {"name": name}}))
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 1, f"reward/{name}": 0.5, f"reward/term/{name}": 0.5}))
    page = write_report(tmp_path, [name]).read_text(encoding="utf-8")
    assert "img" not in parse(page).tags and "&lt;img src=x" in page


def test_half_surrogates_and_long_responses_are_written(run: Path) -> None:
    StepLog(run / "samples.jsonl").write(13, sample(13, "half \ud800 " + "long " * 2000))
    assert "half ? long" in report(run) and "more characters)" in report(run)


def test_a_password_in_the_configuration_is_not_repeated(run: Path) -> None:
    page = report(run)
    assert "secret" not in page and "redis://***@host" in page


def test_same_files_give_the_same_bytes(run: Path) -> None:
    first = write_report(run, OBJECTIVES).read_bytes()
    assert write_report(run, OBJECTIVES).read_bytes() == first


def test_gold_verdicts(run: Path) -> None:
    assert "Gold rose: from 0.600 [0.580, 0.620] (SFT policy) to 0.800 [0.780, 0.820]" in verdict_of(report(run))
    write_gold(run, (0.6, 0.6, 0.61))
    assert "did not clearly change" in verdict_of(report(run)) and "intervals overlap" in verdict_of(report(run))
    write_gold(run, (0.6, 0.8, 0.5))
    gamed = verdict_of(report(run))
    assert gamed.startswith("Gold fell") and "best at 0.800" in gamed and "over-optimised" in gamed


def test_a_run_without_a_judge(run: Path) -> None:
    write_json(run / "evaluation.json", [])
    (run / "evaluations" / "step_0.jsonl").unlink()
    page = report(run)
    assert "no judge compared policies" in verdict_of(page) and verdict_of(page).startswith("The reward rose")
    assert "Nothing was judged" in page and "Not measured in this run" in page


def test_gold_before_stage_evaluate_comes_from_the_loop(run: Path) -> None:
    (run / "evaluation.json").unlink()
    page = report(run)
    assert "the rows below are the loop's" in page
    assert "<td>step 0</td>" in page and "<b>0.600</b>" in page


def test_absent_files_say_so_and_who_makes_them(tmp_path: Path) -> None:
    write_metrics(tmp_path, 12)
    page = report(tmp_path)
    parse(page)
    for name, maker in (
        ("evaluation.json", "stage evaluate"),
        ("rm/version_0/report.json", "stage reward_model"),
        ("samples.jsonl", "stage iterate"),
        ("checkpoints/step_N/learner.json", "stage iterate"),
        ("environment.json", "launch.py"),
        ("config.yaml", "launch.py"),
    ):
        assert f"{name} is absent; {maker} makes it" in page
    assert re.findall(r'<section id="([\w-]+)">', page) == SECTIONS


def test_metrics_are_needed(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_report(tmp_path, OBJECTIVES)


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_short_runs(run: Path, steps: int) -> None:
    (run / "metrics.jsonl").unlink()
    write_metrics(run, steps)
    (run / "evaluation.json").unlink()
    expected = ("No step has been trained", "one step shows no trend", "The reward rose")[steps]
    page = report(run)
    parse(page)
    assert expected in verdict_of(page)


def test_an_empty_metrics_file(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("")
    assert "No step has been trained yet" in report(tmp_path)


def test_nulls_and_nans_anywhere(run: Path) -> None:
    log = StepLog(run / "metrics.jsonl", step_names(OBJECTIVES))
    log.write(13, {})
    log.write(14, dict.fromkeys(step_values(14), math.nan))
    nothing = sample(13, "nulls") | {"reward": None, "penalty": None, "scores": {"helpful": None}, "gate": {}}
    StepLog(run / "samples.jsonl").write(13, nothing)
    write_json(run / "evaluation.json", [gold_row("SFT policy", 0, 0.6) | {"gold": None, "low": None, "high": None}])
    page = report(run)
    parse(page)
    assert "nan" not in re.sub(r"<[^>]*>", "", page[page.index("<body>") :]).lower()


def test_numbers_for_people() -> None:
    assert [number(value) for value in (0.7, 12345.6, 3.81e-6, -0.5, 299.0, 0.0)] == [
        "0.700", "12,346", "3.8e\N{MINUS SIGN}6", "\N{MINUS SIGN}0.500", "299", "0",
    ]  # fmt: skip
    assert number(math.nan) == "\N{EN DASH}"
    assert first_to_last([math.nan, 1.0, 2.5]) == "1 \N{RIGHTWARDS ARROW} 2.50"
    assert [tick(value) for value in (0.25, -1.0, 25_000.0, 1e-4)] == [
        "0.25", "\N{MINUS SIGN}1", "25k", "1e\N{MINUS SIGN}4",
    ]  # fmt: skip


def test_samples_are_spread_over_the_run() -> None:
    assert spread(list(range(100)), 3) == [0, 50, 99]  # type: ignore[arg-type, type-var]
    assert spread(list(range(2)), 3) == [0, 1]  # type: ignore[arg-type, type-var]
