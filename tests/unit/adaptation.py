"""A small world for the tests of adaptation: a served reward model whose gate looks at the wrong objective, the judge's
model whose gate looks at the right one, groups of samples, and original pairs on which both agree."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from common.config.config import Config
from common.config.file import BASE, load_config
from common.data.label_sources import LabelFiles
from common.judge import PairItem, Preference
from common.queue.address import QueueAddress
from common.types import Message, Prompt, Reward, Rollout, RolloutGroup, ScoredGroup, ScoredRecord
from learner.adaptation.candidates import Proposal
from learner.adaptation.evidence import Decision
from learner.adaptation.worker import RmAdapter, Round, Versions
from learner.reward_model.training import gated_score
from rewarder.calibrate import Calibration, CalibrationReport
from rewarder.model import GatedRewardModel
from rewarder.scoring import pad_conversations, render
from tests.integration.models import WORDS, tiny_policy

OBJECTIVES = ["good", "safe"]


def served_and_judge(directory: Path) -> tuple[GatedRewardModel, GatedRewardModel, PreTrainedTokenizerBase]:
    """(served, looks at "good"; the judge's, looks at "safe"; tokenizer). Both score around 0.5, as heads that learned ratings
    in [0, 1] do."""
    tiny_policy(directory, 0)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    served = GatedRewardModel.from_policy(directory, OBJECTIVES, 8, 1, 1.0, 2.0, 0).eval()
    weight = served.regression_layer.weight.data.normal_(0, 0.015, generator=torch.Generator().manual_seed(0))
    weight += middle(served, tokenizer)
    judge = copy.deepcopy(served)
    for model, column in ((served, 0), (judge, 1)):
        last = model.gating.layers[-1]
        assert isinstance(last, torch.nn.Linear)
        last.weight.data.zero_()
        last.bias.data.fill_(-2.0)[column] = 2.0
    return served, judge, tokenizer


def middle(model: GatedRewardModel, tokenizer: PreTrainedTokenizerBase) -> torch.Tensor:
    """The head [H] whose score of any sentence is about 0.5: heads have no intercept."""
    rng = np.random.default_rng(3)
    with torch.no_grad():
        rendered = [render(tokenizer, (Message("user", sentence(rng)),), sentence(rng)) for _ in range(200)]
        states = model(*pad_conversations(rendered)).response_state
    return torch.linalg.lstsq(states, torch.full((200, 1), 0.5)).solution[:, 0]


def scores(
    model: GatedRewardModel, tokenizer: PreTrainedTokenizerBase, prompt: Sequence[Message], responses: Sequence[str]
) -> list[float]:
    with torch.no_grad():
        output = model(*pad_conversations([render(tokenizer, prompt, response) for response in responses]))
    return gated_score(output, model.reward_transform_matrix).tolist()


def preference(judge: GatedRewardModel, tokenizer: PreTrainedTokenizerBase, item: PairItem) -> Preference:
    first, second = scores(judge, tokenizer, item.messages, [item.first, item.second])
    return "first" if first > second else "second"


def group(slot: int, responses: Sequence[str], prompt: str = "", truncated: Sequence[int] = ()) -> ScoredGroup:
    """A scored group; its scores do not matter to adaptation."""
    text = prompt or f"{WORDS[slot % 59]} {WORDS[slot // 59 % 59]}"
    asked = Prompt(f"p{slot}", (Message("user", text),), np.array([1, 2], dtype=np.int32), {"kind": "plain"})
    one, nothing = np.array([4], dtype=np.int32), np.zeros(1, dtype=np.float32)
    rollouts = tuple(
        Rollout(response, one, nothing, "length" if i in truncated else "stop", ((0, slot // 4),))
        for i, response in enumerate(responses)
    )
    reward = Reward(nothing, nothing, nothing, nothing, 0.0)
    return ScoredGroup(RolloutGroup(slot, asked, rollouts), (reward,) * len(rollouts), 0, "none")


def samples(count: int, responses: int = 4, seed: int = 0) -> list[ScoredGroup]:
    """Groups with random words as responses, each prompt once."""
    rng = np.random.default_rng(seed)
    return [group(slot, [sentence(rng) for _ in range(responses)]) for slot in range(count)]


def sentence(rng: np.random.Generator) -> str:
    return " ".join(rng.choice(WORDS, rng.integers(2, 6)))


def write_original(
    directory: Path,
    served: GatedRewardModel,
    judge: GatedRewardModel,
    tokenizer: PreTrainedTokenizerBase,
    count: int,
) -> tuple[Path, Path]:
    """(ratings, pairs): original data that the served model orders rightly, and the judge's too."""
    rng, pairs, ratings = np.random.default_rng(7), [], []
    while len(pairs) < count:
        prompt, a, b = (Message("user", sentence(rng)),), sentence(rng), sentence(rng)
        one, other = (
            first - second for first, second in (scores(m, tokenizer, prompt, [a, b]) for m in (served, judge))
        )
        if one * other <= 0:
            continue
        turns = [{"role": "user", "content": prompt[0].content}]
        chosen, rejected = (a, b) if one > 0 else (b, a)
        pairs.append({"prompt": turns, "chosen": chosen, "rejected": rejected})
        with torch.no_grad():
            rated = served(*pad_conversations([render(tokenizer, prompt, a)])).scores[0].tolist()
        noisy = dict(zip(OBJECTIVES, (np.array(rated) + rng.normal(0, 0.01, 2)).clip(0, 1).tolist(), strict=True))
        ratings.append({"prompt": turns, "response": a, "scores": noisy})
    for name, rows in (("ratings", ratings), ("pairs", pairs)):
        (directory / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return directory / "ratings.jsonl", directory / "pairs.jsonl"


SETTINGS = (
    *("adaptation.when=iteration", "judge.function=a:b", "rewarder.objectives=[good,safe]", "rewarder.dtype=float32"),
    *("aggregation.kind=final_score", "learner.reward_model.held_out_fraction=0.3", "adaptation.learning_rate=2e-2"),
    *(
        "adaptation.fit_pairs=40",
        "adaptation.evidence_pairs=40",
        "adaptation.min_pairs=20",
        "adaptation.steps=40",
        "adaptation.lora_rank=4",
    ),
)


def config(*overrides: str) -> Config:
    return load_config(BASE, [*SETTINGS, *overrides])


def make_world(root: Path) -> dict[str, Any]:
    """The served model in a directory, its original data, the judge and 200 groups of samples."""
    served, judge, tokenizer = served_and_judge(root / "policy")
    report = CalibrationReport(0.5, 0.69, 0.2, 0.25, 0.01, 100)
    served.info = dataclasses.replace(served.info, calibration=Calibration((1.0,), (report,)))
    served.save(root / "version_0", tokenizer)
    ratings, pairs = write_original(root, served, judge, tokenizer, 100)
    return {"root": root, "judge": judge, "tokenizer": tokenizer, "ratings": ratings, "pairs": pairs}


class Stream:
    """A scored stream of which the first records are trimmed; also the address that opens it."""

    def __init__(self, records: list[ScoredRecord], trimmed: int = 0):
        self.records = [(f"{i + 1:06d}-0", record) for i, record in enumerate(records)][trimmed:]

    def connect(self) -> Stream:
        return self

    def read_scored(self, cursor: str, max_records: int, block_s: float) -> list[tuple[str, ScoredRecord]]:
        assert block_s == 0, "a tap never waits"
        return [(name, record) for name, record in self.records if name > cursor][:max_records]


def adapter(world: dict[str, Any], *overrides: str, stream: Stream | None = None) -> RmAdapter:
    made = RmAdapter(0, load_config(BASE, [*SETTINGS, *overrides]))
    made.connect(cast(QueueAddress, stream or Stream(list(samples(200)))))
    made.set_original(LabelFiles(str(world["ratings"]), str(world["pairs"])))
    return made


def labels(world: dict[str, Any], proposal: Proposal, wrong: bool = False) -> dict[str, Preference]:
    """The judge's labels of what was proposed, or their opposites for the evidence."""
    found: dict[str, Preference] = {}
    for item in proposal.items:
        found[item.key] = preference(world["judge"], world["tokenizer"], item)
    if wrong:
        turned: dict[Preference, Preference] = {"first": "second", "second": "first"}
        found |= {item.key: turned[found[item.key]] for item in proposal.evidence}
    return found


def fit(world: dict[str, Any], made: RmAdapter, directory: Path, wrong: bool = False) -> Decision:
    proposal = made.propose(0, 0)
    return made.fit(Round(0, proposal, labels(world, proposal, wrong)), versions(world, directory))


def versions(world: dict[str, Any], directory: Path) -> Versions:
    return Versions(str(world["root"] / "version_0"), None, 1, str(directory))


def digests(directory: Path) -> dict[str, str]:
    """Every file under a directory, by its content."""
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
