"""Which of the policy's own samples a round has judged or uses unlabelled, and what becomes of the labels. Pure of Ray and
Redis.

Called by learner/adaptation/worker.py. From the newest groups back; a prompt is either fitted on or evidence, by a hash of its
opening, and prompts that are held out of the original data are always evidence. Evidence has one pair per prompt, so that its
pairs are independent; where there are fewer prompts to fit on than fit_pairs, they give a second pair, and so on. Equal and
truncated responses are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from common.data.data import PreferencePair, RatedResponse
from common.data.split import is_held_out, opening_key, prompt_key
from common.judge import PairItem, Preference, pair_item
from common.types import Message, ScoredGroup
from learner.reward_model.data import PromptSet, prompt_sets


@dataclass(frozen=True)
class Samples:
    """The different, whole responses to a prompt, unlabelled; two at least."""

    messages: tuple[Message, ...]
    responses: tuple[str, ...]


@dataclass(frozen=True)
class Proposal:
    """Pairs to be judged, and the unlabelled samples of prompts that give no evidence; oldest_version is the oldest policy that
    sampled one of the pairs (None where there are none)."""

    fit: tuple[PairItem, ...]
    evidence: tuple[PairItem, ...]
    oldest_version: int | None
    unlabelled: tuple[Samples, ...] = ()

    @property
    def items(self) -> list[PairItem]:
        """All pairs that the judge is asked about."""
        return [*self.fit, *self.evidence]


def round_seed(run_seed: int, number: int) -> int:
    """The seed of a round, by its number from 0: a look before it draws the same pairs."""
    return run_seed * 1009 + number


Doubt = Callable[[Sequence[PairItem]], Sequence[float]]  # how little is known of each pair


def propose(
    groups: Sequence[ScoredGroup],
    fit_pairs: int,
    evidence_pairs: int,
    held_out_fraction: float,
    seed: int,
    doubt: Doubt | None = None,
) -> Proposal:
    """At most fit_pairs pairs to fit on and evidence_pairs pairs of evidence, of the newest groups (highest slots). With
    `doubt`, those to fit on are the most doubtful of all that there are; evidence is never chosen so."""
    usable: dict[bool, list[Usable]] = {False: [], True: []}
    seen: set[str] = set()
    for scored in sorted(groups, key=lambda scored: scored.group.slot, reverse=True):
        prompt = scored.group.prompt
        if (key := prompt_key(prompt.messages)) in seen or len(order := _different(scored, seed)) < 2:
            continue
        seen.add(key)
        usable[is_evidence(prompt.messages, held_out_fraction)].append(Usable(scored, order))
    fit = _most_doubtful([*_rounds(usable[False])], doubt)[:fit_pairs]
    evidence = [(one, one.pair(0)) for one in usable[True][:evidence_pairs]]
    oldest = min((r.oldest_version for one, _ in (*fit, *evidence) for r in one.scored.group.rollouts), default=None)
    unlabelled = tuple(one.samples for one in usable[False])
    return Proposal(tuple(pair for _, pair in fit), tuple(pair for _, pair in evidence), oldest, unlabelled)


@dataclass(frozen=True)
class Usable:
    """A group and its different, whole responses, in random order."""

    scored: ScoredGroup
    order: list[str]

    @property
    def samples(self) -> Samples:
        """The two responses as the judge sees them."""
        return Samples(self.scored.group.prompt.messages, tuple(self.order))

    def pair(self, number: int) -> PairItem:
        """The number-th of its disjoint pairs."""
        prompt, (a, b) = self.scored.group.prompt, self.order[2 * number : 2 * number + 2]
        return pair_item(prompt.messages, prompt.meta, a, b)


def _rounds(usable: Sequence[Usable]) -> Iterator[tuple[Usable, PairItem]]:
    """Each group's first pair, then each one's second, and so on."""
    for number in range(max((len(one.order) // 2 for one in usable), default=0)):
        yield from ((one, one.pair(number)) for one in usable if len(one.order) // 2 > number)


def _most_doubtful(pairs: list[tuple[Usable, PairItem]], doubt: Doubt | None) -> list[tuple[Usable, PairItem]]:
    """By falling doubt; as they are without it."""
    if doubt is None or not pairs:
        return pairs
    return [pairs[i] for i in np.argsort(-np.asarray(doubt([pair for _, pair in pairs])), kind="stable")]


def is_evidence(messages: Sequence[Message], held_out_fraction: float) -> bool:
    """Whether a prompt gives evidence: if it is held out of the original data, else one in two, by a hash of its opening."""
    return is_held_out(messages, held_out_fraction) or int(opening_key(messages)[8:16], 16) % 2 == 0


def _different(scored: ScoredGroup, seed: int) -> list[str]:
    """The group's different, whole responses in an order of chance."""
    group = scored.group
    whole = [rollout.response for rollout in group.rollouts if rollout.finish_reason == "stop"]
    different = list({response.strip(): response for response in reversed(whole)}.values())
    return [different[i] for i in np.random.default_rng([seed, group.slot]).permutation(len(different))]


def judged_sets(
    items: Sequence[PairItem],
    preferences: Mapping[str, Preference],
    objectives: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    max_tokens: int,
) -> list[PromptSet]:
    """The pairs with a preference as prompt sets without ratings; ties, and what has no label, are left out."""
    labels = [(item, preferences.get(item.key)) for item in items]
    pairs = [_preferred(item, label) for item, label in labels if label == "first" or label == "second"]
    return list(prompt_sets([], pairs, objectives, tokenizer, max_tokens).values())


def unlabelled_sets(
    samples: Sequence[Samples], objectives: Sequence[str], tokenizer: PreTrainedTokenizerBase, max_tokens: int
) -> list[PromptSet]:
    """The samples as prompt sets without ratings and pairs."""
    rows = [RatedResponse(one.messages, response, {}) for one in samples for response in one.responses]
    return list(prompt_sets(rows, [], objectives, tokenizer, max_tokens).values())


def _preferred(item: PairItem, preference: Preference) -> PreferencePair:
    chosen, rejected = (item.first, item.second) if preference == "first" else (item.second, item.first)
    return PreferencePair(item.messages, chosen, rejected)
