"""driver/preflight/round_cost.py: memory by tier on Llama-3-8B by hand, and passes as the landscape of the backbone takes
them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import Tensor

from common.config.config import META_METHODS, METHODS, Config
from common.config.file import BASE, load_config
from common.model_size import Shape, shape_of
from driver.preflight.placement import roles_of
from driver.preflight.round_cost import adapter_bytes, most_sequences, round_lines, times_plain, update_sequences
from learner.adaptation.backbone_landscape import BackboneLandscape
from learner.adaptation.meta_rm import InnerStep, Loss, accumulate_update, passes
from tests.unit.preflights import GOOD, SHAPE, Check, make_model

ALL, LAYER = 8_030_261_248, 218_112_000  # parameters of Llama-3-8B, and of one of its layers
ROUNDS = ("adaptation.when=iteration", "judge.function=math:sqrt", "data.preferences=p.jsonl", "data.ratings=r.jsonl")


def config(*overrides: str) -> Config:
    return load_config(BASE, [*GOOD, *ROUNDS, "rewarder.dtype=bfloat16", *overrides])


@pytest.fixture
def llama(tmp_path: Path) -> Shape:
    shape = shape_of(make_model(tmp_path, shape=SHAPE))
    assert shape is not None and (shape.parameters, shape.layer_parameters) == (ALL, LAYER)
    return shape


# ---- memory -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tier", ["gate", "heads"])
def test_cached_tiers_weigh_the_model_and_its_states(llama: Shape, tier: str) -> None:
    """Judged pairs 2 x 256, samples of at most 4 x 256 groups of 8, original prompts 2 x 2000 of 2; 8 bytes x 4096 each."""
    chosen = config(f"adaptation.tier={tier}")
    assert most_sequences(chosen) == 512 + 8192 + 8000
    assert adapter_bytes(chosen, llama) == 2 * ALL + 8 * 4096 * 16704
    assert adapter_bytes(config(f"adaptation.tier={tier}", "adaptation.gpus=1"), llama) == 2 * ALL, "states are in RAM"
    twice = config("adaptation.fit_rounds=99", "iteration.num=3")
    assert most_sequences(twice) == 512 + 256 + 8192 + 8000, "two rounds: the first one's 128 pairs again"
    assert most_sequences(config("iteration.num=1")) == 512 + 8192 + 8000, "no round, and none before it"
    few = config("iteration.steps=4", "learner.groups_per_step=10", "adaptation.min_pairs=20")
    assert most_sequences(few) == 512 + 40 * 8 + 8000
    label_free = config("adaptation.method=none", "adaptation.when=steps", "adaptation.every_steps=5")
    assert most_sequences(label_free) == 256 + 5 * 64 * 8 + 8000


def test_low_rank_updates_are_counted_by_hand(llama: Shape) -> None:
    """q and o: 4096 + 4096, k and v: 4096 + 1024; rank 8, 32 layers."""
    updates = 32 * 8 * (2 * 8192 + 2 * 5120)
    chosen = config("adaptation.tier=lora")
    assert adapter_bytes(chosen, llama) == 2 * ALL + 16 * updates


def test_top_layers_are_trained_in_float32(llama: Shape) -> None:
    top = 2 * LAYER + 4096
    chosen = config("adaptation.tier=top", "adaptation.top_layers=2")
    assert adapter_bytes(chosen, llama) == 2 * (ALL - top) + 16 * top
    every = config("adaptation.tier=top", "adaptation.top_layers=99")
    assert adapter_bytes(every, llama) < adapter_bytes(config("adaptation.tier=full"), llama)


@pytest.mark.parametrize(("stage", "each"), [(0, 16), (1, 10), (2, 7), (3, 4 + 4)])
def test_the_whole_model_is_sharded_by_zero(llama: Shape, stage: int, each: int) -> None:
    """Under ZeRO-3 each rank holds the float32 copy too that the weights are brought back to."""
    chosen = config("adaptation.tier=full", "adaptation.ranks=4", f"adaptation.zero_stage={stage}")
    assert adapter_bytes(chosen, llama) == each * ALL


@pytest.mark.parametrize("method", METHODS)
def test_methods_that_move_the_weights_keep_three_vectors(llama: Shape, method: str) -> None:
    """The weights from before, the gradient and the step along it, a rank's part of each."""
    moves = method in ("literal", "no_restore", "look_ahead")
    for stage, share in ((0, 1), (2, 4)):
        settings = "adaptation.tier=full", "adaptation.ranks=4", f"adaptation.zero_stage={stage}"
        plain = adapter_bytes(config(*settings), llama)
        asked = adapter_bytes(config(*settings, f"adaptation.method={method}"), llama)
        assert asked - plain == (12 * ALL / share if moves else 0)
    adam = ("adaptation.tier=full", f"adaptation.method={method}", "adaptation.meta.step=adam")
    assert adapter_bytes(config(*adam), llama) == (36 if moves else 16) * ALL


def test_the_adapter_has_its_ranks_and_says_what_it_holds(llama: Shape) -> None:
    settings = "adaptation.tier=full", "adaptation.method=literal", "adaptation.ranks=2", "adaptation.zero_stage=3"
    (role,) = [r for r in roles_of(config(*settings), ["iterate"], llama, llama) if r.name == "rm_adapter"]
    assert role.num == 2 and role.num_bytes == (8 + 6 + 4) * ALL
    assert role.detail == "weights, gradients, Adam, moved weights; tier full, ZeRO-3 and a whole copy"
    (unknown,) = [r for r in roles_of(config(*settings), ["iterate"], None, None) if r.name == "rm_adapter"]
    assert unknown.num_bytes is None


# ---- time -------------------------------------------------------------------------------------------------------------------


class Still:
    """An engine that goes nowhere."""

    precision = nullcontext

    def take_gradient(self) -> Tensor:
        return torch.ones(3)

    def shift(self, vector: Tensor, scale: float) -> None:
        pass

    def restore(self) -> None:
        pass

    def keep(self) -> None:
        pass

    def dot(self, a: Tensor, b: Tensor) -> float:
        return float(a @ b)


class Counted(BackboneLandscape):
    """The verbs as they are, over passes that are only counted; one pass is a whole batch."""

    def __init__(self) -> None:
        self._engine = Still()  # pyright: ignore[reportAttributeAccessIssue, reportIncompatibleVariableOverride]
        self._parts = {"pairs": [0], "spread": [0]}  # pyright: ignore[reportAttributeAccessIssue, reportIncompatibleVariableOverride]
        self.taken, self._probe = Counter[str](), 0.1

    def _backward(self, loss: Loss, weight: float, signs: Sequence[Tensor | None], *_: object) -> float:
        self.taken[loss] += 1
        return 0.0

    def _signs(self, part: object, *_: object) -> Tensor:
        self.taken["looks"] += 1
        return torch.ones(1)


@pytest.mark.parametrize("second_order", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_passes_are_those_that_an_update_takes(method: str, second_order: bool) -> None:
    counted = Counted()
    accumulate_update(method, counted, InnerStep("normalised", 0.5), 1.0, second_order)
    told = passes(method, second_order)
    assert (told.pairs, told.spread, told.looks) == tuple(counted.taken[name] for name in ("pairs", "spread", "looks"))
    assert (told.spread > 0) == (method in META_METHODS)


def test_the_plan_says_what_a_fit_costs(check: Check) -> None:
    Path("p.jsonl").write_text('{"prompt": "p", "chosen": "a", "rejected": "b"}\n')
    Path("r.jsonl").write_text('{"prompt": "p", "response": "a", "scores": {"a": 0.5}}\n')
    asked = (*ROUNDS, "adaptation.tier=full", "adaptation.method=look_ahead", "adaptation.batch_pairs=16")
    (line,) = [line for line in check(*asked).plan if line.startswith("a round")]
    assert line == (
        "a round of method look_ahead, tier full: 200 updates of 32 + 128 sequences, 6.0x plain training on the 32"
    )
    assert not [line for line in check().plan if line.startswith("a round")]


def test_times_plain_by_hand() -> None:
    """16 meta prompts of 8: J's batch is 128 sequences, L's 64 of original pairs, or 128 with as many judged ones."""
    full = "adaptation.tier=full"
    assert update_sequences(config(full, "adaptation.method=literal")) == (64, 128)
    assert update_sequences(config(full)) == (128, 0) and times_plain(config(full)) == 1.0
    assert times_plain(config(full, "adaptation.method=none")) == 1.0
    assert times_plain(config(full, "adaptation.method=literal")) == (64 + 128) / 64
    assert times_plain(config(full, "adaptation.method=look_ahead")) == (2 * 64 + 128) / 64
    twice = config(full, "adaptation.method=literal", "adaptation.meta.second_order=difference")
    assert times_plain(twice) == pytest.approx((2 * 64 + 3 * 128 + 128 / 3) / 64)
    assert "128 sequences, 1.0x plain" in round_lines(config(full), ["iterate"])[0]
