"""The labels of a round: pairs and responses are proposed by the adapter, compared and rated by whoever judges.

    propose -> labels.jsonl, judge (driver/judges/judges.py, raters.py) -> the round fits
    adaptation.label_budget: nothing is asked beyond it, and a round that would have too little evidence is not held
    judge.file: what is not answered yet is written to labels_pending.jsonl, and the proposal waits
    (driver/rounds/pending.py): the next moment tries it again before what it proposes itself, and fits it with what has
    come once that is enough

Owned by driver/rounds/reward_models.py. Waits for a judge that answers; never for people.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from common.config.config import Config
from common.judge import ORDERS, TOO_LONG, UNREADABLE, PairItem, Preference
from common.ratings import RateItem, Rating
from driver.cluster.cluster import Cluster
from driver.judges.judges import judge_of
from driver.judges.label_book import Label, LabelBook, RatedLabel
from driver.judges.people import question_row, write_questions
from driver.judges.people_ratings import question_row as rating_row
from driver.judges.raters import rater_of
from driver.record.progress import say
from driver.rounds.pending import Pending, PendingProposals
from learner.adaptation.candidates import Proposal, is_evidence
from learner.adaptation.evidence import Decision


@dataclass(frozen=True)
class RoundLabels:
    """What a round is fitted and weighed on: the proposal, pairs and responses of earlier rounds to fit on too, the preferences
    and ratings of both by key, and numbers about how they were given."""

    proposal: Proposal
    earlier: tuple[PairItem, ...]
    preferences: dict[str, Preference]
    numbers: dict[str, float | None]
    earlier_ratings: tuple[RateItem, ...] = ()
    ratings: dict[str, Rating] = field(default_factory=dict)

    def counted(self, decision: Decision) -> Decision:
        """The decision with these numbers beside its own."""
        return replace(decision, numbers=decision.numbers | self.numbers)


@dataclass(frozen=True)
class Bought:
    """What is known of a proposal, by key: preferences and ratings."""

    preferences: dict[str, Preference]
    ratings: dict[str, Rating]


One = TypeVar("One", Label, RatedLabel)


class Labelling:
    """The labels of one run's rounds."""

    def __init__(self, config: Config, cluster: Cluster, run: Path):
        self._config, self._cluster, self._run = config, cluster, run
        self._pending = PendingProposals(run / "rm" / "pending")
        self._fresh = Proposal((), (), None)

    def of_round(self, moment: int, first_slot: int) -> RoundLabels | None:
        """The labels of what is proposed now, or of what has waited for people; None where these have not answered yet, and
        where the budget of labels is used up. `moment` is a number that grows from round to round."""
        self._fresh = self._cluster.adapters.propose(moment, first_slot)
        if self._config.judge.compares != "file":
            found = self._buy(self._fresh, moment)
            return (
                None
                if self._is_used_up(found)
                else self._labels(moment, self._fresh, found, self._numbers(self._fresh))
            )
        pending = self._pending.oldest(moment) or self._pending.keep(Pending(moment, self._fresh))
        found = self._buy(pending.proposal, moment)
        if not enough(pending.proposal, found.preferences, self._config.adaptation.min_pairs):
            self._wait_for(pending.proposal, found)
            return None
        unanswered = float(len(self._open(pending.proposal, found)))
        return self._labels(moment, answered(pending.proposal, found.preferences), found, {"unanswered": unanswered})

    def settle(self, moment: int) -> None:
        """The round of `moment` is done: what waited for it waits no more, and what was proposed beside it is asked next."""
        if self._config.judge.compares != "file":
            return
        settled = self._pending.oldest(moment)
        assert settled is not None, "a round was fitted on a proposal"
        self._pending.settle(settled, moment)
        if settled.moment == moment:
            write_questions(self._questions, [])
            return
        following = self._pending.of(moment) or self._pending.keep(Pending(moment, self._fresh))
        self._wait_for(following.proposal, self._buy(following.proposal, moment))

    def _open(self, proposal: Proposal, found: Bought) -> list[dict[str, object]]:
        """The questions of a proposal that nobody has answered, as lines of labels_pending.jsonl."""
        pairs = [question_row(item) for item in proposal.items if item.key not in found.preferences]
        objectives = self._config.rewarder.objectives
        return pairs + [rating_row(item, objectives) for item in proposal.rated if item.key not in found.ratings]

    def _wait_for(self, proposal: Proposal, found: Bought) -> None:
        """Writes the open questions and says where they are."""
        rows = self._open(proposal, found)
        write_questions(self._questions, rows)
        say(
            f"  {len(rows)} of {len(proposal.items) + len(proposal.rated)} questions wait for people: {self._questions}; the "
            f"answers go to {self._config.judge.file} (judge.file), which the next round reads; the model in place goes on "
            "serving"
        )

    def _is_used_up(self, found: Bought) -> bool:
        """Whether the budget has left this round with less than its least evidence; it says so."""
        left, wanted = self._book().left, self._config.adaptation.min_pairs
        seen = sum(item.key in found.preferences for item in self._fresh.evidence)
        if left != 0 or seen >= min(wanted, len(self._fresh.evidence)):
            return False
        say(
            f"  no round: adaptation.label_budget {self._config.adaptation.label_budget} is used up, and {seen} of the "
            f"{wanted} pairs of evidence that min_pairs asks for have labels"
        )
        return True

    def _labels(self, moment: int, proposal: Proposal, found: Bought, numbers: dict[str, float | None]) -> RoundLabels:
        book, asked = self._book(), self._config
        earlier = earlier_labels(asked, book.labels, moment, proposal)
        rated = earlier_labels(asked, book.ratings, moment, proposal) if asked.adaptation.fits_ratings else []
        preferences: dict[str, Preference] = {label.item.key: label.verdict.preferred for label in earlier}
        ratings = found.ratings | {label.item.key: label.rating for label in rated}
        items = tuple(label.item for label in earlier), tuple(label.item for label in rated)
        return RoundLabels(proposal, items[0], found.preferences | preferences, numbers, items[1], ratings)

    def _buy(self, proposal: Proposal, moment: int) -> Bought:
        """Evidence first: without it nothing that is fitted could serve."""
        book, judge = self._book(), judge_of(self._config, self._cluster.judges)
        pairs = book.buy([*proposal.evidence, *proposal.fit], judge, moment)
        rated = [*proposal.evidence_ratings, *proposal.fit_ratings]
        ratings = book.rate(rated, rater_of(self._config, self._cluster.judges), moment) if rated else {}
        return Bought({item.key: pairs[item.key] for item in proposal.items if item.key in pairs}, ratings)

    def _numbers(self, proposal: Proposal) -> dict[str, float | None]:
        """judge_numbers, where the judge is one that has any; the share is also shown."""
        kind, items, book = self._config.judge.compares, proposal.items, self._book()
        if kind not in ("model", "endpoint"):
            return {}
        numbers = judge_numbers(book.reasons(items))
        if kind == "endpoint" and items:
            share, failed = numbers["judge_order_disagreement"], numbers["judge_unreadable"] + numbers["judge_too_long"]
            ties = f"; {failed:.0f} of {len(items)} pairs have no answer that could be read: ties too" if failed else ""
            say(f"  the judge's answer changed with the order of the responses on {share:.0%} of the pairs: ties{ties}")
        return {**numbers, **rating_numbers(book.rating_reasons(proposal.rated))} if proposal.rated else {**numbers}

    def _book(self) -> LabelBook:
        return LabelBook(self._run / "labels.jsonl", self._config.adaptation.label_budget)

    @property
    def _questions(self) -> Path:
        return self._run / "labels_pending.jsonl"


def earlier_labels(config: Config, labels: Sequence[One], number: int, proposal: Proposal) -> list[One]:
    """What round `number` is fitted on beside its proposal: what the adaptation.fit_rounds - 1 newest rounds before it were
    fitted on, in an order that does not depend on when the answers came. What was evidence is never fitted on."""
    fresh = {item.key for item in (*proposal.items, *proposal.rated)}
    fraction = config.learner.reward_model.held_out_fraction
    before = [label for label in labels if label.round < number and not is_evidence(label.item.messages, fraction)]
    newest = sorted({label.round for label in before}, reverse=True)[: config.adaptation.fit_rounds - 1]
    earlier = [label for label in before if label.round in newest and label.item.key not in fresh]
    return sorted(earlier, key=lambda label: (label.round, label.item.key))


def enough(proposal: Proposal, preferences: Mapping[str, Preference], min_pairs: int) -> bool:
    """Whether a candidate can be fitted and weighed on what has been answered: everything, or, ties left out, min_pairs of the
    evidence and one pair to fit on (where any was proposed)."""
    if all(item.key in preferences for item in proposal.items):
        return True
    fit, evidence = (
        sum(preferences.get(item.key, "tie") != "tie" for item in items) for items in (proposal.fit, proposal.evidence)
    )
    return evidence >= min_pairs and (fit > 0 or not proposal.fit)


def answered(proposal: Proposal, preferences: Mapping[str, Preference]) -> Proposal:
    """The proposal without the pairs that nobody has answered."""
    fit, evidence = (
        tuple(item for item in items if item.key in preferences) for items in (proposal.fit, proposal.evidence)
    )
    return replace(proposal, fit=fit, evidence=evidence)


def rating_numbers(reasons: Counter[str]) -> dict[str, float]:
    """How many responses are not rated because no answer could be read, and because they were too long."""
    return {"judge_unrated": float(reasons[UNREADABLE]), "judge_unrated_too_long": float(reasons[TOO_LONG])}


def judge_numbers(reasons: Counter[str]) -> dict[str, float]:
    """How a judge did, by how many pairs are ties for which reason (Verdict.why; "": none): the share whose answer changed with
    the order of the responses, of those answered in both orders, and how many are ties because no answer could be read or the
    pair was too long."""
    both = reasons.total() - reasons[UNREADABLE] - reasons[TOO_LONG]
    return {
        "judge_order_disagreement": reasons[ORDERS] / max(both, 1),
        "judge_unreadable": float(reasons[UNREADABLE]),
        "judge_too_long": float(reasons[TOO_LONG]),
    }
