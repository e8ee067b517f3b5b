"""driver/judges/endpoint.py against a real HTTP server on this machine (tests/unit/chat_server.py): both orders, what cannot be
read, what does not answer, and the key."""

from __future__ import annotations

import gzip
import json
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from common.config.config import EndpointConfig
from common.config.file import BASE, load_config
from common.judge import ORDERS, TOO_LONG, UNREADABLE, JudgeError, PairItem, Verdict, pair_item
from common.types import Message
from driver.judges.endpoint import AGAIN, EndpointJudge, conversation, fill, read_key, read_letter
from driver.judges.label_book import LabelBook
from tests.unit.chat_server import MODEL, Answer, ChatServer, Reply, chat, models_of

KEY = "key-of-the-endpoint-0123456789"
Start = Callable[..., ChatServer]


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    servers: list[ChatServer] = []

    def make(answer: Answer = lambda _: "A", models: bytes = models_of(MODEL)) -> ChatServer:
        servers.append(ChatServer(answer, models))
        return servers[-1]

    yield make
    for server in servers:
        server.close()


def endpoint(url: str, **changes: object) -> EndpointConfig:
    base = load_config(BASE, ["aggregation.kind=final_score"]).judge.endpoint
    return replace(base, **{"url": url, "model": MODEL, "timeout_s": 20.0, "retries": 0, "concurrency": 2, **changes})


def pair(n: int, first: str = "good answer", second: str = "poor answer") -> PairItem:
    return pair_item((Message("user", f"question {n}"),), {}, f"{first} {n}", f"{second} {n}")


def verdicts(judge: EndpointJudge, *items: PairItem) -> dict[str, Verdict]:
    found: dict[str, Verdict] = {}
    judge(items, lambda item, verdict: found.update({item.key: verdict}))
    return found


def one(server: ChatServer, **changes: object) -> Verdict:
    (found,) = verdicts(EndpointJudge(endpoint(server.url, **changes), None), pair(0)).values()
    return found


def shown(question: str) -> tuple[str, str]:
    """The responses in the places A and B."""
    found = re.findall(r"<response_[AB]>\n(.*?)\n</response_[AB]>", question, re.DOTALL)
    return found[0], found[1]


def prefers_good(question: str) -> str:
    return "A" if shown(question)[0].startswith("good") else "B"


def the_better(item: PairItem) -> str:
    return "first" if item.first.startswith("good") else "second"


def test_both_orders_are_asked_and_a_preference_counts_where_they_agree(start: Start) -> None:
    server, item = start(prefers_good), pair(0)
    (verdict,) = verdicts(EndpointJudge(endpoint(server.url), None), item).values()
    assert verdict == Verdict(the_better(item))  # type: ignore[arg-type]
    assert [shown(question) for question in server.questions] == [
        (item.first, item.second),
        (item.second, item.first),
    ]
    request = server.asked[0]
    assert (request["model"], request["temperature"], request["max_tokens"]) == (MODEL, 0, 16)
    assert "question 0" in server.questions[0]


@pytest.mark.parametrize("letter", ["A", "B"])
def test_an_answer_that_goes_by_the_place_is_a_tie_and_counted(start: Start, letter: str) -> None:
    assert one(start(lambda _: letter)) == Verdict("tie", ORDERS)


def test_a_meant_tie_is_none_by_the_order(start: Start) -> None:
    assert one(start(lambda _: "C")) == Verdict("tie")
    half = start(lambda question: "C" if shown(question)[0].startswith("good") else "B")
    assert one(half) == Verdict("tie", ORDERS)  # a tie in one order, a preference in the other


def test_garbage_is_asked_about_once_more_and_then_a_tie(start: Start) -> None:
    server = start(lambda _: "As a judge, I find both of them interesting.")
    assert one(server) == Verdict("tie", UNREADABLE)
    assert len(server.asked) == 4  # twice in each order
    assert [question.endswith(AGAIN) for question in server.questions] == [False, True, False, True]


def test_garbage_that_is_followed_by_an_answer_is_an_answer(start: Start) -> None:
    server = start(lambda question: prefers_good(question) if question.endswith(AGAIN) else "Hm.")
    assert one(server).preferred == the_better(pair(0)) and len(server.asked) == 4


def test_a_model_that_says_nothing_is_unreadable(start: Start) -> None:
    assert one(start(lambda _: Reply(chat(None)))) == Verdict("tie", UNREADABLE)


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        *(("A", "A"), (" b.\n", "B"), ("**C**", "C"), ("[[A]]", "A"), ("Answer: B", "B"), ("Final answer: C", "C")),
        *(
            ("The first one is clear.\n\nAnswer: **A**", "A"),
            ("<think>A or B?\nB</think>\n\nA", "A"),
            ("Response B", "B"),
        ),
        *(("A good question.", None), ("AB", None), ("", None), ("D", None), ("A or B", None), ("<think>\nA", None)),
        *(("Banana", None), ("A is better, B is worse", None)),
    ],
)
def test_which_letter_an_answer_is(answer: str, letter: str | None) -> None:
    assert read_letter(answer) == letter


def test_texts_are_filled_in_at_once_and_turns_have_their_roles() -> None:
    item = PairItem((Message("system", "Be {first}."), Message("user", "hi")), {}, "say {second}", "no \\1 {prompt}")
    assert fill("{prompt}|{first}|{second}|{other}", item, False) == (
        "system: Be {first}.\n\nuser: hi|say {second}|no \\1 {prompt}|{other}"
    )
    assert fill("{first}|{second}", item, True) == "no \\1 {prompt}|say {second}"
    assert conversation([Message("user", "hi")]) == "hi"


def test_answers_belong_to_their_pairs_however_they_come(start: Start, tmp_path: Path) -> None:
    def slowly(question: str) -> str:
        time.sleep(0.05 if int(re.findall(r"question (\d+)", question)[0]) % 3 == 0 else 0)
        return prefers_good(question)

    server, items = start(slowly), [pair(n) for n in range(12)]
    judge = EndpointJudge(endpoint(server.url, concurrency=4), None)
    bought = LabelBook(tmp_path / "labels.jsonl").buy(items, judge)
    assert list(bought) == [item.key for item in items]
    assert list(bought.values()) == [the_better(item) for item in items]
    assert 2 <= server.most_at_once <= 4 and len(server.asked) == 24
    assert LabelBook(tmp_path / "labels.jsonl").buy(items, judge) == bought and len(server.asked) == 24


def test_why_a_tie_is_one_is_in_the_file(start: Start, tmp_path: Path) -> None:
    book = LabelBook(tmp_path / "labels.jsonl")
    book.buy([pair(0)], EndpointJudge(endpoint(start(lambda _: "A").url), None))
    assert json.loads((tmp_path / "labels.jsonl").read_text())["why"] == ORDERS
    assert LabelBook(tmp_path / "labels.jsonl").reasons([pair(0), pair(1)]) == {ORDERS: 1}


def test_a_server_that_goes_down_ends_the_round_and_loses_no_answer(start: Start, tmp_path: Path) -> None:
    items, path = [pair(n) for n in range(10)], tmp_path / "labels.jsonl"

    def dies(question: str) -> Reply | str:
        return Reply(b'{"error": {"message": "no memory"}}', 500) if len(server.asked) > 9 else prefers_good(question)

    server = start(dies)
    with pytest.raises(
        JudgeError, match=r"failed \(InternalServerError: .*no memory.*labels.jsonl: go on with --resume"
    ):
        LabelBook(path).buy(items, EndpointJudge(endpoint(server.url, concurrency=1), None))
    assert len(path.read_text().splitlines()) == 4  # 9 answers: four pairs and a half
    again = start(prefers_good)
    bought = LabelBook(path).buy(items, EndpointJudge(endpoint(again.url), None))
    assert len(again.asked) == 12 and list(bought.values()) == [the_better(item) for item in items]


def test_what_is_in_flight_when_another_fails_is_kept(start: Start, tmp_path: Path) -> None:
    def answer(question: str) -> Reply | str:
        if "question 1\n" in question:
            return Reply(b"{}", 400)
        time.sleep(0.2)
        return prefers_good(question)

    server, path = start(answer), tmp_path / "labels.jsonl"
    with pytest.raises(JudgeError, match="BadRequestError"):
        LabelBook(path).buy([pair(n) for n in range(6)], EndpointJudge(endpoint(server.url, concurrency=2), None))
    assert [json.loads(line)["key"] for line in path.read_text().splitlines()] == [pair(0).key]
    assert len(server.asked) == 3  # nothing new was asked


def test_nobody_there(start: Start) -> None:
    server = start()
    server.close()
    with pytest.raises(JudgeError, match=r"127.0.0.1:\d+/v1 cannot be reached in each of 2 tries \(.*start the server"):
        one(server, retries=1)


def test_an_error_of_the_moment_is_tried_again(start: Start) -> None:
    server = start(lambda q: prefers_good(q) if len(server.asked) > 1 else Reply(b"busy", 503))
    assert one(server, retries=2).preferred == the_better(pair(0)) and len(server.asked) == 3


def test_a_server_that_does_not_answer_in_time(start: Start) -> None:
    started = time.monotonic()
    with pytest.raises(JudgeError, match=r"gave no whole answer within 0.3 s; .*judge.endpoint.timeout_s"):
        one(start(lambda _: Reply(chat("A"), pause_s=3)), timeout_s=0.3)
    assert time.monotonic() - started < 3


def test_an_answer_that_trickles_is_no_answer(start: Start) -> None:
    """The client's own limit is for each piece, and so would wait for all of them."""
    with pytest.raises(JudgeError, match="gave no whole answer within 0.4 s"):
        one(start(lambda _: Reply(chat("A"), pieces=30, pause_s=0.1)), timeout_s=0.4)


@pytest.mark.parametrize("status", [200, 400])
def test_too_large_a_reply_is_not_read(start: Start, status: int) -> None:
    server = start(lambda _: Reply(chat("A" * 5000), status))
    with pytest.raises(JudgeError, match="larger than judge.endpoint.max_response_kib, 4 KiB"):
        one(server, max_response_kib=4, retries=3)
    assert len(server.asked) == 1


def test_a_compressed_reply_is_not_read(start: Start) -> None:
    server = start(lambda _: Reply(gzip.compress(chat("A")), headers={"Content-Encoding": "gzip"}))
    with pytest.raises(JudgeError, match="the reply is compressed"):
        one(server)
    assert server.headers[0]["accept-encoding"] == "identity"


@pytest.mark.parametrize(
    "body", [b"<html>Welcome</html>", b'{"choices": []}', b"[]", b'{"choices": [{"message": null}]}']
)
def test_a_server_that_is_no_such_api(start: Start, body: bytes) -> None:
    with pytest.raises(JudgeError, match="wanted the JSON of an OpenAI-compatible API"):
        one(start(lambda _: Reply(body)))


def test_a_pair_that_is_too_long_for_the_model_is_a_tie(start: Start) -> None:
    words = "This model's maximum context length is 4096 tokens. However, you requested 9000."
    body = json.dumps({"error": {"message": words, "type": "BadRequestError", "code": 400}}).encode()
    assert one(start(lambda _: Reply(body, 400))) == Verdict("tie", TOO_LONG)


def test_the_key_is_sent_and_written_nowhere(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("JUDGE_KEY", f" {KEY}\n")
    server = start(prefers_good)
    judge = EndpointJudge(endpoint(server.url), read_key("JUDGE_KEY"))
    LabelBook(tmp_path / "labels.jsonl").buy([pair(0)], judge)
    assert {headers["authorization"] for headers in server.headers} == {f"Bearer {KEY}"}
    refusing = start(lambda _: Reply(json.dumps({"error": {"message": f"bad key {KEY}"}}).encode(), 401))
    with pytest.raises(JudgeError, match=r"refused the key in JUDGE_KEY \(.*bad key \*\*\*.*") as raised:
        verdicts(EndpointJudge(endpoint(refusing.url, key_env="JUDGE_KEY"), KEY), pair(0))
    assert raised.value.__cause__ is None and raised.value.__suppress_context__
    written = [path.read_text() for path in tmp_path.rglob("*") if path.is_file()]
    assert not any(KEY in text for text in (*written, str(raised.value), *capsys.readouterr()))


def test_keys_meant_for_another_server_stay_here(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        monkeypatch.setenv(name, KEY)
    server = start(prefers_good)
    one(server)
    assert not any(KEY in value for value in server.headers[0].values())


def test_a_key_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    assert read_key(None) is None
    with pytest.raises(JudgeError, match="judge.endpoint.key_env is JUDGE_KEY and the environment variable is not set"):
        read_key("JUDGE_KEY")
    monkeypatch.setenv("JUDGE_KEY", "two words")
    with pytest.raises(JudgeError, match="characters that no key has") as raised:
        read_key("JUDGE_KEY")
    assert "two words" not in str(raised.value)


def test_the_models_of_a_server(start: Start) -> None:
    assert EndpointJudge(endpoint(start(models=models_of("a", "b")).url), None).models() == ["a", "b"]
    with pytest.raises(JudgeError, match="wanted the JSON of an OpenAI-compatible API"):
        EndpointJudge(endpoint(start(models=b"[1]").url), None).models()
