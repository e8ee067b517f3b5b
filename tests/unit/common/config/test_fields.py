"""Every key's values: none without a bound, each bound held, all problems in one list, and base.yaml in step with the types."""

from __future__ import annotations

import math
import types
import typing
from operator import attrgetter
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from common.config.config import Config
from common.config.fields import Bounds, Key, keys
from common.config.file import BASE, ConfigError, load_config
from common.config.names import leaves

NUMBERS = {name: key for name, key in keys(Config).items() if key.is_number}
LOADS = ("aggregation.kind=final_score",)


def bounds_of(key: Key) -> Bounds:
    assert isinstance(key.rule, Bounds), f"{key.name} is a number without bounds; declare it with number(low, high)"
    return key.rule


def inner(key: Key) -> type:
    """int or float: the type of one number of the key."""
    hints = {key.hint, *typing.get_args(key.hint)}
    return int if int in hints else float


def written(key: Key, value: float) -> str:
    """The override that gives a key a number, alone or within a list or mapping."""
    number = {math.inf: ".inf", -math.inf: "-.inf"}.get(value, ".nan" if math.isnan(value) else repr(value))
    match typing.get_origin(key.hint):
        case origin if origin is list:
            return f"{key.name}=[{', '.join([number] * (bounds_of(key).length or 1))}]"
        case origin if origin is dict:
            return f"{key.name}={{a: {number}}}"
        case _:
            return f"{key.name}={number}"


def beyond(key: Key) -> list[float]:
    """Numbers of the key's own type just outside both ends; an open end is itself outside."""
    bounds, one = bounds_of(key), inner(key)
    if one is int:
        return [int(bounds.low) - (not bounds.above), int(bounds.high) + (not bounds.below)]
    low = bounds.low if bounds.above else math.nextafter(bounds.low, -math.inf)
    return [low, bounds.high if bounds.below else math.nextafter(bounds.high, math.inf)]


def refused(overrides: typing.Sequence[str]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config(BASE, [*LOADS, *overrides])
    return str(caught.value).splitlines()


def test_every_number_has_bounds_and_no_other_key_has() -> None:
    assert len(NUMBERS) > 120
    for name, key in keys(Config).items():
        assert isinstance(key.rule, Bounds) == (name in NUMBERS), name
    for key in NUMBERS.values():
        bounds = bounds_of(key)
        assert -math.inf < bounds.low < bounds.high < math.inf
        assert (bounds.length is not None) == (typing.get_origin(key.hint) is list), "a list of numbers has a length"


@pytest.mark.parametrize("which", ["nan", "inf", "-inf", "below", "above"])
def test_a_number_that_is_none_or_outside_is_refused_in_every_key_at_once(which: str) -> None:
    at = {"below": 0, "above": 1}.get(which)
    overrides = [written(key, float(which) if at is None else beyond(key)[at]) for key in NUMBERS.values()]
    found = refused(overrides)
    for name in NUMBERS:
        assert sum(line.startswith((f"{name} ", f"{name}: ")) for line in found) == 1, name
    assert len(found) == len(NUMBERS)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_number_within_the_bounds_is_taken_and_any_outside_is_named(data: st.DataObject) -> None:
    key = data.draw(st.sampled_from(list(NUMBERS.values())))
    bounds = bounds_of(key)
    integers = st.integers(int(bounds.low) - 10, int(bounds.high) + 10)
    value = data.draw(integers if inner(key) is int else st.floats(allow_nan=True, allow_infinity=True))
    above = value > bounds.low if bounds.above else value >= bounds.low
    below = value < bounds.high if bounds.below else value <= bounds.high
    given_value = {list: [value] * (bounds.length or 1), dict: {"a": value}}.get(typing.get_origin(key.hint), value)
    problem = key.problem(given_value)
    assert (problem is None) == (above and below)
    assert problem is None or problem.startswith(f"{key.name} ")


def test_null_is_taken_where_the_type_has_it_and_the_number_of_numbers_is_held() -> None:
    assert all(key.nullable == (types.NoneType in typing.get_args(key.hint)) for key in keys(Config).values())
    assert load_config(BASE, [*LOADS, "learner.importance_cap=null"]).learner.importance_cap is None
    assert refused(["learner.betas=[0.9]"]) == [
        "learner.betas is [0.9]; it must have 2 numbers, each at least 0 and below 1"
    ]
    assert refused(["learner.betas=[0.9, 1]"]) == [
        "learner.betas is [0.9, 1.0]; each number must be at least 0 and below 1"
    ]


def test_gradients_cannot_be_turned_round() -> None:
    assert refused(["learner.grad_clip=-1"]) == ["learner.grad_clip is -1.0; it must be above 0 and at most 1000000"]


def test_values_types_and_contradictions_come_in_one_list() -> None:
    found = refused(["learner.ranks=many", "actors.threads=0", "learner.num_updates=65", "judge.revision=abc"])
    assert [line.split()[0] for line in found] == [
        "learner.ranks:",
        "actors.threads",
        "learner.num_updates",
        "judge.revision",
    ]


def test_a_wrong_value_hides_what_only_follows_from_it() -> None:
    assert [line.split()[0] for line in refused(["learner.groups_per_step=0"])] == ["learner.groups_per_step"]


def test_base_yaml_and_the_types_have_the_same_keys() -> None:
    written_keys = [name for name, _ in leaves(yaml.safe_load(BASE.read_text()))]
    assert sorted(written_keys) == sorted(keys(Config))


def test_every_default_is_within_its_bounds() -> None:
    config = load_config(BASE, LOADS)
    for name, key in keys(Config).items():
        assert key.problem(attrgetter(name)(config)) is None


PATHS = {name: key for name, key in keys(Config).items() if key.is_path}


@pytest.mark.parametrize("name", PATHS)
def test_home_is_put_in_place_of_a_tilde(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    entry = name + (".x" if typing.get_origin(PATHS[name].hint) is dict else "")
    value = attrgetter(name)(load_config(BASE, [*LOADS, f"{entry}=~/a~b.jsonl"]))
    assert value in ("/home/me/a~b.jsonl", {"x": "/home/me/a~b.jsonl"})


def test_every_key_that_names_a_path_or_a_model_is_declared_as_one() -> None:
    named = {name for name in keys(Config) if name.endswith((".dir", ".model", ".file", "_cache", ".baseline"))}
    assert named - set(PATHS) == {"judge.endpoint.model", "learner.reward_model.baseline"}  # a server's name; yes or no
    assert {f"data.{name}" for name in ("prompts", "preferences", "strengths")} <= set(PATHS)
    assert {"adaptation.ensemble", "evaluate_rm.pairs", "evaluate_rm.rewardbench"} <= set(PATHS)


def test_interpolation_is_resolved_before_the_home_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WHERE", "~/models")
    assert load_config(BASE, [*LOADS, "policy.model=${oc.env:WHERE}/sft"]).policy.model == f"{tmp_path}/models/sft"
