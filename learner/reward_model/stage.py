"""Stage `reward_model` on one rank: make the reward model (or take the one given), calibrate, measure, write.

    ratings, pairs -> gated model: stage 1, debias, gate -> temperatures on held-out prompts -> rm/version_0, report.json
             pairs -> Bradley-Terry baseline, where it is asked for                          -> rm/baseline

The baseline comes after all of the gated model, which is therefore the same with it and without. Called by
learner/worker.py; every rank runs it, and rank 0 writes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from common.chance import chance_warnings
from common.config.config import Config, RewardTrainingConfig
from common.data.label_sources import LabelFiles
from common.json_text import json_text
from learner.policy.source import revision_of, tokenizer_of
from learner.ranks.progress import Report
from learner.reward_model import baseline, calibration, held_out, length_bias
from learner.reward_model import training as reward_training
from learner.reward_model.backbone_fit import Seeds, fit_backbone
from learner.reward_model.calibration import preference_column
from learner.reward_model.data import PromptSet, read_labels, sides_of
from learner.reward_model.heads import fit_frozen
from learner.reward_model.training import Features
from rewarder.aggregation import aggregation_of
from rewarder.bradley_terry import new_scalar_model, save_classifier, stock_classifier
from rewarder.debias import fit_debias
from rewarder.model import GatedRewardModel

TRAINING, HELD_OUT = "training", "held out"  # sides of the split


class RewardStage:
    """Reads the labels, makes the model and its baseline, and writes both."""

    def __init__(self, config: Config, rank: int, device: torch.device, report: Report):
        self._policy, self._rewarder, self._aggregation = config.policy, config.rewarder, config.aggregation
        self._learner, self._settings, self._seed = config.learner, config.learner.reward_model, config.run.seed
        self._rank, self._device, self._report = rank, device, report
        self._frozen: dict[str, Features] = {}  # of a backbone that no stage moves: by side of the split

    def run(self, policy: str, files: LabelFiles, directory: str, plain: str | None) -> dict[str, float]:
        """Trains (or, where rewarder.model names one, only calibrates) the reward model and writes it as version 0 to
        `directory`, with its report; trains a Bradley-Terry model on the same pairs and writes it to `plain`, where that is
        given. Raises ValueError for labels that nothing can be learned from, and CheckpointError."""
        model, tokenizer = self._start(policy), self._tokenizer(policy)
        labels = read_labels(files, tokenizer, self._rewarder.max_tokens)
        sides = sides_of(labels, files.strengths, model.objectives, self._rewarder, self._settings)
        if plain is not None:  # refused before anything is trained
            stock_classifier(model)
            baseline.paired(sides[0])
        record: dict[str, Any] = self._gated(model.to(self._device), *sides) | {"rows": labels.counts()}
        if self._rank == 0:
            model.save(directory, tokenizer)
        del model  # two models need not fit at once
        if plain is not None:
            record["report"] |= self._plain(policy, *sides, tokenizer, plain)
        record["chance_warnings"] = chance_warnings(record["report"])
        if self._rank == 0:
            (Path(directory) / "report.json").write_text(json_text(record, indent=1))
        return record["report"]

    # ---- the gated model ----------------------------------------------------------------------------------------------

    def _gated(
        self, model: GatedRewardModel, training: Sequence[PromptSet], unseen: Sequence[PromptSet]
    ) -> dict[str, Any]:
        """Trains and calibrates the model in place; what report.json says of it."""
        alphas = self._train(model, training) if self._rewarder.model is None else {}
        features, column = self._features(model, unseen, HELD_OUT), preference_column(self._rewarder, model.objectives)
        aggregation = aggregation_of(self._aggregation, model.objectives)
        fitted = calibration.calibrate(model, features, aggregation, column)
        model.info = replace(model.info, calibration=fitted)
        report = held_out.held_out_report(model, features, column) | alphas
        report["rm/pair_accuracy_length"] = held_out.length_accuracy(training, unseen)
        return {
            "report": report,
            "length_bias": _length_bias(model, features, unseen),
            "calibration": fitted.to_dict(),
            "calibration_warnings": calibration.warnings(fitted),
            "seed": self._seed,
            "held_out_prompts": len(unseen),
        }

    def _start(self, policy: str) -> GatedRewardModel:
        rewarder, settings = self._rewarder, self._settings
        if rewarder.model is not None:
            return GatedRewardModel.load(rewarder.model, rewarder.dtype, rewarder.revision, rewarder.objectives)
        return GatedRewardModel.from_policy(
            policy,
            rewarder.objectives,
            settings.gate_hidden,
            settings.gate_layers,
            settings.gate_temperature,
            settings.initial_scale,
            self._seed,
            dtype=self._backbone_dtype,
            verbosity=settings.verbosity,
            revision=revision_of(policy, self._policy),
        )

    def _train(self, model: GatedRewardModel, training: Sequence[PromptSet]) -> dict[str, float]:
        """Stage 1 (heads, and the backbone where it is trained), debias, gate; returns the picked alphas of ridge."""
        settings, alphas = self._settings, {}
        column = preference_column(self._rewarder, model.objectives)
        if settings.stage_1 == "regression":
            self._descend(model, training, settings, column, self._report)
        features = self._features(model, training, TRAINING)
        if settings.stage_1 == "ridge":
            alphas = fit_frozen(model, features, training, column, self._report)
        if settings.verbosity is not None:
            scores = calibration.outputs(model, features).scores.cpu()
            matrix = fit_debias(scores, model.objectives.index(settings.verbosity))
            model.reward_transform_matrix.data.copy_(matrix)
        if len(features.pairs):
            reward_training.train_gate(model, features, settings, self._seed, self._report)
        return alphas

    # ---- its baseline -------------------------------------------------------------------------------------------------

    def _plain(
        self,
        policy: str,
        training: Sequence[PromptSet],
        unseen: Sequence[PromptSet],
        tokenizer: Any,
        directory: str,
    ) -> dict[str, float]:
        """Trains the baseline from the gated model's start and writes it; its numbers for the report."""
        revision = revision_of(policy, self._policy)
        model = new_scalar_model(policy, self._seed, self._backbone_dtype, revision).to(self._device)
        if self._settings.stage_1 == "ridge":
            features = self._features(model, training, TRAINING)  # those of the gated model
            baseline.fit_head(model, features, self._settings, self._seed, self._report)
        else:
            settings, report = baseline.pairs_alone(self._settings), baseline.named(self._report)
            self._descend(model, baseline.paired(training), settings, None, report)
        if self._rank == 0:
            save_classifier(model, directory, tokenizer)
        return held_out.baseline_report(model, self._features(model, unseen, HELD_OUT))

    # ---- both ---------------------------------------------------------------------------------------------------------

    def _descend(
        self,
        model: GatedRewardModel,
        training: Sequence[PromptSet],
        settings: RewardTrainingConfig,
        column: int | None,
        report: Report,
    ) -> None:
        """Stage 1 by gradient; `column` is the objective that the pairs train, where there is one."""
        seeds = Seeds(self._seed, self._seed)
        fit_backbone(model, training, self._learner, settings, column, seeds, self._rank, self._device, report)

    def _features(self, model: GatedRewardModel, sets: Sequence[PromptSet], side: str) -> Features:
        """Those of one side; a frozen backbone passes once, for the gated model and its baseline."""
        if side in self._frozen:
            return self._frozen[side]
        budget, cache = self._learner.micro_batch_tokens, self._settings.feature_cache
        found = reward_training.extract_features(model, sets, budget, self._rank, self._device, cache, self._report)
        if self._settings.stage_1 == "ridge":
            self._frozen[side] = found
        return found

    @property
    def _backbone_dtype(self) -> str:
        """A frozen backbone computes hidden states as it will serve; a trained one holds its parameters in float32."""
        frozen = self._settings.stage_1 == "ridge" or self._settings.lora_rank is not None
        return self._rewarder.dtype if frozen else "float32"

    def _tokenizer(self, policy: str) -> Any:
        """Loads the tokenizer of the model that is given, else that of the policy."""
        if self._rewarder.model is None:
            return tokenizer_of(policy, self._policy)
        return AutoTokenizer.from_pretrained(self._rewarder.model, revision=self._rewarder.revision)


def _length_bias(
    model: GatedRewardModel, features: Features, sets: Sequence[PromptSet]
) -> dict[str, length_bias.Correlations]:
    output, names = calibration.outputs(model, features), model.objectives
    verbosity = None if model.info.verbosity is None else names.index(model.info.verbosity)
    tokens = torch.tensor([c.response_end - c.prompt_end for prompt in sets for c in prompt.conversations])
    scores, gates, matrix = (
        output.scores.cpu(),
        output.gate_weights.cpu(),
        model.reward_transform_matrix.detach().cpu(),
    )
    return length_bias.length_bias(scores, gates, matrix, names, verbosity, tokens, features.prompt_of)
