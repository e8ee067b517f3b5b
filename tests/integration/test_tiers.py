"""The tiers of adaptation that train the backbone, and what their losses and OCRM's weights are made of, by a real DeepSpeed of
one rank in this process."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
import torch.distributed as dist
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerBase

from common.data.data import PreferencePair
from common.types import Message
from learner.adaptation.backbone_landscape import BackboneLandscape, FitSets
from learner.adaptation.candidates import judged_sets, propose
from learner.adaptation.fit import Method
from learner.adaptation.meta_rm import Loss
from learner.adaptation.ocrm import log_ratios
from learner.adaptation.tiers import choose_trainable, fit_backbone_tier
from learner.ranks.engine import Engine, init_process_group
from tests.integration.models import tiny_policy
from tests.integration.ranks import free_port
from tests.integration.small_fit import fit_sets
from tests.unit.adaptation import (
    OBJECTIVES,
    adapter,
    config,
    digests,
    fit,
    make_world,
    preference,
    samples,
    served_and_judge,
)

CURVATURE_ERROR = 0.005  # relative, of float32 finite differences; measured 0.0002 (L) and 0.0011 (J)
ROUGH_ERROR = 0.2  # of low-rank updates in a bfloat16 backbone; measured 0.016 and 0.12

pytestmark = pytest.mark.usefixtures("one_rank")


@pytest.fixture(scope="module")
def one_rank() -> Iterator[None]:
    torch.set_num_threads(1)
    init_process_group(0, 1, "127.0.0.1", free_port(), 0)
    yield
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return make_world(tmp_path_factory.mktemp("world"))


def test_the_lora_tier_is_held_to_the_ratings(world: dict[str, Any], tmp_path: Path) -> None:
    """At this rate R2 falls by .29 to 1.5, whatever the seed, and the candidate still orders the original pairs (.85 to 1)."""
    lora = ("adaptation.tier=lora", "adaptation.steps=10", "adaptation.batch_pairs=16", "adaptation.learning_rate=1e-3")
    free = ("adaptation.replay_weight=0", "adaptation.level=1")
    decision = fit(world, adapter(world, *lora, *free), tmp_path / "candidate")
    assert not decision.accepted
    for name in OBJECTIVES:
        assert f"R2 of {name} on held-out ratings falls by" in decision.reason
        assert cast(float, decision.numbers[f"candidate_r2/{name}"]) < 0.9 < cast(float, decision.numbers[f"r2/{name}"])


@pytest.mark.parametrize(
    ("tier", "trained"),
    [
        ("lora", "layers.0.self_attn layers.1.self_attn gating regression_layer"),
        ("top", "layers.1. backbone.norm gating regression_layer"),
        ("full", "backbone gating regression_layer"),
    ],
)
def test_each_tier_lowers_its_loss_and_leaves_the_rest(tmp_path: Path, tier: str, trained: str) -> None:
    served, judge, tokenizer = served_and_judge(tmp_path)
    items = propose(samples(60), 30, 30, 0.1, seed=0).items
    sets = judged_sets(
        items, {item.key: preference(judge, tokenizer, item) for item in items}, OBJECTIVES, tokenizer, 50
    )
    model, seen, chosen = copy.deepcopy(served), [], config("adaptation.steps=12", f"adaptation.tier={tier}")
    method = Method(chosen.adaptation, 10.0, None, 400, 0)
    given = FitSets(sets, sets[:4], []), method, chosen.learner, 1.0
    fit_backbone_tier(model, *given, lambda *values: seen.append(values[3]))
    assert seen[-1]["preference"] < 0.8 * seen[0]["preference"]
    changed = {n for n, value in model.state_dict().items() if not torch.equal(value, served.state_dict()[n])}
    assert all(any(part in name for part in trained.split()) for name in changed), changed
    assert all(any(part in name for name in changed) for part in trained.split())
    twice = copy.deepcopy(served)
    given = FitSets(sets, sets[:4], []), replace(method, gradient_checkpointing=True), chosen.learner, 1.0
    fit_backbone_tier(twice, *given, lambda *_: None)
    assert not twice.backbone.training
    for name, value in twice.state_dict().items():
        torch.testing.assert_close(value, model.state_dict()[name], msg=name, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("tier", "stage"), [("lora", 0), ("top", 0), ("full", 0), ("full", 3)])
def test_a_discarded_candidate_leaves_nothing_and_touches_nothing(
    world: dict[str, Any], tmp_path: Path, tier: str, stage: int
) -> None:
    before = digests(world["root"])
    few = "adaptation.steps=3", "adaptation.batch_pairs=8", "adaptation.meta.prompts=4", "adaptation.method=literal"
    made = adapter(world, *few, f"adaptation.tier={tier}", f"adaptation.zero_stage={stage}")
    decision = fit(world, made, tmp_path / "candidate", wrong=True)
    assert not decision.accepted and made.progress().done == 3
    assert list(tmp_path.iterdir()) == [] and digests(world["root"]) == before


# ---- second derivatives ---------------------------------------------------------------------------------------------------


def small_landscape(
    directory: Path, autocast: bool, tier: str = "full", dtype: torch.dtype = torch.float32
) -> tuple[Engine, BackboneLandscape, list[torch.nn.Parameter]]:
    """On a batch of several passes; attention by plain products, which can be differentiated twice."""
    model, _, tokenizer = served_and_judge(directory)
    torch.nn.Module.to(model.backbone, dtype)
    model.backbone.set_attn_implementation("eager")
    settings = config(f"adaptation.tier={tier}", "adaptation.batch_pairs=6", "adaptation.meta.prompts=4")
    method = Method(settings.adaptation, 10.0, None, 60, 0)
    choose_trainable(model, method)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if name.endswith(".up"):  # low-rank updates start at nothing, where half of their derivatives vanish
            parameter.data.normal_(0, 0.05, generator=generator)
    engine = Engine(model, replace(settings.learner, autocast=autocast), 1e-3, torch.device("cpu"))
    made = BackboneLandscape(engine, model, fit_sets(tokenizer), method, 0.5)
    made.draw()
    return engine, made, [parameter for parameter in model.parameters() if parameter.requires_grad]


def exact_curvature(
    made: BackboneLandscape, loss: Loss, vector: torch.Tensor, parameters: list[torch.nn.Parameter]
) -> torch.Tensor:
    """H v by differentiating twice through the same passes, without DeepSpeed."""
    plain = SimpleNamespace(module=made._model, precision=nullcontext)
    made._engine, made._precision = cast(Engine, plain), nullcontext
    passes = [made._spread(part, None) if loss == "spread" else made._pairs(part) for part in made._parts[loss]]
    value = torch.stack([part.weight * one for part, one in zip(made._parts[loss], passes, strict=True)]).sum()
    first = torch.autograd.grad(value, parameters, create_graph=True, materialize_grads=True)
    along = (torch.cat([part.flatten() for part in first]) * vector).sum()
    second = torch.autograd.grad(along, parameters, materialize_grads=True)
    return torch.cat([part.flatten() for part in second])


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("loss", ["pairs", "spread"])
def test_finite_differences_are_the_second_derivative(tmp_path: Path, loss: Loss, autocast: bool) -> None:
    """Along the other loss's gradient, as look_ahead and literal take them. Where training autocasts, too."""
    engine, made, parameters = small_landscape(tmp_path, autocast)
    _, vector = made.gradient("pairs" if loss == "spread" else "spread")
    before = [parameter.detach().clone() for parameter in parameters]
    made.accumulate_curvature(loss, 2.0, vector)
    found, exact = engine.take_gradient(), exact_curvature(made, loss, 2.0 * vector, parameters)
    assert len(made._parts[loss]) > 1 and float(exact.norm()) > 0
    error = float((found - exact).norm() / exact.norm())
    assert error < CURVATURE_ERROR, error
    assert all(torch.equal(now, was) for now, was in zip(parameters, before, strict=True))
    engine.free()


@pytest.mark.parametrize(("tier", "bound"), [("top", CURVATURE_ERROR), ("lora", ROUGH_ERROR)])
@pytest.mark.parametrize("loss", ["pairs", "spread"])
def test_finite_differences_above_a_bfloat16_backbone(tmp_path: Path, loss: Loss, tier: str, bound: float) -> None:
    """Layers below those of tier top stand still, and these are float32; low-rank updates pass through bfloat16."""
    engine, made, parameters = small_landscape(tmp_path, True, tier, torch.bfloat16)
    _, vector = made.gradient("pairs" if loss == "spread" else "spread")
    made.accumulate_curvature(loss, 1.0, vector)
    found, exact = engine.take_gradient(), exact_curvature(made, loss, vector, parameters)
    assert float((found - exact).norm() / exact.norm()) < bound
    engine.free()


# ---- OCRM -----------------------------------------------------------------------------------------------------------------


def log_prob(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, pair: PreferencePair, text: str, temperature: float
) -> float:
    """Of one response, token by token."""
    turns = [{"role": message.role, "content": message.content} for message in pair.messages]
    answer = {"role": "assistant", "content": text}
    start = len(ids_of(tokenizer, turns, True))
    ids = ids_of(tokenizer, [*turns, answer], False)
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0].double() / temperature
    return float(sum(torch.log_softmax(logits[i - 1], -1)[ids[i]] for i in range(start, len(ids))))


def ids_of(tokenizer: PreTrainedTokenizerBase, turns: list[dict[str, str]], opened: bool) -> list[int]:
    found: Any = tokenizer.apply_chat_template(turns, tokenize=True, add_generation_prompt=opened, return_dict=False)
    return found


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_ratios_are_those_of_plain_passes(tmp_path: Path, temperature: float) -> None:
    policy, reference = (tiny_policy(tmp_path / str(seed), seed) for seed in (0, 1))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "0")
    asked = (Message("user", "w1 w2"),), (Message("user", "w7"),), (Message("user", "w8 w9 w10"),)
    texts = ("w3 w4 w5", "w6"), ("w11", "w12 w13 w14 w15"), ("w16 w17", "w18")
    pairs = [PreferencePair(prompt, *both) for prompt, both in zip(asked, texts, strict=True)]
    found = log_ratios(policy, reference, pairs, tokenizer, temperature, 20, 0, torch.device("cpu"))
    for pair, row in zip(pairs, found, strict=True):
        for text, ratio in zip((pair.chosen, pair.rejected), row, strict=True):
            of_policy, of_reference = (log_prob(m, tokenizer, pair, text, temperature) for m in (policy, reference))
            assert ratio == pytest.approx(of_policy - of_reference, abs=1e-3) and abs(ratio) > 0.1
