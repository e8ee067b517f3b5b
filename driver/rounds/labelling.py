"""The labels of a round: pairs are proposed by the adapter and compared by whoever judges (driver/judges/judges.py).

    propose -> labels.jsonl, judge -> the round fits
    judge.file: what is not answered yet is written to labels_pending.jsonl, and the proposal waits
    (driver/rounds/pending.py): the next moment tries it again before what it proposes itself, and fits it with what has
    come once that is enough

Owned by driver/rounds/reward_models.py. Waits for a judge that answers; never for people.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from common.config.config import Config
from common.judge import ORDERS, TOO_LONG, UNREADABLE, PairItem, Preference
from driver.cluster.cluster import Cluster
from driver.judges.judges import judge_of
from driver.judges.label_book import Label, LabelBook
from driver.judges.people import write_questions
from driver.record.progress import say
from driver.rounds.pending import Pending, PendingProposals
from learner.adaptation.candidates import Proposal, is_evidence
from learner.adaptation.evidence import Decision


@dataclass(frozen=True)
class RoundLabels:
    """What a round is fitted and weighed on: the proposal, pairs of earlier rounds to fit on too, the preferences of both by
    key, and numbers about how they were given."""

    proposal: Proposal
    earlier: tuple[PairItem, ...]
    preferences: dict[str, Preference]
    numbers: dict[str, float | None]

    def counted(self, decision: Decision) -> Decision:
        """The decision with these numbers beside its own."""
        return replace(decision, numbers=decision.numbers | self.numbers)


class Labelling:
    """The labels of one run's rounds."""

    def __init__(self, config: Config, cluster: Cluster, run: Path):
        self._config, self._cluster, self._run = config, cluster, run
        self._pending = PendingProposals(run / "rm" / "pending")
        self._fresh = Proposal((), (), None)

    def of_round(self, moment: int, first_slot: int) -> RoundLabels | None:
        """The labels of the pairs that are proposed now, or of those that have waited for people; None where these have not
        answered yet. `moment` is a number that grows from round to round."""
        self._fresh = self._cluster.adapters.propose(moment, first_slot)
        items = self._fresh.items
        if self._config.judge.compares != "file":
            return self._labels(moment, self._fresh, self._buy(items, moment), self._numbers(items))
        pending = self._pending.oldest(moment) or self._pending.keep(Pending(moment, self._fresh))
        preferences = self._buy(pending.proposal.items, moment)
        if not enough(pending.proposal, preferences, self._config.adaptation.min_pairs):
            self._wait_for(pending.proposal, preferences)
            return None
        unanswered = float(len(pending.proposal.items) - len(preferences))
        return self._labels(moment, answered(pending.proposal, preferences), preferences, {"unanswered": unanswered})

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
        self._wait_for(following.proposal, self._buy(following.proposal.items, moment))

    def _wait_for(self, proposal: Proposal, preferences: Mapping[str, Preference]) -> None:
        """Writes the open questions and says where they are."""
        open_items = [item for item in proposal.items if item.key not in preferences]
        write_questions(self._questions, open_items)
        say(
            f"  {len(open_items)} of {len(proposal.items)} pairs wait for people: {self._questions}; the answers go to "
            f"{self._config.judge.file} (judge.file), which the next round reads; the model in place goes on serving"
        )

    def _labels(
        self, moment: int, proposal: Proposal, preferences: dict[str, Preference], numbers: dict[str, float | None]
    ) -> RoundLabels:
        earlier = earlier_labels(self._config, self._book().labels, moment, proposal)
        preferences |= {label.item.key: label.verdict.preferred for label in earlier}
        return RoundLabels(proposal, tuple(label.item for label in earlier), preferences, numbers)

    def _buy(self, items: Sequence[PairItem], moment: int) -> dict[str, Preference]:
        return self._book().buy(items, judge_of(self._config, self._cluster.judges), moment)

    def _numbers(self, items: Sequence[PairItem]) -> dict[str, float | None]:
        """judge_numbers, where the judge is one that has any; the share is also shown."""
        kind = self._config.judge.compares
        if kind not in ("model", "endpoint"):
            return {}
        numbers = judge_numbers(self._book().reasons(items))
        if kind == "endpoint" and items:
            share, failed = numbers["judge_order_disagreement"], numbers["judge_unreadable"] + numbers["judge_too_long"]
            ties = f"; {failed:.0f} of {len(items)} pairs have no answer that could be read: ties too" if failed else ""
            say(f"  the judge's answer changed with the order of the responses on {share:.0%} of the pairs: ties{ties}")
        return {**numbers}

    def _book(self) -> LabelBook:
        return LabelBook(self._run / "labels.jsonl")

    @property
    def _questions(self) -> Path:
        return self._run / "labels_pending.jsonl"


def earlier_labels(config: Config, labels: Sequence[Label], number: int, proposal: Proposal) -> list[Label]:
    """What round `number` is fitted on beside its proposal: what the adaptation.fit_rounds - 1 newest rounds before it were
    fitted on, in an order that does not depend on when the answers came. What was evidence is never fitted on."""
    fraction, fresh = config.learner.reward_model.held_out_fraction, {item.key for item in proposal.items}
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
