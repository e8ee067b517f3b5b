"""One rank of tests/integration/test_backbone_ranks.py.

Fits tier full by each case at each ZeRO stage, from the same model on the same batches, and writes the weights that it ends
with as `CASE/STAGE/...`, each rank its own.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor

from learner.adaptation.backbone_landscape import FitSets
from learner.adaptation.fit import Method
from learner.adaptation.tiers import fit_backbone_tier
from learner.ranks.engine import init_process_group
from rewarder.model import GatedRewardModel
from tests.integration.small_fit import fit_sets
from tests.unit.adaptation import config, served_and_judge

STAGES, STEPS, LEARNING_RATE = (0, 2, 3), 4, 1e-3
CASES = ("literal", "none")
SIZES = ("adaptation.batch_pairs=5", "adaptation.meta.prompts=3", "adaptation.meta.size=0.5")  # no rank's part is whole


def fitted(served: GatedRewardModel, sets: FitSets, method: str, stage: int, rank: int) -> dict[str, Tensor]:
    model, tier = copy.deepcopy(served), ("adaptation.tier=full", f"adaptation.method={method}")
    fit = (f"adaptation.steps={STEPS}", f"adaptation.learning_rate={LEARNING_RATE}", f"adaptation.zero_stage={stage}")
    settings = config(*tier, *fit, *SIZES)
    chosen = Method(settings.adaptation, 10.0, None, 60, 0, rank=rank)
    learner = replace(settings.learner, autocast=False)
    fit_backbone_tier(model, sets, chosen, learner, 0.5, lambda *_: None)
    return model.state_dict()


def work(rank: int, ranks: int, port: int, out: Path) -> None:
    torch.set_num_threads(1)
    # Before the group is made: in it rank 0 alone saves models
    served, _, tokenizer = served_and_judge(out / f"policy{rank}")
    init_process_group(rank, ranks, "127.0.0.1", port, gpus=0)
    sets = fit_sets(tokenizer)
    results = {f"served/0/{name}": value.clone() for name, value in served.state_dict().items()}
    for method in CASES:
        for stage in STAGES:
            found = fitted(served, sets, method, stage, rank)
            results |= {f"{method}/{stage}/{name}": value.clone().contiguous() for name, value in found.items()}
    save_file(results, out / f"rank{rank}.safetensors")
    dist.barrier()
    dist.destroy_process_group()  # gloo's threads may not outlive it: std::terminate at exit
