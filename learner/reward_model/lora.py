"""Low-rank updates (LoRA, 2106.09685) of a backbone's attention projections, merged into its weights after the fit.

Called by learner/adaptation/round.py (adaptation.tier: lora) and learner/reward_model/stage_1.py
(learner.reward_model.lora_rank, and members of stage preferences). Forty lines of our own, not a library: a version is one
plain reward model directory, so the updates live only from `add_lora` to `merge_lora`.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj")


class LowRank(nn.Module):
    """y = W x + b + up down x, with W and b frozen in their dtype and the update in float32; up starts at 0, so the layer
    starts as it was."""

    def __init__(self, base: nn.Linear, rank: int, generator: torch.Generator):
        super().__init__()
        self.base = base.requires_grad_(False)
        device = base.weight.device
        down = torch.randn(rank, base.in_features, generator=generator) / base.in_features**0.5
        self.down = nn.Parameter(down.to(device))
        self.up = nn.Parameter(torch.zeros(base.out_features, rank, device=device))

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output plus the low-rank update's."""
        plain = self.base(x)  # under autocast its dtype is another than that of x
        return plain + (x.float() @ self.down.T @ self.up.T).to(plain.dtype)

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """The layer with the update in its weights, rounded to their dtype."""
        weight = self.base.weight
        weight.copy_(weight.float() + self.up @ self.down)
        return self.base


def add_lora(backbone: nn.Module, rank: int, seed: int) -> list[nn.Parameter]:
    """Puts updates of `rank` on every attention projection and returns what is to be trained. Raises ValueError where the
    backbone has no projections of the usual names."""
    projections = [name for name, module in backbone.named_modules() if _is_target(name, module)]
    if not projections:
        raise ValueError(
            f"{type(backbone).__name__} has no linear layers named {', '.join(TARGETS)}, and low-rank updates go there; "
            "use adaptation.tier: gate, learner.reward_model.lora_rank: null, or learner.preferences.train: heads or full"
        )
    generator = torch.Generator().manual_seed(seed)
    for name in projections:
        layer = backbone.get_submodule(name)
        assert isinstance(layer, nn.Linear), f"{name} is a target"
        backbone.set_submodule(name, LowRank(layer, rank, generator))
    return [parameter for _, layer in _low_rank(backbone) for parameter in (layer.down, layer.up)]


def merge_lora(backbone: nn.Module) -> None:
    """Puts plain layers with the updates in their weights back."""
    for name, layer in list(_low_rank(backbone)):
        backbone.set_submodule(name, layer.merged())


def _is_target(name: str, module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) and name.rpartition(".")[2] in TARGETS


def _low_rank(backbone: nn.Module) -> Iterator[tuple[str, LowRank]]:
    return ((name, module) for name, module in backbone.named_modules() if isinstance(module, LowRank))
