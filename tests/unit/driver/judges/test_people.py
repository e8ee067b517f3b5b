"""driver/judges/people.py, driver/rounds/pending.py and driver/rounds/labelling.py: labels that people give. A round that
waits for them, goes on when they have come and survives a kill, and bad answers. The adapter is a fake."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from common.config.file import BASE, load_config
from common.data.label_sources import LabelFiles
from common.judge import ORDERS, TOO_LONG, UNREADABLE, Labels, PairItem, Preference, pair_item
from common.types import Message
from driver.cluster.cluster import Cluster
from driver.cluster.doors import Adapters, Rewarders
from driver.judges.label_book import LabelBook, LabelError, one_by_one, question
from driver.judges.people import question_row, read_answers, write_questions
from driver.rounds.labelling import RoundLabels, answered, enough, judge_numbers
from driver.rounds.pending import Pending, PendingProposals
from driver.rounds.reward_models import RewardModels
from learner.adaptation.candidates import Proposal
from learner.adaptation.evidence import Decision
from learner.adaptation.worker import Round, Versions
from tests.unit.driver.fake_groups import group_of, without_references


def pair(text: str) -> PairItem:
    return pair_item((Message("system", "be brief"), Message("user", text)), {"kind": "plain"}, "short", "longer ü")


def proposed(moment: int) -> Proposal:
    """Two pairs to fit on and four of evidence."""
    items = tuple(pair(f"prompt {n} of {moment}") for n in range(6))
    return Proposal(items[:2], items[2:], moment)


class LoadingRewarders(Rewarders):
    """One rewarder, which tells the number at the end of the directory."""

    def load(self, directory: str, revision: str | None) -> int:
        return int(Path(directory).name.removeprefix("version_") or 0)

    def pause(self) -> None: ...

    def resume(self) -> None: ...


class Roles(Adapters):
    """An adapter that accepts whatever it is given to fit, beside one rewarder."""

    def __init__(self) -> None:
        super().__init__(group_of(1))
        self.rewarders = LoadingRewarders(group_of(1))
        self.fitted, self.preferences = list[Proposal](), list[dict[str, Preference]]()

    def propose(self, number: int, first_slot: int) -> Proposal:
        return proposed(number)

    def fit(self, chosen: Round, versions: Versions) -> Decision:
        self.fitted.append(chosen.proposal)
        self.preferences.append(dict(chosen.preferences))
        Path(versions.directory).mkdir(parents=True)
        return Decision(True, "better", {"p_value": 0.01})


def models(run: Path, roles: Roles, *overrides: str) -> RewardModels:
    settings = ["aggregation.kind=final_score", "adaptation.when=iteration", "adaptation.min_pairs=2"]
    config = load_config(BASE, [*settings, f"judge.file={run}/answers.jsonl", "iteration.num=5", *overrides])
    cluster = Cluster(config)
    cluster.rewarders, cluster.adapters = roles.rewarders, roles
    return RewardModels(config, cluster, run, "version_", LabelFiles(None, None))


def questions(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "labels_pending.jsonl").read_text().splitlines()]


def answer(run: Path, rows: Sequence[dict[str, Any]], preferred: Preference | None = "first") -> None:
    """What a person does: copies lines and fills in `preferred`."""
    with (run / "answers.jsonl").open("a") as file:
        file.writelines(json.dumps({**row, "preferred": preferred}) + "\n" for row in rows)


def test_a_round_waits_for_people_while_the_old_version_serves(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    roles = Roles()
    rm = models(tmp_path, roles)
    assert rm.round(0, 0, without_references) == {} and (rm.adapted, rm.version, roles.fitted) == ("", 0, [])
    asked = questions(tmp_path)
    assert asked == [{**question(item), "preferred": None} for item in proposed(0).items]
    assert asked[0]["prompt"] == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "prompt 0 of 0"},
    ]
    shown = capsys.readouterr().out
    assert "6 of 6 questions wait for people" in shown and str(tmp_path / "labels_pending.jsonl") in shown
    assert not (tmp_path / "labels.jsonl").exists()


def test_answers_that_have_come_are_fitted_before_anything_new_and_then_the_new_is_asked(tmp_path: Path) -> None:
    roles = Roles()
    rm = models(tmp_path, roles)
    rm.round(0, 0, without_references)
    answer(tmp_path, questions(tmp_path))
    assert rm.round(1, 0, without_references)["rm/accepted"] == 1.0
    assert roles.fitted == [proposed(0)] and rm.adapted == "rm/version_1"
    assert [row["key"] for row in questions(tmp_path)] == [item.key for item in proposed(1).items]
    answer(tmp_path, questions(tmp_path), "second")
    rm.round(2, 0, without_references)
    assert roles.fitted == [proposed(0), proposed(1)] and rm.adapted == "rm/version_2"
    assert set(roles.preferences[1].values()) == {"second"}


def test_what_is_not_answered_waits_on_and_nothing_new_is_asked(tmp_path: Path) -> None:
    roles = Roles()
    rm = models(tmp_path, roles)
    rm.round(0, 0, without_references)
    answer(tmp_path, questions(tmp_path)[:3])  # both to fit on, one of the evidence
    assert rm.round(1, 0, without_references) == {} and roles.fitted == []
    assert [row["key"] for row in questions(tmp_path)] == [item.key for item in proposed(0).evidence[1:]]
    answer(tmp_path, questions(tmp_path)[:1], "tie")
    answer(tmp_path, questions(tmp_path)[1:2], None)
    assert rm.round(2, 0, without_references) == {}  # a tie is no evidence, nor is null
    answer(tmp_path, questions(tmp_path)[:1], "second")
    assert rm.round(3, 0, without_references)["rm/accepted"] == 1.0
    (fitted,) = roles.fitted
    assert fitted == Proposal(proposed(0).fit, proposed(0).evidence[:3], 0)
    record = json.loads((tmp_path / "rm" / "version_1" / "decision.json").read_text())
    assert record["numbers"]["unanswered"] == 1.0


def test_a_resumed_run_finds_what_waits(tmp_path: Path) -> None:
    models(tmp_path, Roles()).round(0, 0, without_references)
    answer(tmp_path, questions(tmp_path))
    roles = Roles()
    models(tmp_path, roles).round(1, 0, without_references)
    assert roles.fitted == [proposed(0)]
    assert roles.fitted[0].fit[0].meta == {"kind": "plain"}


def test_a_round_that_a_kill_undid_is_done_again(tmp_path: Path) -> None:
    """Killed after version 1 was accepted and the next pairs were asked, before the checkpoint that names it."""
    rm = models(tmp_path, Roles())
    rm.round(0, 0, without_references)
    answer(tmp_path, questions(tmp_path))
    rm.round(1, 0, without_references)
    next_questions = questions(tmp_path)
    answer(tmp_path, next_questions[:2])
    roles = Roles()
    again = models(tmp_path, roles)
    again.round(1, 0, without_references)
    assert roles.fitted == [proposed(0)] and again.adapted == "rm/version_1"
    assert questions(tmp_path) == next_questions[2:]
    answer(tmp_path, next_questions[2:])
    again.round(2, 0, without_references)
    assert roles.fitted == [proposed(0), proposed(1)]


def test_a_round_that_is_done_again_after_its_answers_came_is_fitted_at_once(tmp_path: Path) -> None:
    models(tmp_path, Roles()).round(0, 0, without_references)
    answer(tmp_path, questions(tmp_path))
    roles = Roles()
    models(tmp_path, roles).round(0, 0, without_references)
    assert roles.fitted == [proposed(0)] and not (tmp_path / "labels_pending.jsonl").exists()


def test_proposals_of_later_moments_are_not_looked_at(tmp_path: Path) -> None:
    pending = PendingProposals(tmp_path / "rm" / "pending")
    pending.keep(Pending(4, proposed(4)))
    assert pending.oldest(3) is None and pending.oldest(4) == Pending(4, proposed(4)) == pending.of(4)
    pending.settle(Pending(4, proposed(4)), 6)
    assert [pending.oldest(moment) is None for moment in (5, 6, 7)] == [False, False, True]
    assert [path.name for path in (tmp_path / "rm" / "pending").iterdir()] == ["4.json"]


def test_enough_is_everything_or_some_evidence_and_something_to_fit() -> None:
    proposal = proposed(0)
    keys = [item.key for item in proposal.items]
    said = lambda *preferences: dict(zip(keys, preferences, strict=False))  # noqa: E731
    assert enough(proposal, said(*["tie"] * 6), 2)
    assert enough(proposal, said("first", "tie", "first", "second"), 2)
    assert not enough(proposal, said("tie", "tie", "first", "second"), 2)
    assert not enough(proposal, said("first", "first", "first", "tie"), 2)
    only = Proposal((), proposal.evidence, 0)
    assert enough(only, {key: "first" for key in keys[2:4]}, 2)
    assert answered(proposal, said("first")) == Proposal(proposal.fit[:1], (), 0)


LINE = json.dumps({**question(pair("p")), "preferred": "first"})
OTHER = json.dumps({**question(pair("p")), "preferred": "second"})


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "no answer (DataError: not valid JSON"),
        ("3", "no answer (DataError: got 3"),
        ('{"key": "k", "preferred": "first"}', "no answer (KeyError: 'prompt')"),
        (LINE.replace('"first"}', '"third"}'), "preferred is 'third'; wanted one of first, second, tie, or null"),
        (LINE.replace("longer", "edited"), "the key is not that of this prompt, first and second"),
        (OTHER, "this pair was answered 'first' further up and is 'second' here; keep one line of the two"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, words: str) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text(f"{LINE}\n\n{line}")
    with pytest.raises(LabelError) as raised:
        read_answers(path)
    assert f"{path}:3: " in str(raised.value) and words in str(raised.value)


def test_what_editors_do_to_a_file_is_no_harm(tmp_path: Path) -> None:
    path, unanswered = tmp_path / "answers.jsonl", json.dumps({**question(pair("q")), "preferred": None})
    raw = json.dumps(json.loads(LINE), ensure_ascii=False)
    path.write_bytes(f"\ufeff{raw}\r\n{unanswered}\r\n{LINE}".encode())
    assert read_answers(path) == {pair("p").key: "first"}
    assert read_answers(tmp_path / "none.jsonl") == {}
    with pytest.raises(LabelError, match="cannot be read"):
        read_answers(tmp_path)


def test_questions_are_whole_or_absent(tmp_path: Path) -> None:
    path = tmp_path / "labels_pending.jsonl"
    write_questions(path, [question_row(pair("p")), question_row(pair("q"))])
    write_questions(path, [question_row(pair("r"))])
    assert questions(tmp_path) == [{**question(pair("r")), "preferred": None}]
    write_questions(path, [])
    assert list(tmp_path.iterdir()) == []


def test_a_bad_line_ends_the_round_and_a_corrected_one_goes_on(tmp_path: Path) -> None:
    roles = Roles()
    rm = models(tmp_path, roles)
    rm.round(0, 0, without_references)
    answer(tmp_path, questions(tmp_path), "Second")  # type: ignore[arg-type]
    with pytest.raises(LabelError, match=r"answers.jsonl:1: preferred is 'Second'"):
        rm.round(1, 0, without_references)
    (tmp_path / "answers.jsonl").write_text((tmp_path / "answers.jsonl").read_text().replace("Second", "second"))
    assert rm.round(1, 0, without_references)["rm/accepted"] == 1.0


def test_other_judges_leave_no_questions(tmp_path: Path) -> None:
    roles = Roles()
    rm = models(tmp_path, roles, "judge.file=null", f"judge.labeler={__name__}:labels_nothing")
    rm.round(0, 0, without_references)
    assert len(roles.fitted) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["labels.jsonl", "rm"]
    assert [path.name for path in (tmp_path / "rm").iterdir()] == ["version_1"]


def labels_nothing(items: list[object], seed: int) -> Labels:
    return Labels([{} for _ in items], [])


def test_numbers_of_a_judge_are_in_the_decision(tmp_path: Path) -> None:
    numbers = judge_numbers(Counter({"": 6, ORDERS: 2, UNREADABLE: 3, TOO_LONG: 1}))
    assert numbers == {"judge_order_disagreement": 0.25, "judge_unreadable": 3.0, "judge_too_long": 1.0}
    assert judge_numbers(Counter())["judge_order_disagreement"] == 0.0
    book = LabelBook(tmp_path / "labels.jsonl")
    book.buy([pair("p")], one_by_one(lambda _: "tie"))
    assert judge_numbers(book.reasons([pair("p")]))["judge_order_disagreement"] == 0.0  # a meant tie
    counted = RoundLabels(proposed(0), (), {}, {"judge_unreadable": 3.0}).counted(
        Decision(True, "better", {"p_value": 0.01})
    )
    assert counted.numbers == {"p_value": 0.01, "judge_unreadable": 3.0} and counted.accepted
