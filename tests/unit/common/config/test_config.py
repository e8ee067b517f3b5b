"""The configuration: every file in configs/ loads, and each mistake is named with what to write instead."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.config.config import Config
from common.config.file import BASE, ConfigError, differing_keys, load_config, read_saved, save_config, to_dict

CONFIGS = sorted(BASE.parent.glob("*.yaml"))
VALID = ("aggregation.kind=final_score",)
ADAPTS = ("adaptation.when=iteration",)
BASELINE = "learner.reward_model.baseline=true"
VERBOSE = ("aggregation.kind=grouped", "rewarder.objectives=[x,long]", "learner.reward_model.verbosity=long")
WEIGHTED = ("aggregation.kind=weighted_sum", "rewarder.objectives=[a, b]")


@pytest.fixture
def write(tmp_path: Path):
    def write_file(text: str, name: str = "run.yaml") -> Path:
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return write_file


def problems(path: Path, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config(path, [*VALID, *overrides])
    return str(caught.value).splitlines()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_config_in_the_repository_loads(path: Path) -> None:
    overrides = VALID if path == BASE else ()  # base.yaml groups nothing: a run names its own objectives
    assert isinstance(load_config(path, overrides), Config)


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("learner.rank", "key learner.rank; the nearest valid key is learner.ranks"),
        ("learner.sft.epoch", "key learner.sft.epoch; the nearest valid key is learner.sft.epochs"),
        ("actors.thread", "key actors.thread; the nearest valid key is actors.threads"),
        ("actors.groups_per_step", "key actors.groups_per_step; the nearest valid key is learner.groups_per_step"),
        ("max_staleness", "key max_staleness; the nearest valid key is iteration.max_staleness"),
        ("stage", "key stage; the nearest valid key is stages"),
        ("lerner.ranks", "section lerner; the nearest valid section is learner"),
        ("rewarders.num", "section rewarders; the nearest valid section is rewarder"),
        ("learner.stf.epochs", "section learner.stf; the nearest valid section is learner.sft"),
    ],
)
def test_a_mistyped_name_is_answered_with_the_nearest_one(key: str, near: str) -> None:
    assert problems(BASE, f"{key}=1") == [f"unknown {near} (all keys: configs/base.yaml)"]


def test_a_section_with_a_single_value_is_named(write) -> None:
    found = problems(write("policy: gpt\niteration:\n"))
    assert found == [
        "policy is a section, got a single value; set its keys instead, such as policy.model",
        "iteration is a section, got a single value; set its keys instead, such as iteration.num",
    ]


def test_all_problems_come_at_once() -> None:
    found = problems(BASE, "iteration.max_staleness=9", "policy.dtype=float64", "stages=[fly]", "learner.ranks=0")
    assert found == [
        "policy.dtype is 'float64'; it must be one of float32, bfloat16",
        "learner.ranks is 0; it must be between 1 and 10000",
        "iteration.max_staleness is 9; it must be between 0 and 8",
        "stages has 'fly'; the stages are sft, collect, preferences, reward_model, iterate, evaluate, export, report",
    ]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("aggregation.kind=grouped",), "aggregation.groups is empty"),
        (("aggregation.kind=grouped", "aggregation.groups={a: [x]}"), "'x', which is not in rewarder.objectives"),
        (("aggregation.kind=grouped", "aggregation.groups={a: [x], b: [x]}", "rewarder.objectives=[x]"), "'x' twice"),
        (("aggregation.kind=weighted_sum",), "aggregation.weights is {}; give at least one"),
        ((*WEIGHTED, "aggregation.weights={a: 0}"), "aggregation.weights is {'a': 0.0}; give at least one"),
        ((*WEIGHTED, "aggregation.weights={a: 1, x: 1}"), "'x', which is not in rewarder.objectives"),
        ((*WEIGHTED, "aggregation.weights={a: .nan}"), "aggregation.weights has nan for 'a'"),
        ((BASELINE, "rewarder.model=m", "data.preferences=p"), "baseline is true but rewarder.model is 'm'"),
        ((BASELINE, "stages=[reward_model]"), "baseline is true but there are no pairs"),
        (
            (BASELINE, "learner.reward_model.stage_1=ridge", "learner.reward_model.gate_steps=0"),
            "as many updates as the gate, and gate_steps is 0",
        ),
        (("learner.reward_model.lora_rank=0",), "lora_rank is 0; it must be between 1 and 1024, or null"),
        (
            ("learner.reward_model.patience=2", "learner.reward_model.epochs=9", "learner.reward_model.stage_1=ridge"),
            "patience is 2, but stage_1: ridge fits heads in closed form",
        ),
        (("learner.reward_model.patience=2", "learner.reward_model.epochs=2"), "raise epochs above 2"),
        (
            ("learner.reward_model.lora_rank=8", "learner.reward_model.stage_1=ridge"),
            "lora_rank is 8, but stage_1: ridge leaves the backbone as it is",
        ),
        (
            ("learner.preferences.train=heds",),
            "learner.preferences.train is 'heds'; it must be one of heads, lora, full",
        ),
        (("learner.preferences.members=1",), "learner.preferences.members is 1; it must be between 2 and 1000"),
        (
            ("learner.preferences.members=9", "learner.preferences.folds=4"),
            "members must be a multiple of folds, so that every pair is left out equally often: use 8 or 12 members",
        ),
        (
            ("learner.preferences.members=3", "learner.preferences.folds=5"),
            "so that every pair is left out equally often: use 10 members",
        ),
        (
            ("learner.preferences.members=5", "learner.preferences.folds=5"),
            "each pair has one member's opinion and no standard deviation; use at least 10 members",
        ),
        (
            ("learner.preferences.keep_models=true", "learner.preferences.train=full"),
            "they start from different heads, whose backbones do not average (docs/preferences.md); set vary_seed: false",
        ),
        (
            ("data.strengths=s.jsonl", "stages=[preferences]"),
            "data.strengths is 's.jsonl', but stage preferences makes the strengths of this run",
        ),
        (
            ("learner.reward_model.stage_1=lasso",),
            "learner.reward_model.stage_1 is 'lasso'; it must be one of regression",
        ),
        (("learner.reward_model.verbosity=long",), "'long', which is not in rewarder.objectives"),
        (
            (*VERBOSE, "aggregation.groups={a: [x, long]}"),
            "aggregation.groups has 'long', the learner.reward_model.verbosity, which debiasing makes 0",
        ),
        (("rewarder.preference=p",), "rewarder.preference is 'p', which is not in rewarder.objectives"),
        (("rewarder.programs={p: 'm:f'}",), "rewarder.programs names 'p', which is not in rewarder.objectives"),
        (
            ("rewarder.preference=p", "rewarder.programs={p: 'm:f'}", "rewarder.objectives=[p]"),
            "'p' also has a program",
        ),
        (ADAPTS, "adaptation.when is iteration but there is no judge"),
        ((*ADAPTS, "stages=[iterate]"), "there are no original pairs, on which a candidate must not get worse"),
        ((*ADAPTS, "stages=[iterate]", "adaptation.tier=lora"), "adaptation.tier is lora but there are no ratings"),
        ((*ADAPTS, *WEIGHTED, "aggregation.weights={a: 1}"), "aggregation.kind weighted_sum has no gate"),
        ((*ADAPTS, "aggregation.kind=ensemble"), "aggregation.kind ensemble has no gate; use adaptation.tier: lora"),
        ((*ADAPTS, "adaptation.evidence_pairs=50"), "a round has at most 50 pairs of evidence"),
        ((*ADAPTS, "adaptation.tier=full", "adaptation.meta.second_order=exact"), "no second derivative here"),
        ((*ADAPTS, "adaptation.when=drift", "judge.file=labels.jsonl"), "who answer later than a look"),
        ((*ADAPTS, "adaptation.select=disagreement"), "adaptation.ensemble is null"),
        (
            (*ADAPTS, "adaptation.labels=ratings", "adaptation.tier=gate"),
            "tier gate leaves every objective's head as it is",
        ),
        ((*ADAPTS, "adaptation.labels=both", "adaptation.method=none"), "method none is fitted on no labels"),
        ((*ADAPTS, "adaptation.labels=both", "rewarder.objectives=[]"), "nobody knows what to rate"),
        ((*ADAPTS, "adaptation.batch_older=4"), "batch_older is 4 but fit_rounds is 1"),
        ((*ADAPTS, "adaptation.patience=2", "adaptation.method=none"), "method none has none; set patience: null"),
        ((*ADAPTS, "adaptation.patience=2", "adaptation.zero_stage=3"), "use zero_stage: 2"),
        (("judge.endpoint.rubric=rate it",), "judge.endpoint.rubric has no {prompt}, {response}, {objectives}"),
        ((*ADAPTS, "adaptation.when=drift", "adaptation.drift.signal=disagreement"), "adaptation.ensemble is null"),
        ((*ADAPTS, "iteration.steps=1"), "an iteration's end sees 64 groups"),
        (
            (*ADAPTS, "iteration.steps=21"),
            "sees 64 groups, those since the oldest checkpoint kept, of which half are evidence); lower it to 32",
        ),
        ((*ADAPTS, "checkpoint.every_steps=1", "adaptation.min_pairs=65"), "sees 128 groups"),
        (("judge.model=m", "judge.file=a.jsonl"), "judge.model and judge.file are set; the rounds have one judge"),
        (
            ("judge.endpoint.url=http://h/v1", "judge.endpoint.model=m", "judge.file=a.jsonl"),
            "judge.endpoint.url and judge.file are set",
        ),
        (("judge.revision=abc",), "judge.revision is set without judge.model"),
        (("judge.file=answers.csv",), "judge.file is 'answers.csv'; it must be a .jsonl file"),
        (("judge.endpoint.url=http://h/v1",), "judge.endpoint needs both url and model"),
        (("judge.endpoint.model=m",), "judge.endpoint needs both url and model"),
        (("judge.endpoint.url=h:8000",), "judge.endpoint.url is 'h:8000'; it must be like http://host:8000/v1"),
        (("judge.endpoint.url=http://[h/v1",), "judge.endpoint.url cannot be read"),
        (("judge.endpoint.key_env=A-B",), "judge.endpoint.key_env must be the name of an environment variable"),
        (("judge.endpoint.instruction=Which of {first} and {second}?",), "judge.endpoint.instruction has no {prompt}"),
        (("judge.num=0",), "judge.num is 0; it must be between 1"),
        (
            (*ADAPTS, "judge.file=a.jsonl", "adaptation.when=drift"),
            "adaptation.drift.signal accuracy asks the judge at every look, and people (judge.file) answer later",
        ),
        (("learner.ranks=3",), "not a multiple of learner.ranks 3"),
        (("learner.importance_cap=0.5",), "learner.importance_cap is 0.5; it must be between 1 and 1000000, or null"),
        (("redis.capacity=100",), "below the window of 128 groups; raise it to 128"),
        (("export.push_to_hub=name",), "export.push_to_hub is 'name'; it must be null or owner/name"),
        (("export.token_env=A-B",), "export.token_env must be the name of an environment variable"),
    ],
)
def test_keys_that_contradict_one_another(overrides: tuple[str, ...], words: str) -> None:
    assert any(words in line for line in problems(BASE, *overrides))


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("actors.num=many", "actors.num: Value 'many'"),
        ("actors.num=[", "not valid YAML"),
        ("actors.num", "not of the form key=value"),
        ("run.name=${oc.env:NOT_SET_ANYWHERE}", "run.name: "),
    ],
)
def test_a_value_of_the_wrong_kind_names_its_key(override: str, words: str) -> None:
    assert words in "\n".join(problems(BASE, override))


def test_a_token_in_the_configuration_is_refused_and_not_shown() -> None:
    (found,) = problems(BASE, "export.token_env=hf_secretsecret")
    assert "export.token_env must be the name" in found and "secret" not in found


@pytest.mark.parametrize("key", ["sk-secretsecret", "sk_secretsecret", "hf_secretsecret"])
def test_a_key_of_the_judge_in_the_configuration_is_refused_and_not_shown(key: str) -> None:
    (found,) = problems(BASE, f"judge.endpoint.key_env={key}")
    assert "judge.endpoint.key_env must be the name" in found and "secret" not in found
    url = f"http://user:{key}@host/v1"
    (found,) = problems(BASE, f"judge.endpoint.url={url}", "judge.endpoint.model=m")
    assert "judge.endpoint.url holds a user or a password" in found and "secret" not in found


def test_the_judge_of_the_rounds_comes_before_the_one_of_collect_and_evaluate() -> None:
    functions = [*VALID, *ADAPTS, "judge.function=a:b", "judge.labeler=a:c"]
    endpoint = ["judge.endpoint.url=http://h/v1", "judge.endpoint.model=m"]
    kinds = {"model": ["judge.model=m"], "endpoint": endpoint, "file": ["judge.file=a.jsonl"], "labeler": []}
    for kind, keys in kinds.items():
        assert load_config(BASE, [*functions, *keys]).judge.compares == kind
    assert load_config(BASE, VALID).judge.compares is None
    assert load_config(BASE, [*VALID, *ADAPTS, "judge.file=a.jsonl"]).judge.compares == "file"


def test_weights_are_numbers_and_may_be_negative() -> None:
    config = load_config(BASE, [*WEIGHTED, "aggregation.weights={a: 1, b: -0.5}"])
    assert config.aggregation.weights == {"a": 1.0, "b": -0.5}
    assert load_config(BASE, VALID).aggregation.weights == {}
    assert "aggregation.weights" in problems(BASE, "aggregation.weights={a: much}")[0]


def test_adaptation_with_a_judge_and_original_pairs_is_allowed_and_never_needs_neither() -> None:
    judged = [*VALID, *ADAPTS, "judge.function=a:b"]
    assert load_config(BASE, [*judged, "iteration.steps=25"]).adaptation.enabled  # of 25 steps, 5 are after step 20
    config = load_config(BASE, judged)
    assert config.adaptation.enabled
    assert not load_config(BASE, [*VALID, "adaptation.min_pairs=1000", "stages=[iterate]"]).adaptation.enabled


def test_later_layers_win(write) -> None:
    write("run: {seed: 1, name: one}\nactors: {num: 2}\n", "first.yaml")
    path = write("base: first.yaml\nrun: {seed: 2}\n")
    config = load_config(path, [*VALID, "actors.num=3"])
    assert (config.run.name, config.run.seed, config.actors.num) == ("one", 2, 3)


def test_a_circular_base_is_refused(write) -> None:
    write("base: run.yaml\n", "other.yaml")
    assert "run.yaml -> other.yaml" in problems(write("base: other.yaml\n"))[0]


@pytest.mark.parametrize(("text", "words"), [("- 1\n", "mapping of sections"), ("a: [", "not valid YAML")])
def test_files_that_are_no_configuration(write, text: str, words: str) -> None:
    assert words in problems(write(text))[0]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert "no such configuration file" in problems(tmp_path / "none.yaml")[0]


def test_what_was_saved_differs_in_what_was_changed(tmp_path: Path) -> None:
    save_config(load_config(BASE, VALID), tmp_path / "config.yaml")
    saved = read_saved(tmp_path / "config.yaml")
    assert differing_keys(to_dict(load_config(BASE, VALID)), to_dict(saved.config)) == []
    changed = load_config(BASE, [*VALID, "run.seed=7", "learner.sft.epochs=2"])
    assert differing_keys(to_dict(changed), to_dict(saved.config)) == ["learner.sft.epochs", "run.seed"]
    assert (saved.added, saved.gone) == ((), ())
