"""Which pairs of the policy's own samples a round has judged, and what becomes of the labels. Pure of Ray and Redis.

Called by learner/rm_adapter.py. One pair per prompt, from the newest groups back; a prompt's pair is either fitted on or
evidence, by a hash of its opening, and prompts that are held out of the original data are always evidence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from common.data import PreferencePair
from common.judge import PairItem, Preference, pair_item
from common.split import is_held_out, opening_key, prompt_key
from common.types import Message, ScoredGroup
from learner.reward_data import PromptSet, prompt_sets


@dataclass(frozen=True)
class Proposal:
    """Pairs to be judged; oldest_version is the oldest policy that sampled one of them (None where there are none)."""

    fit: tuple[PairItem, ...]
    evidence: tuple[PairItem, ...]
    oldest_version: int | None

    @property
    def items(self) -> list[PairItem]:
        return [*self.fit, *self.evidence]


def propose(
    groups: Sequence[ScoredGroup], fit_pairs: int, evidence_pairs: int, held_out_fraction: float, seed: int
) -> Proposal:
    """At most fit_pairs pairs to fit on and evidence_pairs pairs of evidence, of the newest groups (highest slots)."""
    most = {False: fit_pairs, True: evidence_pairs}
    sides: dict[bool, list[PairItem]] = {False: [], True: []}
    seen: set[str] = set()
    versions: list[int] = []
    for group in sorted(groups, key=lambda scored: scored.group.slot, reverse=True):
        key = prompt_key(group.group.prompt.messages)
        weighs = is_evidence(group.group.prompt.messages, held_out_fraction)
        side = sides[weighs]
        if key in seen or len(side) >= most[weighs] or (pair := _pair(group, seed)) is None:
            continue
        seen.add(key)
        side.append(pair)
        versions += [rollout.oldest_version for rollout in group.group.rollouts]
    return Proposal(tuple(sides[False]), tuple(sides[True]), min(versions, default=None))


def is_evidence(messages: Sequence[Message], held_out_fraction: float) -> bool:
    """Whether a prompt gives evidence: if it is held out of the original data, else one in two, by a hash of its opening."""
    return is_held_out(messages, held_out_fraction) or int(opening_key(messages)[8:16], 16) % 2 == 0


def _pair(scored: ScoredGroup, seed: int) -> PairItem | None:
    """Two of the group's different, whole responses at random; None where there are no two."""
    group = scored.group
    whole = [rollout.response for rollout in group.rollouts if rollout.finish_reason == "stop"]
    different = list({response.strip(): response for response in reversed(whole)}.values())
    if len(different) < 2:
        return None
    a, b = np.random.default_rng([seed, group.slot]).choice(len(different), 2, replace=False)
    return pair_item(group.prompt.messages, group.prompt.meta, different[a], different[b])


def judged_sets(
    items: Sequence[PairItem],
    preferences: Mapping[str, Preference],
    objectives: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    max_tokens: int,
) -> list[PromptSet]:
    """The pairs with a preference as prompt sets without ratings; ties are left out."""
    pairs = [_preferred(item, preferences[item.key]) for item in items if preferences[item.key] != "tie"]
    return list(prompt_sets([], pairs, objectives, tokenizer, max_tokens).values())


def _preferred(item: PairItem, preference: Preference) -> PreferencePair:
    chosen, rejected = (item.first, item.second) if preference == "first" else (item.second, item.first)
    return PreferencePair(item.messages, chosen, rejected)
