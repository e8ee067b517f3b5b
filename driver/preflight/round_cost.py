"""What a round of the reward model costs by tier and method (docs/adaptation.md): memory of each process of the adapter, and
how many sequences an update passes through the backbone.

Called by the preflight (preflight.py, placement.py). Counts weights, gradients, optimizer state, moved weights and cached
states; activations come on top. Gate and heads, far below one percent of a backbone, are left out.
"""

from __future__ import annotations

from collections.abc import Sequence

from common.config.config import CACHED_TIERS, AdaptationConfig, Config
from common.config.round_times import due_steps
from common.model_size import DTYPE_BYTES, Shape, learner_bytes
from learner.adaptation.meta_rm import passes
from learner.adaptation.worker import GROUPS_PER_PAIR, MOST_ORIGINAL_PROMPTS

MOVING = ("literal", "no_restore", "look_ahead")  # methods that take a gradient at weights that were moved aside
FORWARD_SHARE = 1 / 3  # of a forward and backward pass


def adapter_bytes(config: Config, shape: Shape) -> float:
    """Counts the bytes of one process. Tiers gate and heads: the weights as they serve, and the cached states (in RAM, so
    not of a GPU). Others: the frozen weights as they serve, 16 bytes for each trained parameter, sharded by ZeRO, what a
    moving method keeps, and under ZeRO-3 the whole model that the weights are brought back to (learner/adaptation/tiers.py)."""
    adaptation, each = config.adaptation, DTYPE_BYTES[config.rewarder.dtype]
    if adaptation.tier in CACHED_TIERS:
        return each * shape.parameters + (0 if adaptation.gpus else _state_bytes(config, shape))
    ranks, stage = adaptation.ranks, adaptation.zero_stage
    trained = trained_parameters(adaptation, shape)
    frozen = each * (shape.parameters - (0 if adaptation.tier == "lora" else trained))
    moved = 4 * trained * _vectors(adaptation) / (ranks if stage else 1)
    fitted = learner_bytes(trained, ranks, stage, False) + moved
    return fitted + (frozen / ranks + frozen + 4 * trained if stage == 3 else frozen)


def adapter_detail(adaptation: AdaptationConfig) -> str:
    """What the memory is of."""
    if adaptation.tier in CACHED_TIERS:
        return f"weights{' (states in RAM)' if adaptation.gpus else ', states'}; tier {adaptation.tier}"
    moved = ", moved weights" if adaptation.method in MOVING else ""
    whole = " and a whole copy" if adaptation.zero_stage == 3 else ""
    return f"weights, gradients, Adam{moved}; tier {adaptation.tier}, ZeRO-{adaptation.zero_stage}{whole}"


def trained_parameters(adaptation: AdaptationConfig, shape: Shape) -> int:
    """Counts the parameters of the backbone that a tier trains."""
    if adaptation.tier == "lora":
        return shape.low_rank_parameters(adaptation.lora_rank)
    if adaptation.tier == "top":  # and the final norm
        return min(adaptation.top_layers, shape.layers) * shape.layer_parameters + shape.hidden
    return shape.parameters


def _vectors(adaptation: AdaptationConfig) -> int:
    """Copies of the trained parameters that a moving method keeps: the weights from before (learner/ranks/perturb.py), the
    inner gradient and the step along it; step adam's squares and rates; second order's gradient ahead, its product and the
    probe."""
    if adaptation.method not in MOVING:
        return 0
    meta = adaptation.meta
    return 3 + 2 * (meta.step == "adam") + 3 * (meta.second_order != "none")


def _state_bytes(config: Config, shape: Shape) -> float:
    """Float32 states of prompt and response of each sequence."""
    return 2 * 4 * shape.hidden * most_sequences(config)


def most_sequences(config: Config) -> int:
    """At most so many pass through the backbone to be cached: judged pairs of this round, and earlier ones to fit on too, the
    samples of the kept groups, and original prompts on both sides, of two responses each."""
    adaptation, iteration = config.adaptation, config.iteration
    fitted, rounds = adaptation.fit_pairs if adaptation.method == "labelled" else 0, due_steps(adaptation, iteration)
    pairs, earlier = adaptation.evidence_pairs + fitted, fitted * max(min(adaptation.fit_rounds, len(rounds)) - 1, 0)
    steps = min(rounds.step, iteration.steps)
    groups = min(GROUPS_PER_PAIR * pairs, steps * config.learner.groups_per_step)
    return 2 * (pairs + earlier) + groups * config.actors.responses_per_prompt + 2 * 2 * MOST_ORIGINAL_PROMPTS


# ---- time ---------------------------------------------------------------------------------------------------------------


def round_lines(config: Config, stages: Sequence[str]) -> list[str]:
    """What a fit costs, where there are rounds."""
    adaptation = config.adaptation
    if "iterate" not in stages or not adaptation.enabled:
        return []
    start = f"a round of method {adaptation.method}, tier {adaptation.tier}: {adaptation.steps} updates"
    if adaptation.tier in CACHED_TIERS:
        return [f"{start} on cached states, for which up to {most_sequences(config)} sequences pass the backbone once"]
    of_pairs, of_spread = update_sequences(config)
    beside = f" + {of_spread}" if of_spread else ""
    return [f"{start} of {of_pairs}{beside} sequences, {times_plain(config):.1f}x plain training on the {of_pairs}"]


def update_sequences(config: Config) -> tuple[int, int]:
    """(of L: two for each judged or original pair, of J: all samples of its prompts) in the batches of an update."""
    adaptation = config.adaptation
    fresh = adaptation.method in ("labelled", "pseudo_label")
    has_spread = passes(adaptation.method, False).spread > 0
    samples = adaptation.meta.prompts * config.actors.responses_per_prompt
    return 2 * adaptation.batch_pairs * (1 + fresh), samples * has_spread


def times_plain(config: Config) -> float:
    """Work of an update through the backbone, over that of a plain one on the same labelled sequences."""
    adaptation, (of_pairs, of_spread) = config.adaptation, update_sequences(config)
    taken = passes(adaptation.method, adaptation.meta.second_order != "none")
    whole = taken.pairs * of_pairs + taken.spread * of_spread
    return (whole + FORWARD_SHARE * taken.looks * of_spread) / of_pairs
