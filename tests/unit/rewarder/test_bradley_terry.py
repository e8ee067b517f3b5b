"""The frozen Bradley-Terry model beside the gated one: a stock classifier with one label, read strictly."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

from common.types import Message
from rewarder.bradley_terry import is_classifier, load_classifier
from rewarder.layout import CheckpointError
from rewarder.scoring import render, score_texts


def test_a_classifier_scores_as_transformers_scores_it(models: Path) -> None:
    model, tokenizer = (
        load_classifier(models / "classifier", "float32"),
        AutoTokenizer.from_pretrained(models / "classifier"),
    )
    theirs = LlamaForSequenceClassification.from_pretrained(models / "classifier").eval()
    for response in ("w1", "w2 w3 w4 w5"):
        messages = [Message("user", "w6 w7")]
        scores, gates = score_texts(model, tokenizer, [(messages, response)], 64, 64)
        ids = torch.tensor([render(tokenizer, messages, response).ids])
        with torch.no_grad():
            logit = theirs(ids).logits[0, 0]
        assert gates.tolist() == [[1.0]]
        assert float(scores[0, 0]) == pytest.approx(float(logit), abs=1e-5)


def test_other_models_are_no_baseline(models: Path, tmp_path: Path) -> None:
    assert is_classifier(models / "classifier") and not is_classifier(models / "gated")
    with pytest.raises(CheckpointError, match="no tensor score.weight"):
        load_classifier(models / "gated", "float32")
    config = LlamaConfig.from_pretrained(models / "policy")
    config.num_labels = 3
    LlamaForSequenceClassification(config).save_pretrained(tmp_path / "three")
    with pytest.raises(CheckpointError, match="want \\[1, hidden\\]"):
        load_classifier(tmp_path / "three", "float32")
