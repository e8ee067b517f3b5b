"""Which precision the trained passes run in: bfloat16 autocast where the hardware multiplies bfloat16, else float32.

Called by learner/ranks/engine.py. A CPU without such instructions emulates bfloat16: on one with AVX2 alone a training step
took 11 times as long under autocast as in float32 (docs/benchmarks.md).
"""

from __future__ import annotations

import torch

CPU_INSTRUCTIONS = ("amx_bf16", "avx512_bf16")


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether the device has instructions for products of bfloat16 numbers."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    return capabilities["architecture"] == "x86_64" and any(capabilities[name] for name in CPU_INSTRUCTIONS)


def autocasts(wanted: bool | None, device: torch.device) -> bool:
    """What learner.autocast means on this device: itself, or, where it is null, what the hardware does quickly."""
    return multiplies_bfloat16(device) if wanted is None else wanted
