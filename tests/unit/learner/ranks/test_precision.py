"""Trained passes are in bfloat16 only where the hardware multiplies bfloat16, unless the configuration says otherwise."""

import pytest
import torch

from learner.ranks import precision
from learner.ranks.precision import autocasts, multiplies_bfloat16

CPU = torch.device("cpu")


def capabilities(monkeypatch: pytest.MonkeyPatch, architecture: str, **instructions: bool) -> None:
    found = {"architecture": architecture, "amx_bf16": False, "avx512_bf16": False, "avx2": True, **instructions}
    monkeypatch.setattr(precision.torch.cpu, "get_capabilities", lambda: found)


@pytest.mark.parametrize("instruction", ["amx_bf16", "avx512_bf16"])
def test_a_cpu_with_instructions_for_bfloat16_uses_them(monkeypatch: pytest.MonkeyPatch, instruction: str) -> None:
    capabilities(monkeypatch, "x86_64", **{instruction: True})
    assert autocasts(None, CPU)


def test_a_cpu_without_them_trains_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    capabilities(monkeypatch, "x86_64")
    assert not autocasts(None, CPU)


def test_another_architecture_trains_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision.torch.cpu, "get_capabilities", lambda: {"architecture": "aarch64"})
    assert not autocasts(None, CPU)


@pytest.mark.parametrize("wanted", [True, False])
def test_what_the_configuration_says_is_done(wanted: bool) -> None:
    assert autocasts(wanted, CPU) is wanted


def test_torch_reports_the_instructions_by_these_names() -> None:
    """The names are torch's own; a release that renames them fails here."""
    found = torch.cpu.get_capabilities()
    if found["architecture"] == "x86_64":
        assert set(precision.CPU_INSTRUCTIONS) <= set(found)
    assert multiplies_bfloat16(CPU) in (True, False)
