"""A backbone whose passes overflow: training and scoring stop and name the row; no number comes out, none is kept."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from common.config.file import BASE, load_config
from common.data.data import RatedResponse
from common.types import Message
from learner.reward_model import data as reward_data
from learner.reward_model import training as reward_training
from learner.reward_model.stage_1 import Stage1
from rewarder.model import GatedRewardModel
from rewarder.scoring import score_responses, score_texts
from tests.integration.models import OBJECTIVES, tiny_policy

pytestmark = pytest.mark.usefixtures("single_rank")

CPU = torch.device("cpu")
LOUD = "w9"  # a word that the backbone below overflows on; the others pass
CAUSE = "use rewarder.dtype float32 or bfloat16, and check its weights"


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("policy")
    tiny_policy(directory, 0)
    return directory


@pytest.fixture(scope="module")
def tokenizer(policy: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(policy)


@pytest.fixture
def model(policy: Path, tokenizer: PreTrainedTokenizerBase) -> GatedRewardModel:
    """In float16, with one word's embedding beyond its range."""
    made = GatedRewardModel.from_policy(policy, OBJECTIVES, 8, 1, 1.0, 2.0, 0, dtype="float16")
    embedding = made.backbone.get_input_embeddings().weight
    assert isinstance(embedding, torch.Tensor)
    embedding.data[tokenizer.convert_tokens_to_ids(LOUD)] *= 1e6  # float16 ends at 65,504
    return made.eval()


def sets_of(tokenizer: PreTrainedTokenizerBase) -> list[reward_data.PromptSet]:
    """Prompts w0, w1, w2 with two rated responses each; the second one of w1 is loud."""
    rated = [
        RatedResponse((Message("user", f"w{n}"),), f"w3 {LOUD if (n, m) == (1, 1) else m}", {"help": 0.5})
        for n in range(3)
        for m in range(2)
    ]
    return list(reward_data.prompt_sets(rated, [], OBJECTIVES, tokenizer, 50).values())


def test_features_that_overflow_are_named_and_not_cached(
    model: GatedRewardModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    sets = sets_of(tokenizer)
    for cache in (None, str(tmp_path)):
        with pytest.raises(
            ValueError, match=r"hidden states of conversation 3 of 6 are not finite; its prompt is 'w1';.*"
        ) as error:
            reward_training.extract_features(model, sets, 64, 0, CPU, cache)
        assert str(error.value).endswith(CAUSE)
    assert list(tmp_path.iterdir()) == []
    fine = reward_training.extract_features(model, sets[::2], 64, 0, CPU)
    assert bool(fine.response.isfinite().all() and fine.prompt.isfinite().all()), "the rest passes"


class Ranks:
    """The learner's engine as far as the accumulation of a step goes, for one rank; no gradient may come of a bad row."""

    def __init__(self, model: GatedRewardModel) -> None:
        self.module = model
        self.losses: list[float] = []

    def precision(self) -> nullcontext[None]:
        return nullcontext()

    def backward(self, loss: torch.Tensor) -> None:
        self.losses.append(loss.item())


def test_training_stops_before_the_gradient(model: GatedRewardModel, tokenizer: PreTrainedTokenizerBase) -> None:
    engine, sets, settings = Ranks(model), sets_of(tokenizer), load_config(BASE, ["aggregation.kind=final_score"])
    stage = Stage1(engine, model, settings.learner.reward_model, None, 1000, 0, 0)  # pyright: ignore[reportArgumentType]

    def accumulate(part: list[reward_data.PromptSet]) -> dict[str, float]:
        return stage._accumulate(part, 0)

    with pytest.raises(
        ValueError, match=r"scores or gate weights of conversation 3 of 6 are not finite; its prompt is 'w1'"
    ):
        accumulate(sets)
    assert engine.losses == []
    assert np.isfinite(accumulate(sets[::2])["regression"]) and len(engine.losses) == 1


def test_scores_that_overflow_are_named(model: GatedRewardModel, tokenizer: PreTrainedTokenizerBase) -> None:
    prompt, responses = [Message("user", "w1")], ["w2", "w3 w4", f"w5 {LOUD}", "w6"]
    message = rf"of 1 of 4 responses are not finite, first of the response 'w5 {LOUD}'; the backbone's passes overflow"
    with pytest.raises(ValueError, match=message):
        score_responses(model, tokenizer, prompt, responses, 64)
    for batch_tokens in (1, 1000):
        with pytest.raises(ValueError, match=message):
            score_texts(model, tokenizer, [(prompt, response) for response in responses], 64, batch_tokens)
    with pytest.raises(ValueError, match="of 2 of 2 responses are not finite, first of the response 'w2'"):
        score_responses(model, tokenizer, [Message("user", LOUD)], ["w2", "w3"], 64)  # the gate's token, too
    assert bool(score_responses(model, tokenizer, prompt, responses[:2], 64)[0].isfinite().all())
