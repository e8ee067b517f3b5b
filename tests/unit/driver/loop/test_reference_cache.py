"""The references on disk: what makes them miss, what a killed run finds again, and what is said of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from common.config.config import Config
from common.config.file import BASE, load_config
from common.types import FloatArray, Message, Prompt, Rollout
from driver.cluster.doors import Actors, Rewarders
from driver.loop.publish import Published, Publisher
from driver.loop.reference_pass import NO_REFERENCES, ReferencePass
from driver.loop.references import (
    References,
    describe,
    keep_references,
    load_references,
    load_samples,
    samples_key,
    shard_facts,
    values_key,
)
from rewarder.worker import ReferenceSamples, ScoredReference
from tests.unit.driver.fake_groups import group_of

GROUPED = ("rewarder.objectives=[a, b]", "aggregation.groups={q: [a], s: [b]}")


def config(*overrides: str) -> Config:
    return load_config(BASE, [*GROUPED, *overrides])


def model(directory: Path, weights: str = "w", settings: str = "{}") -> str:
    directory.mkdir(exist_ok=True)
    (directory / "model.safetensors").write_text(weights)
    (directory / "config.json").write_text(settings)
    return str(directory)


def shard(*ids: str, tokens: tuple[int, ...] = (1, 2)) -> list[Prompt]:
    return [Prompt(name, (Message("user", name),), np.array(tokens, np.int32), {}) for name in ids]


def references_key(config: Config, shard: Sequence[Prompt], anchor: str, reward_model: str) -> str:
    return values_key(config, shard_facts(config, shard, anchor), reward_model)


def test_another_model_template_sampling_or_aggregation_misses(tmp_path: Path) -> None:
    """T32 through the key that a run uses: the reward model's weights, its config (calibration, debias), the anchor, the
    chat template as tokens, the sampling, the shard, the aggregation with its canned responses."""
    rm, anchor = model(tmp_path / "rm"), model(tmp_path / "anchor")
    keys = [references_key(config(), shard("p", "q"), anchor, rm)]
    assert references_key(config(), shard("p", "q"), anchor, model(tmp_path / "same rm")) == keys[0]
    others = (
        model(tmp_path / "rm2", weights="other"),
        model(tmp_path / "rm3", settings='{"calibration": 1}'),
    )
    keys += [references_key(config(), shard("p", "q"), anchor, other) for other in others]
    keys.append(references_key(config(), shard("p", "q"), model(tmp_path / "anchor2", weights="other"), rm))
    keys += [references_key(config(), other, anchor, rm) for other in (shard("q", "p"), shard("p"))]
    keys.append(references_key(config(), shard("p", "q", tokens=(1, 3)), anchor, rm))
    for override in (
        "actors.temperature=0.9",
        "actors.max_response_tokens=9",
        "run.seed=1",
        "aggregation.references_per_prompt=9",
        "aggregation.quantile=0.8",
        "aggregation.estimator=gaussian",
        "aggregation.kind=min",
        "aggregation.canned={s: no}",
    ):
        keys.append(references_key(config(override), shard("p", "q"), anchor, rm))
    assert len(set(keys)) == len(keys)
    unrelated = config("learner.kl_coef=0.5", "iteration.num=9", "rewarder.num=2")
    assert references_key(unrelated, shard("p", "q"), anchor, rm) == keys[0]


def test_samples_are_found_again_whatever_scores_them(tmp_path: Path) -> None:
    """Their key has the anchor, the template, the sampling and the shard, and neither reward model nor aggregation."""
    anchor, other = model(tmp_path / "anchor"), model(tmp_path / "anchor2", weights="other")

    def key(shard: list[Prompt], anchor: str, *overrides: str) -> str:
        return samples_key(shard_facts(config(*overrides), shard, anchor))

    plain = key(shard("p", "q"), anchor)
    same = ("aggregation.quantile=0.8", "aggregation.kind=min", "aggregation.canned={s: no}", "rewarder.max_tokens=9")
    assert all(key(shard("p", "q"), anchor, override) == plain for override in same)
    keys = [
        plain,
        key(shard("p", "q"), other),
        key(shard("q", "p"), anchor),
        key(shard("p", "q", tokens=(1, 3)), anchor),
    ]
    sampling = (
        "actors.temperature=0.9",
        "actors.max_response_tokens=9",
        "run.seed=1",
        "aggregation.references_per_prompt=9",
    )
    keys += [key(shard("p", "q"), anchor, override) for override in sampling]
    assert len(set(keys)) == len(keys)


class TwoEngines(Actors):
    """Two engines that answer with the prompt's name and a line end that JSON keeps."""

    def __init__(self) -> None:
        super().__init__(group_of(2))
        self.sampled = list[str]()

    def sample(self, parts: Sequence[tuple[Sequence[Prompt], int, Sequence[int], str]]) -> list[list[list[Rollout]]]:
        self.sampled += [prompt.prompt_id for part, *_ in parts for prompt in part]
        return [[self._sample(prompt, count) for prompt in part] for part, count, *_ in parts]

    def _sample(self, prompt: Prompt, count: int) -> list[Rollout]:
        texts = [f"{prompt.prompt_id}\u2028\n" + "x" * k for k in range(count)]
        one, nothing = np.ones(1, np.int32), np.zeros(1, np.float32)
        return [Rollout(text, one, nothing, "stop", ((0, 0),)) for text in texts]


class OneRewarder(Rewarders):
    """A rewarder whose scores are the length of the response times the number of the model that it was told."""

    def __init__(self) -> None:
        super().__init__(group_of(1))
        self.model, self.references = 1, list[tuple[dict[str, FloatArray], str]]()

    def score_references(self, parts: Sequence[Sequence[ReferenceSamples]]) -> list[dict[str, ScoredReference]]:
        return [{sample.prompt_id: self._score(sample.responses) for sample in part} for part in parts]

    def _score(self, responses: Sequence[str]) -> ScoredReference:
        scores = self.model * np.array([[len(text), 1.0] for text in responses], np.float32)
        return ScoredReference(scores.mean(0), scores - scores.mean(0), scores <= scores.mean(0))

    def set_references(self, references: dict[str, FloatArray], version: str) -> None:
        self.references.append((references, version))


class AnchorAlone(Publisher):
    """Says that the anchor was loaded, in the list of what the engines did."""

    def __init__(self, engines: TwoEngines):
        self._engines = engines

    def anchor(self) -> Published:
        self._engines.sampled.append("anchor")
        return Published(0.0, None)


def reference_pass(
    settings: Config, engines: TwoEngines, rewarder: OneRewarder, run: Path, anchor: str
) -> ReferencePass:
    return ReferencePass(settings, engines, rewarder, AnchorAlone(engines), run, anchor)


def test_another_version_scores_the_same_samples_again_and_samples_nothing(tmp_path: Path) -> None:
    engines, rewarder, anchor, part = TwoEngines(), OneRewarder(), model(tmp_path / "anchor"), shard("p", "q")
    first, second = (model(tmp_path / name, weights=name) for name in ("rm1", "rm2"))
    references = reference_pass(config(), engines, rewarder, tmp_path, anchor)
    references.begin(part, first)
    assert engines.sampled == ["anchor", "p", "q"] and references.coverage == {"q": 0.5, "s": 1.0}
    rewarder.model = 2
    references.again(second)
    assert engines.sampled == ["anchor", "p", "q"], "nothing is sampled again"
    (one, key), (two, other) = rewarder.references
    assert all(np.array_equal(2 * one[name], two[name]) for name in ("p", "q")) and key != other
    kept = load_samples(tmp_path / "references", samples_key(shard_facts(config(), part, anchor)), part)
    assert kept is not None and [s.prompt_id for s in kept] == ["p", "q"] and kept[1].responses[1] == "q\u2028\nx"
    resumed = reference_pass(config(), engines, rewarder, tmp_path, anchor)
    resumed.begin(part, second)
    assert rewarder.references[-1][1] == other and engines.sampled == ["anchor", "p", "q"]
    assert {path.suffix for path in (tmp_path / "references").iterdir()} == {".npz", ".jsonl"}


def test_an_aggregation_that_centres_on_nothing_has_no_pass(tmp_path: Path) -> None:
    engines, rewarder = TwoEngines(), OneRewarder()
    fixed = load_config(
        BASE, ["aggregation.kind=weighted_sum", "rewarder.objectives=[a]", "aggregation.weights={a: 1}"]
    )
    references = reference_pass(fixed, engines, rewarder, tmp_path, model(tmp_path / "anchor"))
    references.begin(shard("p"), "nowhere")
    references.again("elsewhere")
    assert rewarder.references == [({}, NO_REFERENCES)] * 2 and not engines.sampled and references.coverage == {}


def test_a_killed_run_finds_its_references_again_whole_or_not_at_all(tmp_path: Path) -> None:
    found = References({"p": np.array([0.5, -1.25], np.float32), "q": np.array([1.0, 2.0], np.float32)}, (0.875, 0.75))
    directory = tmp_path / "references"
    directory.mkdir()
    (directory / "key.tmp.npz").write_bytes(b"killed in the middle of writing")
    assert load_references(directory, "key") is None
    keep_references(directory, "key", found)
    again = load_references(directory, "key")
    assert again is not None and again.coverage == found.coverage and list(again.values) == ["p", "q"]
    for name, value in found.values.items():
        assert again.values[name].tobytes() == value.tobytes() and again.values[name].dtype == np.float32
    assert load_references(directory, "another key") is None


def test_what_is_said_of_the_references() -> None:
    """A term in hundredths of a logit is a straight line under the transform: said with numbers, the other one is not."""
    bent = np.random.default_rng(0).normal(-1, 1.5, 400).astype(np.float32)
    coverage = np.array([0.84, 0.862], np.float32)
    first, *warnings = describe(np.stack([bent, 0.02 * bent], 1), coverage, ["q", "s"], config().aggregation)
    assert "0.84 (q), 0.86 (s) of the anchor's 400 samples" in first and "aggregation.quantile is 0.85" in first
    (warning,) = warnings
    assert warning.startswith("warning: term s: log-sigmoid is affine") and "R2 0.9999, slope 0.505" in warning
