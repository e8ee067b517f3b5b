"""What a reward model is worth on samples whose gold is known, and what its gate adds to fixed weights.

    single     the best objective alone               uniform   the mean of all objectives but the verbosity axis
    fixed      the fixed weights that fit the training pairs best (Bradley-Terry on the model's own scores)
    gated      as trained                             oracle    the gold's own weights on the model's scores
    shuffled   a gate trained like the real one, with every prompt's features exchanged for another prompt's
    bradley_terry   the scalar model trained on the same pairs, where the arm has one

Called by measures.py. All rules order the same pairs of held-out responses, those whose gold differs (noisy_pairs.ordered).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import AutoTokenizer

from common.config.config import Config
from common.judge import JudgeItem, load_function
from examples.sandbox.gold import OBJECTIVES, WEIGHTS
from learner.reward_model import calibration
from learner.reward_model import data as reward_data
from learner.reward_model import training as reward_training
from learner.reward_model.data import PromptSet
from learner.reward_model.training import Features
from rewarder.aggregate import debias
from rewarder.bradley_terry import load_classifier
from rewarder.model import GatedRewardModel
from rewarder.scoring import render
from studies import artifacts
from studies.lab import Lab, Report, learner_of
from studies.noisy_pairs import ordered
from studies.prompts import held_out_prompts

CPU = torch.device("cpu")
PROMPTS, SAMPLES = 600, 4


@dataclass(frozen=True)
class HeldOut:
    """The SFT policy's samples and their features; gold [N, K + 1] (objectives, then gold); weights [N, K] of the gold; pairs
    [P, 2], the better one first."""

    sets: list[PromptSet]
    features: Features
    gold: Tensor
    weights: Tensor
    pairs: Tensor


def measure(config: Config, lab: Lab, report: Report) -> dict[str, float]:
    """accuracy/<rule>, difference and standard error of gated - fixed over the pairs of this seed, r2/<objective>."""
    anchor, rm = artifacts.sft_of(config).directory, artifacts.reward_model_of(config).directory
    model = GatedRewardModel.load(rm / "model", "float32")
    report("held-out samples", 0, 2)
    held_out = _held_out(config, lab, anchor, model)
    report("gates", 1, 2)
    training = _training_features(config, model, rm)
    rules = _rules(config, model, training, held_out)
    if config.learner.reward_model.baseline:
        rules["bradley_terry"] = _plain_score(config, held_out, load_classifier(rm / "baseline", "float32"))
    right = {name: _right(score, held_out.pairs) for name, score in rules.items()}
    gap = right["gated"] - right["fixed"]
    scores = calibration.outputs(model, held_out.features).scores
    r2 = 1 - (held_out.gold[:, :-1] - scores).square().sum(0) / _spread(held_out.gold[:, :-1])
    return {
        **{f"accuracy/{name}": float(values.mean()) for name, values in right.items()},
        "pairs": float(len(held_out.pairs)),
        "gated_minus_fixed": float(gap.mean()),
        "gated_minus_fixed_se": float(gap.std() / len(gap) ** 0.5),
        **{f"r2/{name}": float(value) for name, value in zip(OBJECTIVES, r2, strict=True)},
    }


def fixed_weights(config: Config, anchor: Path, rm: Path) -> list[float]:
    """The fixed weights of the model's objectives that fit its training pairs best, in the order of the objectives."""
    model = GatedRewardModel.load(rm / "model", "float32")
    return _fit_fixed(model, _training_features(config, model, rm)).tolist()


def _rules(config: Config, model: GatedRewardModel, training: Features, held_out: HeldOut) -> dict[str, Tensor]:
    output = calibration.outputs(model, held_out.features)
    scores = debias(output.scores, model.reward_transform_matrix.detach())
    singles = [_right(scores[:, k], held_out.pairs).mean() for k in range(len(OBJECTIVES))]
    return {
        "single": scores[:, int(torch.stack(singles).argmax())],
        "uniform": scores[:, : OBJECTIVES.index("verbose")].mean(-1),
        "fixed": scores @ _fit_fixed(model, training),
        "gated": (scores * output.gate_weights).sum(-1),
        "shuffled": (scores * _shuffled_gate(config, model, training, held_out)).sum(-1),
        "oracle": (scores * held_out.weights).sum(-1),
    }


def _plain_score(config: Config, held_out: HeldOut, plain: GatedRewardModel) -> Tensor:
    features = reward_training.extract_features(plain, held_out.sets, config.learner.micro_batch_tokens, 0, CPU)
    return calibration.outputs(plain, features).scores[:, 0]


def _fit_fixed(model: GatedRewardModel, training: Features) -> Tensor:
    """Bradley-Terry (logistic regression without intercept) on the score differences of the training pairs. [K]"""
    scores = debias(calibration.outputs(model, training).scores, model.reward_transform_matrix.detach())
    differences = scores[training.pairs[:, 0]] - scores[training.pairs[:, 1]]
    weights = torch.zeros(scores.shape[-1], requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = torch.nn.functional.softplus(-differences @ weights).mean()
        value.backward()
        return value

    optimizer.step(loss)
    return weights.detach()


def _shuffled_gate(config: Config, model: GatedRewardModel, training: Features, held_out: HeldOut) -> Tensor:
    """Weights [N, K] of a gate that never saw a prompt's own features, neither in training nor now."""
    settings, seed = config.learner.reward_model, config.run.seed
    blind = copy.deepcopy(model)
    for layer in blind.gating.layers:
        layer.reset_parameters()  # type: ignore[operator]
    exchanged = _exchange(training, seed)
    reward_training.train_gate(blind, exchanged, settings, seed, lambda *_: None)
    return calibration.outputs(blind, _exchange(held_out.features, seed + 1)).gate_weights


def _exchange(features: Features, seed: int) -> Features:
    """Returns the features with those of prompts dealt to other prompts; responses of one prompt keep one gate."""
    first = torch.tensor(
        [int((features.prompt_of == p).nonzero()[0]) for p in range(int(features.prompt_of.max()) + 1)]
    )
    dealt = first[torch.from_numpy(np.random.default_rng([seed, 3]).permutation(len(first)))]
    return replace(features, prompt=features.prompt[dealt[features.prompt_of]])


def _training_features(config: Config, model: GatedRewardModel, rm: Path) -> Features:
    """Extracts features of the conversations that the reward model was trained on."""
    tokenizer = AutoTokenizer.from_pretrained(rm / "model")
    files, settings = artifacts.label_files(rm), config.learner.reward_model
    training, _ = reward_data.read_sides(files, model.objectives, tokenizer, config.rewarder, settings)
    return reward_training.extract_features(model, training, config.learner.micro_batch_tokens, 0, CPU)


def _held_out(config: Config, lab: Lab, anchor: Path, model: GatedRewardModel) -> HeldOut:
    """SAMPLES responses of the SFT policy to each of PROMPTS held-out prompts, with their gold."""
    assert config.data.eval_prompts is not None and config.judge.function is not None
    judge, tokenizer = load_function(config.judge.function), lab.tokenizer(anchor)
    learner = learner_of(config)
    learner.load_anchor(str(anchor))
    lab.start(config, anchor)
    prompts = held_out_prompts(config, anchor, PROMPTS)
    lab.publish_anchor(learner, anchor, prompts)
    sets, golds, weights, pairs = [], [], [], []
    for prompt, rollouts in zip(prompts, lab.sample(prompts, SAMPLES, config.run.seed, "held out"), strict=True):
        start = len(golds)
        for rollout in rollouts:
            item = JudgeItem(prompt.messages, prompt.meta, rollout.response, rollout.finish_reason)
            values = judge(item)
            golds.append([*(values[name] for name in OBJECTIVES), values["gold"]])
            weights.append(WEIGHTS[prompt.meta["kind"]])
        conversations = tuple(render(tokenizer, prompt.messages, rollout.response) for rollout in rollouts)
        ratings = np.zeros((len(rollouts), len(OBJECTIVES)), np.float32)
        sets.append(PromptSet(prompt.messages, conversations, ratings, ()))
        found = ordered([row[-1] for row in golds[start:]])
        pairs += [(start + better, start + worse) for better, worse in found]
    features = reward_training.extract_features(model, sets, config.learner.micro_batch_tokens, 0, CPU)
    return HeldOut(sets, features, torch.tensor(golds), torch.tensor(weights), torch.tensor(pairs))


def _right(score: Tensor, pairs: Tensor) -> Tensor:
    """1 where the better response has the higher score, else 0. [P]"""
    return (score[pairs[:, 0]] > score[pairs[:, 1]]).float()


def _spread(values: Tensor) -> Tensor:
    return (values - values.mean(0)).square().sum(0)
