"""Hidden states by two ranks: each runs its own rows, and both have all of them, in memory and from the cache."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from transformers import AutoTokenizer

from common.types import Message
from learner.reward_model.data import PromptSet
from learner.reward_model.training import extract_features
from rewarder.model import GatedRewardModel
from rewarder.scoring import render
from tests.integration.models import WORDS, tiny_policy
from tests.integration.ranks import start

OBJECTIVES = ["good", "safe"]


def sets_of(policy: Path) -> list[PromptSet]:
    """Five prompts with one to five responses each."""
    tokenizer = AutoTokenizer.from_pretrained(policy)
    made = []
    for i in range(5):
        messages = (Message("user", WORDS[i]),)
        conversations = tuple(render(tokenizer, messages, " ".join(WORDS[: n + 1])) for n in range(i + 1))
        made.append(PromptSet(messages, conversations, np.full((i + 1, 2), np.nan, np.float32), ()))
    return made


def extract(rank: int, ranks: int, port: int, root: str) -> None:
    torch.set_num_threads(1)
    policy, cpu = Path(root) / "policy", torch.device("cpu")
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=ranks)
    model = GatedRewardModel.from_policy(policy, OBJECTIVES, 8, 1, 1.0, 2.0, 0)
    sets = sets_of(policy)
    # The second rank's node has a directory of its own, as without a shared disk.
    for name, cache in (
        ("memory", None),
        ("cache", f"{root}/cache-{ranks}-{rank}"),
        ("again", f"{root}/cache-{ranks}-0"),
    ):
        found = extract_features(model, sets, 20, rank, cpu, cache)
        torch.save((found.prompt.clone(), found.response.clone()), f"{root}/{name}-{ranks}-{rank}.pt")
    dist.destroy_process_group()


def test_two_ranks_have_what_one_has(tmp_path: Path) -> None:
    tiny_policy(tmp_path / "policy", 0)
    for ranks in (1, 2):
        start(extract, ranks, str(tmp_path))
    want = torch.load(tmp_path / "memory-1-0.pt")
    for file in sorted(tmp_path.glob("*-*-*.pt")):
        for ours, theirs in zip(torch.load(file), want, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0, msg=file.name)
    assert [len(list((tmp_path / f"cache-{name}").iterdir())) for name in ("1-0", "2-0", "2-1")] == [1, 1, 1]
