"""Which parameters a round trains (adaptation.tier), and DeepSpeed around those of the backbone.

    gate   the gate and its scale, on cached states: cannot change what an objective means
    heads  the heads too
    lora   low-rank updates of the backbone's attention, heads and gate
    top    the backbone's last top_layers layers and its final norm, heads and gate
    full   everything

Called by learner/adaptation/round.py. The backbone is trained in float32 and serves in the dtype that it came in; the model
is weighed as it would serve.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import Tensor, nn

from common.config.config import LearnerConfig
from learner.adaptation.backbone_landscape import BackboneLandscape, FitSets
from learner.adaptation.fit import Method, fit_candidate
from learner.ranks.engine import Engine
from learner.ranks.progress import Report
from learner.reward_model.lora import add_lora, merge_lora
from rewarder.model import GatedRewardModel


def fit_backbone_tier(
    model: GatedRewardModel, sets: FitSets, method: Method, learner: LearnerConfig, scale: float, report: Report
) -> None:
    """Trains the model in place; every rank calls it. Under ZeRO-3 a copy is sharded and its weights are brought back."""
    dtype, settings = model.backbone.dtype, method.settings
    trained = model if settings.zero_stage < 3 else copy.deepcopy(model)
    choose_trainable(trained, method)
    config = replace(learner, zero_stage=settings.zero_stage, weight_decay=0.0)
    engine = Engine(trained, config, settings.learning_rate, model.device)
    fit_candidate(BackboneLandscape(engine, model, sets, method, scale), settings, report)
    if trained is not model:
        _bring_back(engine, model, method)
    engine.free()
    _settle(model, dtype)


def choose_trainable(model: GatedRewardModel, method: Method) -> None:
    """Freezes what the tier does not train, and puts low-rank updates in place."""
    settings, backbone = method.settings, model.backbone
    model.requires_grad_(False)
    for part in (model.gating, model.regression_layer):
        part.requires_grad_(True)
    if settings.tier == "lora":
        add_lora(backbone, settings.lora_rank, method.seed)
    elif settings.tier == "top":
        for layer in top_layers(backbone, settings.top_layers):
            layer.float().requires_grad_(True)
    else:
        backbone.float().requires_grad_(True)
    if method.gradient_checkpointing:
        backbone.gradient_checkpointing_enable({"use_reentrant": False})
        backbone.train()  # transformers checkpoints in training mode only


def top_layers(backbone: nn.Module, count: int) -> list[nn.Module]:
    """The last `count` decoder layers and what follows them. Raises ValueError where the backbone has no list of that name."""
    children = list(backbone.named_children())
    names = [name for name, _ in children]
    if "layers" not in names:
        raise ValueError(
            f"{type(backbone).__name__} has no list of layers called 'layers', of which tier top trains the last; use "
            "adaptation.tier: lora, or full"
        )
    place = names.index("layers")
    layers = children[place][1]
    assert isinstance(layers, nn.ModuleList)
    after = [module for _, module in children[place + 1 :] if any(True for _ in module.parameters())]
    return [*layers[-count:], *after]


def _bring_back(engine: Engine, model: GatedRewardModel, method: Method) -> None:
    """The whole weights of a sharded copy, one parameter at a time."""
    if method.settings.tier == "lora":
        add_lora(model.backbone, method.settings.lora_rank, method.seed)
    elif method.settings.tier == "full":
        model.backbone.float()
    own: dict[str, Tensor] = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in engine.full_parameters():
            own[name].data = value.to(own[name].device, copy=True)


def _settle(model: GatedRewardModel, dtype: torch.dtype) -> None:
    """Leaves the model as it serves: plain layers in their dtype, nothing trained."""
    merge_lora(model.backbone)
    model.backbone.gradient_checkpointing_disable()
    nn.Module.to(model.backbone, dtype)
    model.eval().requires_grad_(False)
