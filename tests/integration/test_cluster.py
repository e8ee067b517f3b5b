"""driver/cluster/cluster.py and driver/record/gauges.py with a real local Ray: named roles, and a step line's way to
Prometheus."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.util import list_named_actors

from common.config.file import BASE, load_config
from common.judge import pair_item
from common.metrics import step_names
from common.types import Message
from driver.cluster.calls import Group, Place, RoleError, Roles, store
from driver.cluster.cluster import NAMESPACE, Cluster
from driver.judges.judges import model_judge
from driver.judges.label_book import LabelBook
from driver.record.gauges import Gauges
from driver.record.series import Series, series_of
from tests.integration.clerk import Clerk
from tests.scrape import scrape, scrape_until
from tests.unit.adaptation import preference, served_and_judge

OBJECTIVES = ["correct", "safe"]


def make(run: str, *overrides: str) -> Cluster:
    settings = [f"run.name={run}", "rewarder.objectives=[correct, safe]", "aggregation.kind=final_score"]
    return Cluster(load_config(BASE, [*settings, "cluster.dashboard=false", *overrides]))


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A local Ray without its dashboard: metrics are exported all the same. What else was started here is not joined."""
    started = make("watched")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ADDRESS", "127.0.0.1:1")
        assert started.start() is None
    yield started
    started.close()
    assert not ray.is_initialized()


def test_every_name_of_a_step_line_is_scraped_with_its_value_and_run(cluster: Cluster) -> None:
    cluster.gauges.write(1, dict.fromkeys(step_names(OBJECTIVES), -1.0))
    line = {name: 0.5 + index for index, name in enumerate(step_names(OBJECTIVES))}
    cluster.gauges.write(2, {**line, "policy/loss": math.nan, "sync/step_size": None, "reward/term/safety": 9.5})
    wanted = {series_of(name, OBJECTIVES): value for name, value in line.items()}
    wanted |= {Series("iter_rlhf_step"): 2.0, Series("iter_rlhf_reward_term", (("term", "safety"),)): 9.5}
    assert scrape_until(cluster.metrics_url(), "watched", lambda found: found == wanted) == wanted


@pytest.mark.slow
def test_a_value_lasts_through_a_long_step(cluster: Cluster) -> None:
    """The second series shows what the repeat is for; if it stays, Ray repeats by itself: remove the thread of Gauges."""
    url, repeated, once = cluster.metrics_url(), Gauges("long-step", []), Gauges("no-repeat", [], repeat_s=3600)
    for exported in (repeated, once):
        exported.start()
        exported.write(1, {})
    for run in ("long-step", "no-repeat"):
        scrape_until(url, run, bool)
    scrape_until(url, "no-repeat", lambda found: not found)
    assert scrape(url, "long-step") == {Series("iter_rlhf_step"): 1.0}
    repeated.close()
    once.close()


def test_a_group_of_judges_compares_pairs(cluster: Cluster, tmp_path: Path) -> None:
    _, model, tokenizer = served_and_judge(tmp_path / "policy")
    model.save(tmp_path / "judge", tokenizer)
    judged = make("judged", f"judge.model={tmp_path}/judge", "judge.num=2", "rewarder.dtype=float32")
    judged.make_judges()
    items = [pair_item((Message("user", f"w{n}"),), {}, f"w{n + 1} w2", f"w{n + 2} w1") for n in range(20)]
    bought = LabelBook(tmp_path / "labels.jsonl").buy(items, model_judge(judged.judges))
    assert bought == {item.key: preference(model, tokenizer, item) for item in items}
    alive: list[Any] = list_named_actors(all_namespaces=True)
    assert {"judged/judge-0", "judged/judge-1"} <= {actor["name"] for actor in alive}
    judged.judges.end()


@pytest.fixture
def clerks(cluster: Cluster) -> Iterator[Group[Clerk]]:
    roles = Roles("office", 300.0, reserves_cpus=False)
    group = Group(roles, [roles.make(Clerk, f"clerk-{n}", Place(0, 0), f"c{n}") for n in range(2)])
    yield group
    group.end()


def test_calls_by_the_methods_of_a_class(clerks: Group[Clerk]) -> None:
    assert clerks.all(Clerk.answer, "x", times=2) == ["c0: xx", "c1: xx"]
    assert clerks.first(Clerk.answer, "x") == "c0: x" and clerks.only([1]).first(Clerk.answer, "y") == "c1: y"
    assert clerks.deal(Clerk.answer, [("a", 1), ("b", 2), ("c", 1)]) == ["c0: a", "c1: bb", "c0: c"]
    assert clerks.all(Clerk.total, store([1, 2, 3]).argument) == [6, 6]
    pending = clerks.begin(Clerk.sleep, 0.5)
    assert not clerks.have_answered(pending, 0.01) and clerks.answers(pending) == [None, None]
    assert clerks.have_answered(pending, 0.01)


def test_a_role_has_one_arena_however_many_threads_it_has_and_so_have_its_children(
    clerks: Group[Clerk], tmp_path: Path
) -> None:
    assert clerks.first(Clerk.arenas, str(tmp_path / "arenas.xml")) == (1, "1")
    assert Clerk("here").arenas(str(tmp_path / "here.xml"))[0] > 1, "without the variable there are several"


def test_an_error_names_the_role_what_it_was_asked_and_the_real_limit(clerks: Group[Clerk]) -> None:
    with pytest.raises(RoleError, match=r"^clerk-0, clerk-1 did not answer sleep within 0\.2 s; logs are in session"):
        clerks.within(0.2).all(Clerk.sleep, 1.0)
    with pytest.raises(RoleError, match=r"^clerk-0 failed in fail: .*the reason$"):
        clerks.first(Clerk.fail)
    with pytest.raises(RoleError, match=r"^clerk-1 died during die; .*\. Dead: clerk-1$"):
        clerks.only([1]).all(Clerk.die)


def test_roles_are_named_by_their_run_and_two_runs_of_a_name_do_not_mix(cluster: Cluster) -> None:
    other, same = make("other"), make("watched")
    cluster.make_rewarders()
    other.make_rewarders()
    alive: list[Any] = list_named_actors(all_namespaces=True)
    names = {actor["name"] for actor in alive if actor["namespace"] == NAMESPACE}
    assert names == {"watched/rewarder-0", "other/rewarder-0"}
    with pytest.raises(RoleError, match=r"already has a role watched/rewarder-0.*choose another run\.name"):
        same.make_rewarders()
