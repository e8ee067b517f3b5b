"""The real DeepSpeed: MetaRM's step at ZeRO 0 to 3, on one rank and on two, against plain torch. Every rank is a process that
plays all cases of tests/integration/perturb_rank.py."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.integration import perturb_rank as played
from tests.integration.perturb_rank import Net
from tests.integration.ranks import SAME, play, relative_difference

Results = dict[int, list[dict[str, Tensor]]]  # by number of ranks, then by rank
SETUPS = [(ranks, stage) for ranks in (1, 2) for stage in played.STAGES]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return {ranks: play(played.work, ranks, tmp_path_factory.mktemp(f"ranks{ranks}")) for ranks in (1, 2)}


def of(results: dict[str, Tensor], case: str, stage: int, name: str) -> dict[str, Tensor]:
    prefix = f"{case}/{stage}/{name}"
    found = {key.removeprefix(prefix): value for key, value in results.items() if key.startswith(prefix)}
    assert found, prefix
    return found


def parameters(results: dict[str, Tensor], case: str, stage: int, name: str = "end") -> dict[str, Tensor]:
    return of(results, case, stage, f"{name}/")


def assert_same_bits(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name


# ---- the reference: one process, whole batches, torch's AdamW ---------------------------------------------------------


class Reference:
    """MetaRM's step as it is written: J's gradient, the weights moved along it, L's gradient there, and the step from the
    weights before (`keep`: from there)."""

    def __init__(self, rho: float = played.RHO, keep: bool = False, frozen: bool = False):
        self.net = Net(frozen)
        self.start = {name: value.clone() for name, value in self.end().items()}
        self._rho, self._keep = rho, keep
        self._trained = [parameter for parameter in self.net.parameters() if parameter.requires_grad]
        self._adamw = torch.optim.AdamW(
            self._trained, played.LEARNING_RATE, betas=played.BETAS, weight_decay=played.WEIGHT_DECAY
        )
        self.norms: list[float] = []
        self.grad_norms: list[float] = []
        for step in range(played.STEPS):
            self._step(*played.rows_of(step))

    def _step(self, inner: Tensor, outer: Tensor) -> None:
        before = [parameter.detach().clone() for parameter in self._trained]
        gradient = self._gradient(played.inner_loss, inner)
        norm = torch.sqrt(sum((part.square().sum() for part in gradient), torch.zeros(())))
        self.norms.append(float(norm))
        self._move([value + self._rho / norm * part for value, part in zip(before, gradient, strict=True)])
        for parameter, part in zip(self._trained, self._gradient(played.outer_loss, outer), strict=True):
            parameter.grad = part
        if not self._keep:
            self._move(before)
        self.grad_norms.append(float(torch.nn.utils.clip_grad_norm_(self._trained, played.GRAD_CLIP)))
        self._adamw.step()

    def _gradient(self, loss: Callable[[tuple[Tensor, Tensor]], Tensor], rows: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(loss(self.net(rows)), self._trained, allow_unused=True, materialize_grads=True)

    def _move(self, values: list[Tensor]) -> None:
        for parameter, value in zip(self._trained, values, strict=True):
            parameter.data.copy_(value)

    def end(self) -> dict[str, Tensor]:
        """As Played.note."""
        with torch.no_grad():
            forward = torch.cat(self.net(played.rows_of(99)[0]), -1)
        return {name: value.detach() for name, value in self.net.named_parameters()} | {"forward": forward}


def assert_as_reference(results: dict[str, Tensor], case: str, stage: int, reference: Reference) -> None:
    assert relative_difference(parameters(results, case, stage), reference.end(), reference.start) < SAME
    for step in range(played.STEPS):
        norm, grad_norm = results[f"{case}/{stage}/norm{step}"], results[f"{case}/{stage}/grad_norm{step}"]
        assert float(norm) == pytest.approx(reference.norms[step], rel=1e-4)
        assert float(grad_norm) == pytest.approx(reference.grad_norms[step], rel=1e-4)


@pytest.mark.parametrize(("ranks", "stage"), SETUPS)
@pytest.mark.parametrize("case", ["metarm", "kept", "frozen"])
def test_the_step_is_that_of_plain_torch(results: Results, case: str, ranks: int, stage: int) -> None:
    reference = Reference(keep=case == "kept", frozen=case == "frozen")
    assert min(reference.grad_norms) > played.GRAD_CLIP, "clipping is part of what is compared"
    for rank in results[ranks]:
        assert_as_reference(rank, case, stage, reference)


def test_the_cases_could_be_told_apart() -> None:
    """The tolerance is far below what a shift, a restore and the frozen layer change."""
    ends = [Reference(), Reference(rho=0.0), Reference(keep=True), Reference(frozen=True)]
    for index, one in enumerate(ends):
        for other in ends[index + 1 :]:
            assert relative_difference(one.end(), other.end(), one.start) > 10 * SAME


@pytest.mark.parametrize(("ranks", "stage"), SETUPS)
def test_a_gradient_taken_leaves_the_steps_as_they_were(results: Results, ranks: int, stage: int) -> None:
    """Weights and Adam's moments, bit by bit; also one taken where there is none, and after the last step."""
    for rank in results[ranks]:
        assert_same_bits(parameters(rank, "taken", stage), parameters(rank, "plain", stage))
        moments = of(rank, "taken", stage, "moments/")
        assert_same_bits(moments, of(rank, "plain", stage, "moments/"))
        assert max(float(value.abs().max()) for value in moments.values()) > 0
        assert_same_bits(of(rank, "taken", stage, "grad_norm"), of(rank, "plain", stage, "grad_norm"))


@pytest.mark.parametrize(("ranks", "stage"), SETUPS)
def test_restore_puts_back_every_bit(results: Results, ranks: int, stage: int) -> None:
    """After two shifts, which every weight that the inner loss needs and every forward pass sees."""
    start = Reference().start
    start["resident"] = start["inner.weight"]
    for rank in results[ranks]:
        before, shifted = (parameters(rank, "restored", stage, name) for name in ("before", "shifted"))
        assert_same_bits(parameters(rank, "restored", stage, "after"), before)
        assert {name for name, value in before.items() if torch.equal(value, shifted[name])} == {
            "outer.weight",
            "outer.bias",
        }
        theirs = parameters(results[1][0], "restored", 0, "shifted")
        assert relative_difference(shifted, theirs, start) < SAME


@pytest.mark.parametrize("stage", played.STAGES)
def test_every_rank_has_the_same_weights(results: Results, stage: int) -> None:
    one, other = results[2]
    for case in ("metarm", "kept", "frozen", "taken"):
        assert_same_bits(parameters(one, case, stage), parameters(other, case, stage))
