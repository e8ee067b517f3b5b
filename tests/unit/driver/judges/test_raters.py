"""Judges that rate (driver/judges/raters.py, rubric.py, people_ratings.py): each kind, and what each can get wrong.
The endpoint is a real HTTP server on this machine (tests/unit/chat_server.py)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from common.config.config import Config, EndpointConfig
from common.config.file import BASE, load_config
from common.judge import TOO_LONG, UNREADABLE, JudgeError, JudgeItem, Labels, pair_item
from common.ratings import RateItem, Rating
from common.types import Message
from driver.cluster.doors import Judges
from driver.judges.label_book import LabelBook, LabelError, Rater
from driver.judges.people_ratings import question_row, read_ratings
from driver.judges.raters import model_rater, rater_of
from driver.judges.rubric import RubricJudge, read_scores
from tests.unit.chat_server import MODEL, Answer, ChatServer, Reply, chat, models_of
from tests.unit.driver.fake_groups import group_of

OBJECTIVES = ["good", "short"]
GOOD = '{"good": 7, "short": 10}'
Start = Callable[..., ChatServer]
SAID: dict[str, dict[str, float]] = {}
SEEDS: list[int] = []


def item(text: str = "p", response: str = "an answer") -> RateItem:
    return RateItem((Message("user", text),), {}, response)


def judge(response: JudgeItem) -> dict[str, float]:
    return {"gold": 0.5, **SAID.get(response.response, {"good": 0.25, "short": 1.0})}


def label(items: list[JudgeItem], seed: int) -> Labels:
    SEEDS.append(seed)
    return Labels([{"good": 0.5, "short": None} for _ in items], [])


def config(*overrides: str) -> Config:
    return load_config(BASE, ["aggregation.kind=final_score", f"rewarder.objectives={OBJECTIVES}", *overrides])


def rated(rater: Rater, *items: RateItem) -> list[Rating]:
    found: dict[str, Rating] = {}
    rater(items, lambda one, rating: found.update({one.key: rating}))
    return [found[one.key] for one in items]


def by(*overrides: str) -> Rater:
    return rater_of(config(*overrides), Judges(group_of(0)))


# ---- functions ----------------------------------------------------------------------------------------------------------


def test_a_function_rates_the_objectives_that_it_names() -> None:
    assert rated(by(f"judge.function={__name__}:judge"), item()) == [Rating({"good": 0.25, "short": 1.0})]
    SAID["only good"] = {"good": 0.75}
    assert rated(by("rewarder.objectives=[good]", f"judge.function={__name__}:judge"), item(response="only good")) == [
        Rating({"good": 0.75})
    ]


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ({"good": 1.5}, "rating of good is 1.5"),
        ({"good": float("nan")}, "rating of good is nan"),
        ({"good": "x"}, "could not"),
    ],
)
def test_a_function_that_rates_outside_is_named(scores: dict[str, float], message: str) -> None:
    SAID["bad"] = scores
    with pytest.raises(JudgeError, match=f"judge.function: .*{message}"):
        rated(by("rewarder.objectives=[good]", f"judge.function={__name__}:judge"), item(response="bad"))


def test_a_function_that_rates_no_objective_is_named() -> None:
    with pytest.raises(JudgeError, match=r"none of the objectives safe.*labels: pairs"):
        rated(by("rewarder.objectives=[safe]", f"judge.function={__name__}:judge"), item())


def test_the_labelers_ratings_go_by_the_content() -> None:
    SEEDS.clear()
    labeler = by(f"judge.function={__name__}:judge", f"judge.labeler={__name__}:label")
    assert rated(labeler, item(), item("q"), item()) == [Rating({"good": 0.5})] * 3
    assert SEEDS[0] == SEEDS[2] != SEEDS[1]


def test_a_response_and_a_pair_of_it_have_their_own_keys() -> None:
    pair = pair_item((Message("user", "p"),), {}, "an answer", "another")
    assert len({item().key, item("q").key, item(response="another").key, pair.key}) == 4


# ---- a second reward model ----------------------------------------------------------------------------------------------


class TwoModels(Judges):
    """Two processes; each answers by the length of the response."""

    def __init__(self) -> None:
        super().__init__(group_of(2))
        self.parts: list[int] = []

    def rate(self, parts: Sequence[Sequence[RateItem]], objectives: Sequence[str]) -> list[list[Rating]]:
        self.parts += [len(part) for part in parts]
        return [[Rating({name: len(one.response) / 100 for name in objectives}) for one in part] for part in parts]


def test_a_models_processes_take_the_responses_in_turns() -> None:
    judges, items = TwoModels(), [item(response="x" * n) for n in range(1, 8)]
    found = rated(model_rater(judges, OBJECTIVES), *items)
    assert [rating.scores["good"] for rating in found] == [n / 100 for n in range(1, 8)]
    assert judges.parts == [4, 3]


# ---- an endpoint --------------------------------------------------------------------------------------------------------


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    servers: list[ChatServer] = []

    def make(answer: Answer = lambda _: GOOD) -> ChatServer:
        servers.append(ChatServer(answer, models_of(MODEL)))
        return servers[-1]

    yield make
    for server in servers:
        server.close()


def endpoint(url: str) -> EndpointConfig:
    base = config().judge.endpoint
    return replace(base, url=url, model=MODEL, timeout_s=20.0, retries=0, concurrency=2)


def one(server: ChatServer) -> Rating:
    return rated(RubricJudge(endpoint(server.url), None, OBJECTIVES), item())[0]


def test_a_rubric_is_answered_as_json(start: Start) -> None:
    server = start()
    assert one(server) == Rating({"good": 0.7, "short": 1.0})
    (question,) = server.questions
    assert "good, short" in question and "<response>\nan answer\n</response>" in question and "{" not in question


def test_a_response_that_spells_a_place_out_changes_nothing(start: Start) -> None:
    server = start()
    rated(RubricJudge(endpoint(server.url), None, OBJECTIVES), item("{response}", "{objectives}"))
    assert "<prompt>\n{response}\n</prompt>" in server.questions[0]
    assert "<response>\n{objectives}\n</response>" in server.questions[0]


@pytest.mark.parametrize(
    "answer", ["not JSON", '{"good": 7, "short"', "I cannot rate this response.", "[7, 10]", '{"safe": 3}', '"7"']
)
def test_what_is_no_json_is_asked_once_more_and_then_unrated(start: Start, answer: str) -> None:
    server = start(lambda _: answer)
    assert one(server) == Rating({}, UNREADABLE)
    assert len(server.asked) == 2 and server.questions[1].startswith(server.questions[0])


def test_a_model_that_says_nothing_is_unreadable(start: Start) -> None:
    assert one(start(lambda _: Reply(chat(None)))) == Rating({}, UNREADABLE)


@pytest.mark.parametrize("second", ["null", "11", "-1", '"8"', "true", "NaN", "1e999"])
def test_a_missing_objective_or_a_number_outside_is_asked_once_more_and_then_left_out(
    start: Start, second: str
) -> None:
    server = start(lambda _: f'{{"good": 7, "short": {second}}}')
    assert one(server) == Rating({"good": 0.7}) and len(server.asked) == 2


def test_what_the_second_answer_adds_counts(start: Start) -> None:
    server = start(lambda question: '{"short": 4}' if "nothing else: {" in question else '{"good": 7}')
    assert one(server) == Rating({"good": 0.7, "short": 0.4})


def test_the_last_object_that_rates_counts_and_thoughts_do_not() -> None:
    answer = '<think>{"good": 0, "short": 0}</think>From {"good": 1} to\n```json\n{"good": 7, "short": 2}\n``` {"x": 1}'
    assert read_scores(answer, OBJECTIVES) == {"good": 0.7, "short": 0.2}


def test_a_response_that_is_too_long_is_unrated(start: Start) -> None:
    error = json.dumps({"error": {"message": "This model's maximum context length is 10 tokens", "code": 400}}).encode()
    assert one(start(lambda _: Reply(error, status=400))) == Rating({}, TOO_LONG)


def test_a_server_that_fails_ends_the_run_and_what_came_is_kept(start: Start, tmp_path: Path) -> None:
    server = start(lambda question: GOOD if "<prompt>\np0\n" in question else Reply(b"{}", status=500))
    items, book = [item(f"p{n}") for n in range(6)], LabelBook(tmp_path / "labels.jsonl")
    with pytest.raises(JudgeError, match="go on with --resume"):
        book.rate(items, RubricJudge(endpoint(server.url), None, OBJECTIVES))
    assert [known.item.messages[0].content for known in LabelBook(tmp_path / "labels.jsonl").ratings] == ["p0"]


# ---- people -------------------------------------------------------------------------------------------------------------


def line(one: RateItem, **scores: float | None) -> str:
    return json.dumps({**question_row(one, OBJECTIVES), "scores": scores}) + "\n"


def test_people_rate_what_they_have_rated(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    assert read_ratings(path, OBJECTIVES) == {}
    compared = json.dumps({"key": "k", "prompt": [], "first": "a", "second": "b", "preferred": None}) + "\n"
    path.write_text(line(item(), good=0.5, short=None) + compared + line(item("q"), good=None, short=None))
    assert read_ratings(path, OBJECTIVES) == {item().key: Rating({"good": 0.5})}
    rater, found = by(f"judge.file={path}"), list[str]()
    rater([item(), item("q")], lambda one, _: found.append(one.key))
    assert found == [item().key], "what nobody has rated stays a question"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": {"good": 2}}, "the rating of good is 2"),
        ({"scores": {"good": "high"}}, "could not convert"),
        ({"scores": {"god": 0.5}}, "scores has 'god'; the objectives are good, short"),
        ({"scores": [0.5]}, "no rating"),
        ({"scores": {"good": 0.5}, "response": "another"}, "the key is not that of this prompt and response"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, change: dict[str, object], message: str) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text(line(item("q"), good=0.5) + json.dumps({**json.loads(line(item())), **change}) + "\n")
    with pytest.raises(LabelError, match=rf"answers.jsonl:2: .*{message}"):
        read_ratings(path, OBJECTIVES)


def test_a_response_that_is_rated_twice_otherwise_is_named(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text(line(item(), good=0.5) * 2 + line(item(), good=0.6))
    with pytest.raises(LabelError, match=r"answers.jsonl:3: this response was rated otherwise"):
        read_ratings(path, OBJECTIVES)
