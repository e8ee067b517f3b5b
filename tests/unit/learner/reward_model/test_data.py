"""learner/reward_model/data.py and calibration.py: conversations shared by ratings and pairs, splits by prompt, labels per
term."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from common.config.aggregations import AGGREGATIONS
from common.config.config import RewarderConfig
from common.config.file import BASE, load_config
from common.data.data import PreferencePair, RatedResponse, to_fields, write_jsonl
from common.data.label_sources import LabelFiles
from common.types import Message
from learner.reward_model import calibration
from learner.reward_model import data as reward_data
from learner.reward_model.data import Pair, flatten
from learner.reward_model.training import Features
from rewarder.aggregation import Aggregation, make_aggregation
from rewarder.calibrate import calibration_report, fit_temperature
from rewarder.model import GatedRewardModel
from tests.integration.models import tiny_policy

OBJECTIVES = ["good", "safe"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory):
    from transformers import AutoTokenizer

    directory = tmp_path_factory.mktemp("policy")
    tiny_policy(directory, 0)
    return AutoTokenizer.from_pretrained(directory)


def ask(text: str) -> tuple[Message, ...]:
    return (Message("user", text),)


def test_rows_that_the_model_cannot_use_are_left_out_and_counted(tmp_path: Path, tokenizer) -> None:
    good = [{"prompt": f"w{n}", "chosen": "w2 w3", "rejected": "w4"} for n in range(50)]
    bad = [{**good[0], "chosen": "w2 " * 60}, {**good[1], "chosen": "w4 "}]
    said = (("w2", 1), ("w2", 0), ("w5 " * 60, 1))
    write_jsonl(tmp_path / "p.jsonl", [*good, *bad])
    write_jsonl(tmp_path / "r.jsonl", [{"prompt": "w1", "response": t, "scores": {"good": s}} for t, s in said])
    files = LabelFiles(str(tmp_path / "r.jsonl"), str(tmp_path / "p.jsonl"))
    labels = reward_data.read_labels(files, tokenizer, 50)
    assert labels.counts() == [
        f"{tmp_path}/r.jsonl: 3 rows, 1 used; 1 left out: merged with the row of the same prompt and response; 1 left out: "
        "longer than rewarder.max_tokens; 1 ratings are the mean of several raters of one objective",
        f"{tmp_path}/p.jsonl: 52 rows, 50 used; 1 left out: longer than rewarder.max_tokens; 1 left out: a right and a wrong "
        "answer of the same tokens",
    ]
    assert labels.ratings[0].scores == {"good": 0.5} and labels.pairs.numbers == list(range(1, 51))


def test_a_rated_response_in_a_pair_is_one_conversation(tokenizer) -> None:
    ratings = [
        RatedResponse(ask("w1"), "w2", {"good": 0.5, "safe": None}),
        RatedResponse(ask("w1"), "w3", {"safe": 1.0}),
    ]
    pairs = [PreferencePair(ask("w1"), "w3", "w4")]
    (only,) = reward_data.prompt_sets(ratings, pairs, OBJECTIVES, tokenizer, 50).values()
    assert len(only.conversations) == 3
    assert only.pairs == (Pair(1, 2),)
    np.testing.assert_equal(only.ratings, np.array([[0.5, np.nan], [np.nan, 1.0], [np.nan, np.nan]], dtype=np.float32))


def test_flatten_shifts_the_indices(tokenizer) -> None:
    pairs = [PreferencePair(ask(f"w{i}"), "w20", "w21", 1 - i / 4, i / 2) for i in range(3)]
    rendered, ratings, index, labels, prompt_of = flatten(
        list(reward_data.prompt_sets([], pairs, OBJECTIVES, tokenizer, 50).values())
    )
    assert len(rendered) == len(ratings) == 6
    assert index.tolist() == [[0, 1], [2, 3], [4, 5]]
    assert labels.tolist() == [[1.0, 0.0, 1.0, 1.0], [0.75, 0.5, 1.0, 1.0], [0.5, 1.0, 1.0, 1.0]]
    assert prompt_of.tolist() == [0, 0, 1, 1, 2, 2]


def test_splits_are_by_prompt_and_stay(tokenizer) -> None:
    pairs = [PreferencePair(ask(f"w{i} w{j}"), "w20", "w21") for i in range(20) for j in range(20)]
    sets = reward_data.prompt_sets([], pairs, OBJECTIVES, tokenizer, 50)
    training, held_out = reward_data.split(sets, 0.2)
    assert len(training) + len(held_out) == 400
    assert 50 < len(held_out) < 110
    again = reward_data.split(dict(reversed(sets.items())), 0.2)[1]
    assert {id(value) for value in again} == {id(value) for value in held_out}


def test_bad_ratings_are_named(tokenizer) -> None:
    with pytest.raises(ValueError, match=r"objectives \['fast'\] that rewarder.objectives lacks"):
        reward_data.prompt_sets([RatedResponse(ask("w1"), "w2", {"fast": 1.0})], [], OBJECTIVES, tokenizer, 50)


def brief(messages: Sequence[Message], response: str) -> float:
    """1 for one word, 0.5 for two."""
    return 1 / len(response.split())


CONFIG = load_config(BASE, ["aggregation.kind=final_score", "learner.reward_model.held_out_fraction=0.2"])
TRAINING = CONFIG.learner.reward_model


def rewarder(**changes: object) -> RewarderConfig:
    return replace(CONFIG.rewarder, **changes)  # type: ignore[arg-type]


def test_programs_rate_every_response_beside_people(tokenizer) -> None:
    ratings = [RatedResponse(ask("w1"), "w2", {"safe": 0.25})]
    pairs = [PreferencePair(ask("w1"), "w3 w4", "w2")]
    (only,) = reward_data.prompt_sets(ratings, pairs, OBJECTIVES, tokenizer, 50, {"good": brief}).values()
    np.testing.assert_equal(only.ratings, np.array([[1.0, 0.25], [0.5, np.nan]], dtype=np.float32))
    assert only.pairs == (Pair(1, 0),)


def test_pairs_alone_train_where_every_objective_has_a_source(tokenizer, tmp_path: Path) -> None:
    rows = [to_fields(PreferencePair(ask(f"w{i} w{j}"), "w20", "w21 w22")) for i in range(20) for j in range(5)]
    write_jsonl(tmp_path / "pairs.jsonl", rows)
    files = LabelFiles(None, str(tmp_path / "pairs.jsonl")), OBJECTIVES, tokenizer
    programs = {"safe": f"{__name__}:brief"}
    training, unseen = reward_data.read_sides(*files, rewarder(programs=programs, preference="good"), TRAINING)
    assert len(training) + len(unseen) == 100
    np.testing.assert_equal(unseen[0].ratings, np.array([[np.nan, 1.0], [np.nan, 0.5]], dtype=np.float32))
    with pytest.raises(ValueError, match="no rating of good, safe: the ratings have nothing"):
        reward_data.read_sides(*files, rewarder(), TRAINING)
    training, _ = reward_data.read_sides(*files, rewarder(model="given"), TRAINING)  # a given model is only calibrated
    assert np.isnan(training[0].ratings).all()


def test_training_pairs_are_denoised_and_held_out_ones_stay_as_they_came(tokenizer, tmp_path: Path) -> None:
    """Every second pair is weak; the weaker half of those that train changes sides, and half the strength is the margin."""
    rows = [PreferencePair(ask(f"w{i} w{j}"), "w20", "w21 w22") for i in range(20) for j in range(5)]
    strengths = [{"strength_mean": -3.0 if i % 2 else 2.0, "strength_std": 0.5} for i in range(100)]
    write_jsonl(tmp_path / "pairs.jsonl", [to_fields(row) for row in rows])
    write_jsonl(tmp_path / "strong.jsonl", [to_fields(r) | s for r, s in zip(rows, strengths, strict=True)])
    files = LabelFiles(None, str(tmp_path / "pairs.jsonl"), str(tmp_path / "strong.jsonl"))
    asked = replace(TRAINING.denoising, flip=0.4, margin=0.5, smoothing=0.1, smooth="all")
    given = OBJECTIVES, tokenizer, rewarder(model="given"), replace(TRAINING, denoising=asked)
    training, unseen = reward_data.read_sides(files, *given)
    found = [(len(p.conversations[p.pairs[0].chosen].ids), p.pairs[0]) for p in training]
    short, long = sorted({length for length, _ in found})
    turned = [pair for length, pair in found if length == long]
    assert len(training) + len(unseen) == 100 and abs(len(turned) - 0.4 * len(training)) <= 1
    assert set(turned) == {Pair(0, 1, 0.9, 1.5)}
    assert {pair for length, pair in found if length == short} == {Pair(0, 1, 0.9, -1.5), Pair(0, 1, 0.9, 1.0)}
    assert {(len(p.conversations[p.pairs[0].chosen].ids), p.pairs[0]) for p in unseen} == {(short, Pair(0, 1))}
    write_jsonl(tmp_path / "pairs.jsonl", [to_fields(row) for row in rows[::-1]])
    with pytest.raises(
        ValueError, match="has the strengths of other pairs: 100 rows .* first differ in row 1, in its prompt"
    ):
        reward_data.read_sides(files, *given)


def test_smoothing_of_all_needs_no_strengths(tokenizer, tmp_path: Path) -> None:
    rows = [PreferencePair(ask(f"w{i} w{j}"), "w20", "w21 w22") for i in range(10) for j in range(5)]
    write_jsonl(tmp_path / "pairs.jsonl", [to_fields(row) for row in rows])
    settings = replace(TRAINING, denoising=replace(TRAINING.denoising, smoothing=0.2, smooth="all"))
    files = LabelFiles(None, str(tmp_path / "pairs.jsonl"))
    training, unseen = reward_data.read_sides(files, OBJECTIVES, tokenizer, rewarder(model="given"), settings)
    assert {p.pairs[0] for p in training} == {Pair(0, 1, 0.8)} and {p.pairs[0] for p in unseen} == {Pair(0, 1)}


def test_a_conversation_and_its_continuation_fall_on_the_same_side(tokenizer) -> None:
    def continued(text: str) -> tuple[Message, ...]:
        return (*ask(text), Message("assistant", "w1"), *ask("w2"))

    pairs = [
        PreferencePair(f(f"w{i} w{j}"), "w20", "w21") for i in range(20) for j in range(5) for f in (ask, continued)
    ]
    sides = reward_data.split(reward_data.prompt_sets([], pairs, OBJECTIVES, tokenizer, 50), 0.2)
    training, unseen = ({prompt.messages[0].content for prompt in side} for side in sides)
    assert training and unseen and not training & unseen


def labels_of(features: Features, aggregation: Aggregation, term: int, preference: int | None) -> calibration.Labelled:
    """Where objective k of conversation n scores n + 10 k, at a gate of 3 to 1."""
    n = len(features.ratings)
    scores = torch.arange(n)[:, None] + 10.0 * torch.arange(2)
    predicted = calibration.Predicted(scores, torch.tensor([0.75, 0.25]).expand(n, 2))
    return calibration._labels(predicted, features, aggregation, term, preference, OBJECTIVES[term])


def rated(ratings: list[list[float]], prompt_of: list[int], pairs: list[list[int]]) -> Features:
    n = len(ratings)
    of, compared = torch.tensor(prompt_of), torch.tensor(pairs).reshape(-1, 2)
    labels = torch.tensor([[1.0, 0.0, 1.0, 1.0]] * len(pairs)).reshape(-1, 4)
    return Features(torch.zeros(n, 2), torch.zeros(n, 2), compared, labels, torch.tensor(ratings), of)


def test_a_term_that_cannot_be_calibrated_is_named() -> None:
    backwards = calibration.Labelled(-torch.ones(4), torch.ones(4), torch.arange(4))
    with pytest.raises(ValueError, match="calibration of the term grouped of good: the scores order 4 pairs no better"):
        calibration._fit_term("grouped of good", backwards)


def test_each_group_is_calibrated_on_its_own_ratings() -> None:
    nan = float("nan")
    features = rated([[1.0, 0.0], [0.0, 0.0], [0.2, nan], [0.9, nan]], [0, 0, 1, 1], [[0, 2]])
    grouped = make_aggregation("grouped", {"q": ["good"], "s": ["safe"]}, {}, 0.1, 0.01, OBJECTIVES)
    found = labels_of(features, grouped, 0, None)
    assert found.differences.tolist() == [-1.0, -1.0] and found.labels.tolist() == [1.0, 0.0]
    found = labels_of(features, grouped, 1, 0)
    assert found.differences.tolist() == [-1.0] and found.labels.tolist() == [0.5]
    found = labels_of(features, grouped, 0, 0)  # what pairs train is calibrated on them
    assert found.differences.tolist() == [-2.0] and found.labels.tolist() == [1.0]
    unrated = replace(features, ratings=torch.full((4, 2), nan))  # and so is what nothing rates
    assert [labels_of(unrated, grouped, m, None).differences.tolist() for m in (0, 1)] == [[-2.0], [-2.0]]
    for kind in ("final_score", "ensemble", "weighted_sum"):
        one_score = make_aggregation(kind, {}, {"safe": 1.0}, 0.1, 0.01, OBJECTIVES)
        found = labels_of(features, one_score, 0, None)
        assert found.differences.tolist() == [-2.0] and found.labels.tolist() == [1.0] and found.rated is None


def test_a_group_is_compared_as_it_is_served_over_all_of_its_objectives() -> None:
    """By the gate, 3 to 1, rated or not. Both rated: who wins is known. One rated: with a probability. Two prompts: never."""
    nan = float("nan")
    both = make_aggregation("grouped", {"all": ["good", "safe"]}, {}, 0.1, 0.01, OBJECTIVES)
    ratings = [[1.0, 0.0], [0.4, 1.0], [nan, 0.3], [0.6, 0.1], [0.5, nan]]
    labelled = labels_of(rated(ratings, [0, 0, 0, 0, 1], []), both, 0, None)
    assert (
        labelled.differences.tolist() == [-1.0, -2.0, -3.0, -1.0, -2.0, -1.0] and labelled.prompts.tolist() == [0] * 6
    )
    assert labelled.rated is not None and labelled.spread is not None
    assert float(labelled.rated[0]) == pytest.approx(0.75 * 0.6 - 0.25)
    assert (labelled.spread > 0).tolist() == [False, True, False, True, False, True]  # those with the third response
    assert labelled.labels[[0, 2, 4]].tolist() == [1.0, 1.0, 1.0]


def test_a_state_that_is_not_finite_is_named_by_its_prompt(tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = [PreferencePair(ask(f"w{i}"), "w20", "w21") for i in range(3)]
    sets = list(reward_data.prompt_sets([], pairs, OBJECTIVES, tokenizer, 50).values())
    states = torch.zeros(2, 6, 4)
    for rows in (8192, 2):
        monkeypatch.setattr(reward_data, "CHECKED_ROWS", rows)
        reward_data.check_finite_rows("hidden states", tuple(states), sets)
        for kind, value in ((0, float("nan")), (1, float("inf"))):
            wrong = states.clone()
            wrong[kind, 3, 2] = value
            with pytest.raises(
                ValueError, match="hidden states of conversation 3 of 6 are not finite; its prompt is 'w1'"
            ):
                reward_data.check_finite_rows("hidden states", tuple(wrong), sets)


def test_an_objective_of_its_own_is_calibrated_on_nothing_else() -> None:
    """Its ratings, or the pairs that train it; preferences are not labels of one objective, so it is refused without."""
    nan = float("nan")
    features = rated([[1.0, nan], [0.0, nan], [0.2, nan], [0.9, nan]], [0, 0, 1, 1], [[0, 1]])
    for kind in ("per_objective", "min", "zscore"):
        own = make_aggregation(kind, {}, {"good": 1.0, "safe": 1.0}, 0.0, 0.01, OBJECTIVES)
        found = labels_of(features, own, 0, None)
        assert found.rated is not None
        torch.testing.assert_close(found.rated.float(), torch.tensor([1.0, -0.7]))
        assert (found.differences.tolist(), found.labels.tolist()) == ([-1.0, -1.0], [1.0, 0.0])
        with pytest.raises(ValueError, match="calibration of safe: nothing rates two responses .* preferences are not"):
            labels_of(features, own, 1, None)
        found = labels_of(features, own, 1, 1)
        assert (found.differences.tolist(), found.labels.tolist()) == ([-1.0], [1.0])


def test_a_threshold_is_calibrated_on_which_ratings_reach_it() -> None:
    nan = float("nan")
    features = rated([[1.0, 0.1], [0.7, 0.2], [0.2, nan], [nan, 0.3]], [0, 0, 1, 1], [])
    bars = make_aggregation("absolute", {}, {}, 0.0, 0.01, OBJECTIVES, (), {"good": 0.7, "safe": 0.5})
    found = labels_of(features, bars, 0, None)
    assert found.labels.tolist() == [1.0, 1.0, 0.0] and found.rated is not None
    torch.testing.assert_close(found.differences, torch.tensor([0.0, 1.0, 2.0]) - 0.7)
    torch.testing.assert_close(found.rated, torch.tensor([0.3, 0.0, -0.5]))
    with pytest.raises(ValueError, match=r"calibration of safe: 0% of 3 held-out ratings reach the threshold 0\.5"):
        labels_of(features, bars, 1, None)
    above = torch.tensor([0.2, 0.1, -0.6, -0.1, 0.05, -0.4])
    labelled = calibration.Labelled(above, (above > 0).float(), torch.arange(6), above + 0.1)
    s, report = calibration._fit_term("absolute of good", labelled)
    assert s > 0 and report.num_pairs == 6
    assert report.closed_form == pytest.approx(0.1 / 1.702, rel=1e-4)


def rated_model(directory: Path, noise: float) -> tuple[GatedRewardModel, Features]:
    """A reward model, and 200 prompts with 4 responses whose ratings are its own scores with noise, whose pairs go by the
    gated score's sign."""
    tiny_policy(directory, 0)
    model = GatedRewardModel.from_policy(directory, OBJECTIVES, 8, 1, 1.0, 2.0, 0)
    generator = torch.Generator().manual_seed(0)
    model.regression_layer.weight.data.normal_(0, 0.1, generator=generator)
    hidden = model.regression_layer.weight.shape[1]
    prompt_of = torch.arange(200).repeat_interleave(4)
    prompt = torch.randn(200, hidden, generator=generator)[prompt_of]
    response = torch.randn(800, hidden, generator=generator)
    none = torch.empty(0, 2, dtype=torch.long), torch.empty(0, 2)
    features = Features(prompt, response, *none, torch.empty(800, 2), prompt_of)
    output = calibration.outputs(model, features)
    ratings = output.scores + noise * torch.randn(800, 2, generator=generator)
    first, second = torch.arange(0, 800, 2), torch.arange(1, 800, 2)
    value = ((ratings * output.gate_weights).sum(-1))[:, None]
    better = (value[first] > value[second]).flatten()
    pairs = torch.stack([torch.where(better, first, second), torch.where(better, second, first)], 1)
    return model, replace(features, ratings=ratings, pairs=pairs)


def test_every_kind_is_calibrated_and_says_for_what(tmp_path: Path) -> None:
    """Ratings are scores + Normal(0, .3): temperatures near the closed forms, .831 and .588 of .3, and in the band."""
    model, features = rated_model(tmp_path, 0.3)
    weights, groups = {"good": 1.0, "safe": 0.5}, {"q": ["good"], "s": ["safe"]}
    for kind in AGGREGATIONS:
        bars = {"good": 0.1, "safe": 0.0} if kind == "absolute" else {}
        aggregation = make_aggregation(kind, groups, weights, 0.2, 0.01, OBJECTIVES, (), bars, 0.5)
        fitted = calibration.calibrate(model, features, aggregation, None)
        assert (fitted.kind, fitted.terms) == (kind, aggregation.calibrated_terms(OBJECTIVES))
        assert fitted.mismatch(kind, aggregation.calibrated_terms(OBJECTIVES)) is None
        assert calibration.warnings(fitted) == []
        if aggregation.num_terms == 2:
            want = 0.3 * (0.588 if kind == "absolute" else 0.831)
            for s, report in zip(fitted.temperatures, fitted.reports, strict=True):
                assert report.closed_form == pytest.approx(want, rel=0.1)
                assert s == pytest.approx(want, rel=0.35)


def test_the_temperature_of_an_ensemble_is_of_its_penalised_score(tmp_path: Path) -> None:
    """Winners drawn from sigmoid(difference / .7) of mean - 2 variance: .7 is found, and the plain mean does worse."""
    model, features = rated_model(tmp_path, 0.0)
    harsh, plain = (make_aggregation("ensemble", {}, {}, 0.0, 0.0, OBJECTIVES, (), None, p) for p in (2.0, 0.0))
    good, safe = calibration.outputs(model, features).scores.T
    r = (good + safe) / 2 - 2.0 * (good - safe).square() / 4
    pairs = torch.cat([torch.combinations(rows) for rows in torch.arange(800).reshape(200, 4)])
    chance = torch.sigmoid((r[pairs[:, 0]] - r[pairs[:, 1]]) / 0.7)
    wins = torch.rand(len(pairs), generator=torch.Generator().manual_seed(0)) < chance
    judged = replace(features, pairs=torch.where(wins[:, None], pairs, pairs.flip(1)))
    fitted, mean = (calibration.calibrate(model, judged, aggregation, None) for aggregation in (harsh, plain))
    assert fitted.temperatures[0] == pytest.approx(0.7, rel=0.2)
    assert fitted.reports[0].nll < mean.reports[0].nll and fitted.reports[0].closed_form is None
    assert fitted.mismatch("ensemble", plain.calibrated_terms(OBJECTIVES)) is not None


def test_missing_ratings_do_not_move_a_groups_temperature(tmp_path: Path) -> None:
    """Ratings = scores + Normal(0, .3), all there or half of them: the mean that is served has the same noise either way.
    How near it comes over many draws: test_unrated.py."""
    model, features = rated_model(tmp_path, 0.3)
    some = torch.rand(800, 2, generator=torch.Generator().manual_seed(1)) < 1 / 2
    sparse = replace(features, ratings=features.ratings.where(some, torch.nan))
    group = make_aggregation("grouped", {"all": OBJECTIVES}, {}, 0.2, 0.01, OBJECTIVES)
    (full,), (fitted,) = (calibration.calibrate(model, f, group, None).temperatures for f in (features, sparse))
    assert fitted == pytest.approx(full, rel=0.25)


def test_a_temperature_is_judged_on_prompts_that_it_was_not_fitted_on() -> None:
    """One prompt's pairs contradict the others: the fit of all sees them, the fit that judges them does not."""
    differences = torch.tensor([1.0, 0.8, 1.2, 0.9, -1.0, 1.1, 3.0])
    labels = torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0, 1.0, 0.0])
    prompts = torch.tensor([0, 0, 1, 2, 3, 3, 4])
    labelled = calibration.Labelled(differences, labels, prompts)
    _, report = calibration._fit_term("grouped of good", labelled)
    without = fit_temperature(differences[:-1], labels[:-1])
    unseen = calibration._cross_fitted(labelled, 1.0)
    assert float(unseen[-1]) == pytest.approx(without) and report.num_pairs == 7
    assert report.nll > calibration_report(differences, labels, fit_temperature(differences, labels)).nll


def test_an_objective_that_debiasing_removes_is_not_calibrated(tmp_path: Path) -> None:
    model, features = rated_model(tmp_path, 0.3)
    model.reward_transform_matrix.data[:, 1] = 0.0
    alone = make_aggregation("per_objective", {}, {}, 0.0, 0.01, OBJECTIVES)
    with pytest.raises(ValueError, match=r"aggregation.per_objective has \['safe'\], which debiasing makes 0"):
        calibration.calibrate(model, features, alone, None)


def test_a_temperature_that_its_ratings_contradict_is_a_warning(tmp_path: Path) -> None:
    """Ratings whose winners are the scores' own, spread far more widely: the fit is far below the closed form."""
    model, features = rated_model(tmp_path, 0.0)
    stretched = replace(features, ratings=20 * features.ratings)
    aggregation = make_aggregation("min", {}, {}, 0.0, 0.01, OBJECTIVES)
    first, second = calibration.warnings(calibration.calibrate(model, stretched, aggregation, None))
    assert first.startswith("calibration of good: the temperature") and "wanted: within 2x" in second
