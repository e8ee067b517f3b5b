"""The report on a synthetic run: every section, escaping, absent files, nulls, determinism. All numbers are made up."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from html import unescape
from pathlib import Path

import pytest
import yaml
from jinja2 import UndefinedError

from common.metrics import StepLog, step_names
from driver.report.charts import tick
from driver.report.html import first_to_last, number, render
from driver.report.page import page as page_of
from driver.report.page import write_report
from driver.report.read import read_run
from driver.report.records import Interval
from driver.report.samples import spread
from driver.report.verdict import verdict
from tests.unit.driver.report.synthetic import (
    ITERATIONS,
    OBJECTIVES,
    STEPS,
    TERMS,
    gold_row,
    sample,
    step_values,
    write_gold,
    write_json,
    write_ledger,
    write_metrics,
    write_reward_model,
    write_settings,
)
from tests.unit.pages import EVIL, parse

SECTIONS = ["gold", "curves", "objectives", "terms", "gold-objectives"]
SECTIONS += ["reward-model", "samples", "ledger", "settings"]


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
    for text in (
        "0.711 [0.624, 0.785]",
        "0.555",
        "0.622",
        "0.533",
        "1.25",
        "0.375",
        "0.0512",
        "<b>77</b>",
        ">constant<",
    ):
        assert text in page
    assert "46 trained, 2 dropped" in page and "1 \N{MULTIPLICATION SIGN} not finite" in page
    assert "1 dead-lettered" in page


def test_untrusted_text_is_escaped_and_nothing_is_loaded(run: Path) -> None:
    page = report(run)
    parsed = parse(page)
    assert "script" not in parsed.tags and {"b", "i"} & parsed.tags
    assert "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt; &amp; &#34;quoted&#34;" in page
    assert "&lt;b&gt;poison&lt;/b&gt;" in page and "&lt;i&gt;late&lt;/i&gt;" in page
    assert all(link.startswith("#") for link in parsed.links)
    assert "url(#" in page and "url(http" not in page and "@import" not in page


def test_names_of_objectives_and_of_the_run_are_escaped(tmp_path: Path) -> None:
    name = '<img src=x onerror="y">\\1 $x$'
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"run": {"name": name}}))
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 1, f"reward/{name}": 0.5, f"reward/term/{name}": 0.5}))
    page = write_report(tmp_path, [name]).read_text(encoding="utf-8")
    assert "img" not in parse(page).tags and "&lt;img src=x" in page


def test_a_tag_planted_in_any_text_stays_text(run: Path) -> None:
    found = read_run(run, [EVIL])
    assert found.reward_model is not None and found.ledger is not None
    judged, shown, model = found.golds[0], found.samples[0], found.reward_model
    parts = {EVIL: 0.5}
    gold = replace(judged, policy=EVIL, objectives={EVIL: Interval(0.5, 0.4, 0.6)})
    planted = replace(
        found,
        settings=replace(found.settings, name=EVIL),
        golds=[gold, replace(gold, step=6), replace(gold, step=None)],
        samples=[replace(shown, prompt=EVIL, finish_reason=EVIL, scores=parts, gate=parts, terms=parts, weights=parts)],
        reward_model=replace(model, r2=parts, fits=[replace(model.fits[0], term=EVIL)]),
        ledger=replace(found.ledger, dropped={EVIL: 1}),
        dead=[(EVIL, 1)],
        rows=[{"step": 1, f"reward/term/{EVIL}": 0.5, f"time/{EVIL}_s": 1.0, "time/step_s": 1.0}],
        config=EVIL,
        environment=EVIL,
    )
    page = page_of(planted)
    assert "script" not in parse(page).tags and page.count("&lt;script&gt;") >= 25


def test_a_value_that_a_template_does_not_get_is_an_error() -> None:
    with pytest.raises(UndefinedError, match="'run' is undefined"):
        render("report/templates/page.html")


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
    assert "the rows below are the loop's" in unescape(page)
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


@pytest.mark.parametrize(
    ("rewards", "errors", "change"),
    [
        ([-1.0, -0.9], [0.02, 0.02], "rose"),
        ([-1.0, -0.9], [0.03, 0.03], "unclear"),
        ([-0.9, -1.0], [0.02, 0.02], "fell"),
        ([-1.0, 1.0], [None, None], "unclear"),
        ([-1.0, 5.0, -0.9], [0.02, 0.02, 0.02], "rose"),
        ([-1.0] * 5 + [-0.95] * 5, [0.02] * 10, "rose"),
        ([-1.0] * 5 + [-0.95] * 5, [0.03] * 10, "unclear"),
    ],
)
def test_a_rise_is_one_only_outside_its_noise(
    tmp_path: Path, rewards: list[float], errors: list[float | None], change: str
) -> None:
    """Means of the first and last steps with two standard errors over groups: a rise only where these do not overlap."""
    log = StepLog(tmp_path / "metrics.jsonl")
    for step, (reward, error) in enumerate(zip(rewards, errors, strict=True), 1):
        log.write(step, {"reward/mean": reward, "reward/mean_se": error})
    found = verdict(read_run(tmp_path, OBJECTIVES)).reward
    assert found.change == change and found.size == min(5, len(rewards) // 2)
    if errors[0] is not None:
        assert found.first_error == pytest.approx(2 * errors[0] / math.sqrt(found.size))


def test_a_reward_model_that_may_be_chance_is_warned_of(run: Path) -> None:
    assert "Warning:" not in report(run)
    record = json.loads((run / "rm" / "version_0" / "report.json").read_text())
    head = {"rm/pair_accuracy_preference_head": 0.55, "rm/held_out_preference_pairs": 40.0}
    head |= {"rm/pair_accuracy_preference_head_low": 0.4, "rm/pair_accuracy_preference_head_high": 0.69}
    record["report"] |= head
    write_json(run / "rm" / "version_0" / "report.json", record)
    page = unescape(report(run))
    assert "the head of rewarder.preference orders 0.550 [0.400, 0.690] of 40 held-out pairs" in page
    assert page.count("Warning:") == 1


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_short_runs(run: Path, steps: int) -> None:
    (run / "metrics.jsonl").unlink()
    write_metrics(run, steps)
    (run / "evaluation.json").unlink()
    expected = ("No step has been trained", "one step shows no trend", "No rise of the reward is shown")[steps]
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
