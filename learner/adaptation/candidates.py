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
from common.ratings import RateItem, Rating
from common.types import Message, ScoredGroup
from learner.reward_model.data import PromptSet, prompt_sets

NO_RATINGS: Mapping[str, Rating] = {}


@dataclass(frozen=True)
class Samples:
    """The different, whole responses to a prompt, unlabelled; two at least."""

    messages: tuple[Message, ...]
    responses: tuple[str, ...]


@dataclass(frozen=True)
class Proposal:
    """Pairs to be judged, responses to be rated, and the unlabelled samples of prompts that give no evidence; oldest_version is
    the oldest policy that sampled one of what is labelled (None where there is nothing)."""

    fit: tuple[PairItem, ...]
    evidence: tuple[PairItem, ...]
    oldest_version: int | None
    unlabelled: tuple[Samples, ...] = ()
    fit_ratings: tuple[RateItem, ...] = ()
    evidence_ratings: tuple[RateItem, ...] = ()

    @property
    def items(self) -> list[PairItem]:
        """All pairs that the judge is asked about."""
        return [*self.fit, *self.evidence]

    @property
    def rated(self) -> list[RateItem]:
        """All responses that the judge is asked to rate."""
        return [*self.fit_ratings, *self.evidence_ratings]


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
    fit_ratings: int = 0,
    evidence_ratings: int = 0,
) -> Proposal:
    """At most so many pairs to fit on and of evidence, and responses to rate of the prompts on either side, of the newest
    groups (highest slots). With `doubt`, the pairs to fit on are the most doubtful of all that there are; evidence is never
    chosen so."""
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
    rated = _to_rate(usable[False])[:fit_ratings], _to_rate(usable[True])[:evidence_ratings]
    labelled = [one.scored.group for one, _ in (*fit, *evidence, *rated[0], *rated[1])]
    return Proposal(
        tuple(pair for _, pair in fit),
        tuple(pair for _, pair in evidence),
        min((rollout.oldest_version for group in labelled for rollout in group.rollouts), default=None),
        tuple(one.samples for one in usable[False]),
        *(tuple(item for _, item in items) for items in rated),
    )


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

    def response(self, number: int) -> RateItem:
        """The number-th of its responses."""
        prompt = self.scored.group.prompt
        return RateItem(prompt.messages, prompt.meta, self.order[number])


def _rounds(usable: Sequence[Usable]) -> Iterator[tuple[Usable, PairItem]]:
    """Each group's first pair, then each one's second, and so on."""
    for number in range(max((len(one.order) // 2 for one in usable), default=0)):
        yield from ((one, one.pair(number)) for one in usable if len(one.order) // 2 > number)


def _to_rate(usable: Sequence[Usable]) -> list[tuple[Usable, RateItem]]:
    """Each group's first response, then each one's second, and so on."""
    most = max((len(one.order) for one in usable), default=0)
    return [(one, one.response(number)) for number in range(most) for one in usable if number < len(one.order)]


def _most_doubtful(pairs: list[tuple[Usable, PairItem]], doubt: Doubt | None) -> list[tuple[Usable, PairItem]]:
    """By falling doubt; as they are without it."""
    if doubt is None or not pairs:
        return pairs
    return [pairs[i] for i in np.argsort(-np.asarray(doubt([pair for _, pair in pairs])), kind="stable")]


def fresh_groups(groups: Sequence[ScoredGroup], steps: int | None) -> list[ScoredGroup]:
    """The groups whose every token is of the newest `steps` policy versions that there are; all where that is None."""
    versions = [min(rollout.oldest_version for rollout in scored.group.rollouts) for scored in groups]
    oldest = -1 if steps is None else max(versions, default=0) - steps + 1
    return [scored for scored, version in zip(groups, versions, strict=True) if version >= oldest]


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
    rated: Sequence[RateItem] = (),
    ratings: Mapping[str, Rating] = NO_RATINGS,
) -> list[PromptSet]:
    """The pairs with a preference and the responses with a rating as prompt sets, a response of both once; ties, and what has
    no label, are left out."""
    labels = [(item, preferences.get(item.key)) for item in items]
    pairs = [_preferred(item, label) for item, label in labels if label == "first" or label == "second"]
    rows = [
        RatedResponse(item.messages, item.response, dict(ratings[item.key].scores))
        for item in rated
        if item.key in ratings and ratings[item.key].scores
    ]
    return list(prompt_sets(rows, pairs, objectives, tokenizer, max_tokens).values())


def unlabelled_sets(
    samples: Sequence[Samples], objectives: Sequence[str], tokenizer: PreTrainedTokenizerBase, max_tokens: int
) -> list[PromptSet]:
    """The samples as prompt sets without ratings and pairs."""
    rows = [RatedResponse(one.messages, response, {}) for one in samples for response in one.responses]
    return list(prompt_sets(rows, [], objectives, tokenizer, max_tokens).values())


def _preferred(item: PairItem, preference: Preference) -> PreferencePair:
    chosen, rejected = (item.first, item.second) if preference == "first" else (item.second, item.first)
    return PreferencePair(item.messages, chosen, rejected)
