"""rewarder/judge.py and its group in driver/judges/judges.py: a stronger reward model compares pairs, by its own scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from common.config.file import BASE, load_config
from common.judge import TOO_LONG, PairItem, Verdict, pair_item
from common.types import Message
from driver.cluster.doors import Judges
from driver.judges.judges import model_judge
from driver.judges.label_book import LabelBook
from rewarder.bradley_terry import load_classifier
from rewarder.judge import RewardJudge
from rewarder.layout import CheckpointError
from tests.unit.adaptation import preference, sentence, served_and_judge
from tests.unit.driver.fake_groups import group_of

REWARDER = replace(load_config(BASE, ["aggregation.kind=final_score"]).rewarder, dtype="float32", max_tokens=64)


def pairs(count: int) -> list[PairItem]:
    rng = np.random.default_rng(5)
    prompt = lambda: (Message("user", sentence(rng)),)  # noqa: E731
    return [pair_item(prompt(), {}, sentence(rng), sentence(rng) + " w1") for _ in range(count)]


def loaded(source: Path, **changes: Any) -> RewardJudge:
    judge = RewardJudge(replace(REWARDER, **changes), 1, "cpu")
    judge.load(str(source), None)
    return judge


def test_a_gated_judge_says_what_its_debiased_gated_score_says(tmp_path: Path) -> None:
    _, model, tokenizer = served_and_judge(tmp_path / "policy")
    model.reward_transform_matrix.data[1, 0] = -0.4  # a debias of its own
    model.save(tmp_path / "judge", tokenizer)
    items = pairs(30)
    found = loaded(tmp_path / "judge").compare(items)
    assert found == [Verdict(preference(model, tokenizer, item)) for item in items]
    assert {verdict.preferred for verdict in found} == {"first", "second"}


def test_a_classifier_with_one_label_judges_by_its_score(models: Path) -> None:
    items, model = pairs(10), load_classifier(models / "classifier", "float32")
    tokenizer = AutoTokenizer.from_pretrained(models / "classifier")
    assert loaded(models / "classifier").compare(items) == [
        Verdict(preference(model, tokenizer, item)) for item in items
    ]


def test_a_pair_is_judged_alike_in_any_company(models: Path) -> None:
    judge, items = loaded(models / "gated"), pairs(12)
    together = judge.compare(items)
    assert together == [judge.compare([item])[0] for item in items]


def test_equal_scores_are_a_tie(models: Path) -> None:
    judge = loaded(models / "gated")
    judge._model.value.regression_layer.weight.data.zero_()
    assert judge.compare(pairs(2)) == [Verdict("tie")] * 2


def test_a_pair_that_is_too_long_for_the_judge_is_a_tie_and_says_so(models: Path) -> None:
    long = pair_item((Message("user", "w1"),), {}, "w2", "w3 " * 80)
    short = pairs(1)[0]
    assert [verdict.why for verdict in loaded(models / "gated").compare([long, short])] == [TOO_LONG, ""]


def test_a_judge_whose_scores_are_no_numbers_fails(models: Path) -> None:
    judge = loaded(models / "gated")
    judge._model.value.regression_layer.weight.data.fill_(torch.nan)
    with pytest.raises(ValueError, match="not finite"):
        judge.compare(pairs(1))


def test_a_policy_is_no_judge(models: Path) -> None:
    with pytest.raises(CheckpointError):
        loaded(models / "policy")


class FakeJudges(Judges):
    """Judges that prefer the first response; the second call to the judge of number `dies` is its last."""

    def __init__(self, count: int, dies: int | None = None):
        super().__init__(group_of(count))
        self.calls, self._dies = list[tuple[int, int]](), dies

    def compare(self, parts: Sequence[Sequence[PairItem]]) -> list[list[Verdict]]:
        assert len(parts) <= len(self)  # nobody is asked while it still answers
        for judge, items in enumerate(parts):
            if judge == self._dies and any(judge == before for before, _ in self.calls):
                raise RuntimeError("judge died")
            self.calls.append((judge, len(items)))
        return [[Verdict("first") for _ in items] for items in parts]


@pytest.mark.parametrize(
    ("count", "judges", "calls"),
    [
        (3, 1, [(0, 3)]),
        (3, 2, [(0, 2), (1, 1)]),
        (40, 2, [(0, 16), (1, 16), (0, 8)]),
        (1, 3, [(0, 1)]),
    ],
)
def test_the_pairs_are_dealt_over_the_group(
    tmp_path: Path, count: int, judges: int, calls: list[tuple[int, int]]
) -> None:
    group, items = FakeJudges(judges), pairs(count)
    bought = LabelBook(tmp_path / "labels.jsonl").buy(items, model_judge(group))
    assert group.calls == calls and list(bought) == [item.key for item in items]


def test_a_judge_that_dies_loses_no_answer_that_came(tmp_path: Path) -> None:
    path, items = tmp_path / "labels.jsonl", pairs(40)
    with pytest.raises(RuntimeError, match="judge died"):
        LabelBook(path).buy(items, model_judge(FakeJudges(2, dies=0)))
    assert len(LabelBook(path)) == 32
    group = FakeJudges(2)
    LabelBook(path).buy(items, model_judge(group))
    assert sum(count for _, count in group.calls) == 8
