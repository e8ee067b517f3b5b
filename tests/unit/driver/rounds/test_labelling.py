"""driver/rounds/labelling.py: which labels of earlier rounds a round is fitted on. How people's answers come:
test_people.py."""

from __future__ import annotations

from common.config.config import Config
from common.config.file import BASE, load_config
from common.judge import PairItem, Verdict, pair_item
from common.types import Message
from driver.judges.label_book import Label
from driver.rounds.labelling import earlier_labels
from learner.adaptation.candidates import Proposal, is_evidence

NOTHING = Proposal((), (), None)


def config(rounds: int) -> Config:
    return load_config(BASE, ["aggregation.kind=final_score", f"adaptation.fit_rounds={rounds}"])


def bought(number: int, prompts: int = 20) -> list[Label]:
    """What a round asked for: pairs of both sides."""
    items = [pair_item((Message("user", f"{number} {index}"),), {}, "yes", "no") for index in range(prompts)]
    return [Label(item, Verdict("first"), number) for item in items]


def to_fit(*labels: Label) -> list[PairItem]:
    """Those on the side that is fitted on, as the files of a run hold it out."""
    fraction = config(1).learner.reward_model.held_out_fraction
    return [label.item for label in labels if not is_evidence(label.item.messages, fraction)]


def keys(labels: list[Label]) -> set[str]:
    return {label.item.key for label in labels}


ROUNDS = [bought(number) for number in (0, 1, 3, 4)]
BOOK = [label for labels in ROUNDS for label in labels]


def test_one_round_alone_has_no_earlier_labels() -> None:
    assert earlier_labels(config(1), BOOK, 4, NOTHING) == []


def test_the_newest_rounds_before_it_whatever_their_numbers_and_never_evidence() -> None:
    assert keys(earlier_labels(config(2), BOOK, 4, NOTHING)) == {item.key for item in to_fit(*ROUNDS[2])}
    assert keys(earlier_labels(config(3), BOOK, 4, NOTHING)) == {item.key for item in to_fit(*ROUNDS[1], *ROUNDS[2])}
    every = to_fit(*ROUNDS[0], *ROUNDS[1], *ROUNDS[2])
    assert keys(earlier_labels(config(99), BOOK, 4, NOTHING)) == {item.key for item in every}
    assert 0 < len(every) < 60


def test_a_repeated_round_does_not_see_what_a_killed_run_bought_later() -> None:
    assert earlier_labels(config(99), BOOK, 1, NOTHING) == earlier_labels(config(99), ROUNDS[0], 1, NOTHING)
    assert earlier_labels(config(99), BOOK, 0, NOTHING) == []


def test_a_round_that_bought_evidence_alone_takes_nobodys_place() -> None:
    fraction = config(1).learner.reward_model.held_out_fraction
    look = [label for label in bought(2) if is_evidence(label.item.messages, fraction)]
    assert keys(earlier_labels(config(2), [*ROUNDS[1], *look], 3, NOTHING)) == {i.key for i in to_fit(*ROUNDS[1])}


def test_a_pair_that_is_proposed_again_counts_once_and_the_order_is_fixed() -> None:
    again, *others = to_fit(*ROUNDS[0])
    found = earlier_labels(config(2), ROUNDS[0], 1, Proposal((again,), (), 0))
    assert keys(found) == {item.key for item in others}
    assert earlier_labels(config(2), ROUNDS[0][::-1], 1, Proposal((again,), (), 0)) == found
