"""A language model behind an OpenAI-compatible API (`vllm serve`, a hosted one) as a judge of pairs.

    each pair is asked about in both orders; a preference counts only where both agree, else it is a tie

Made by driver/judges/judges.py (and with a rubric by driver/judges/rubric.py); the preflight asks it for its models. Waits for
the network, each answer at most timeout_s, with the client's own retries. The key comes from the environment and stays in the
client's headers. What the server sends is bounded before it is read. When the server is down, what is in flight ends and is
kept, nothing new is asked, and JudgeError says so.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Generic, TypeVar

import httpx2
import openai

from common.config.config import EndpointConfig
from common.judge import ORDERS, TOO_LONG, UNREADABLE, JudgeError, PairItem, Preference, Verdict
from common.types import Message

AGAIN = "Your answer must be one letter and nothing else: A, B or C."
KEPT = "the answers so far are in labels.jsonl: go on with --resume"
NO_KEY = "none"  # the client sends something; without this it would take OPENAI_API_KEY to whatever server this is
IN_ORDER: dict[str, Preference] = {"A": "first", "B": "second", "C": "tie"}
SWAPPED: dict[str, Preference] = {"A": "second", "B": "first", "C": "tie"}
SHOWN = 300  # characters of an error of the server or the client
KIB = 1024
_MARKS = r"[^A-Za-z0-9]*"
_LETTER = re.compile(
    rf"(?:(?:final )?(?:answer|verdict|choice)(?: is)?)?{_MARKS}(?:response )?([ABC]){_MARKS}", re.IGNORECASE
)
_THOUGHT = re.compile(r"<think>.*?(?:</think>|\Z)", re.DOTALL)
_PLACE = re.compile(r"\{(prompt|first|second)\}")
_CONTEXT = re.compile(r"context.(length|window)|maximum.(model|input).length|max_model_len|too long", re.IGNORECASE)

Item = TypeVar("Item")
Said = TypeVar("Said")


class ReplyRefused(openai.OpenAIError):
    """A reply that is not read; of the client's own kind, so that it asks no second time."""


class Endpoint(ABC, Generic[Item, Said]):
    """Asks one model about items, `concurrency` of them at once; what is asked of one is `_said`."""

    def __init__(self, config: EndpointConfig, key: str | None):
        self._config, self._key = config, key
        self._is_down = False

    def __call__(self, items: Sequence[Item], keep: Callable[[Item, Said], None]) -> None:
        """Hands on what is said of each item as it comes. Raises JudgeError after what was in flight has ended."""
        asyncio.run(self._judge(items, keep))

    def models(self) -> list[str]:
        """The names that the server gives its models. Raises JudgeError."""
        found = asyncio.run(self._models())
        try:
            return [str(model["id"]) for model in json.loads(found)["data"]]
        except (ValueError, KeyError, TypeError) as error:
            raise self._no_api(found) from error

    async def _models(self) -> str:
        async with self._client() as client:
            try:
                return (await client.models.with_raw_response.list()).text
            except openai.OpenAIError as error:  # the network and the server fail in many ways
                raise JudgeError(self._explain(error)) from None

    @abstractmethod
    async def _said(self, client: openai.AsyncOpenAI, item: Item) -> Said:
        """What the language model says of one item."""

    async def _judge(self, items: Sequence[Item], keep: Callable[[Item, Said], None]) -> None:
        waiting, self._is_down = iter(items), False
        async with self._client() as client:
            workers = (self._work(client, waiting, keep) for _ in range(self._config.concurrency))
            ended = await asyncio.gather(*workers, return_exceptions=True)
        for failure in ended:
            if failure is not None:
                raise failure

    async def _work(
        self, client: openai.AsyncOpenAI, waiting: Iterator[Item], keep: Callable[[Item, Said], None]
    ) -> None:
        """One of several that take their items from the same iterator."""
        for item in waiting:
            if self._is_down:
                return
            keep(item, await self._said(client, item))

    async def _answer(self, client: openai.AsyncOpenAI, text: str) -> str | None:
        """The text of the reply; None where the question is longer than the model's context."""
        try:
            reply = await client.chat.completions.with_raw_response.create(
                model=self._config.model or "",
                messages=[{"role": "user", "content": text}],
                temperature=0.0,
                max_tokens=self._config.answer_tokens,
            )
        except openai.OpenAIError as error:  # the network and the server fail in many ways
            if isinstance(error, openai.BadRequestError) and _CONTEXT.search(str(error)):
                return None
            self._is_down = True
            raise JudgeError(f"{self._explain(error)}; {KEPT}") from None  # the chain could show headers
        return self._content(reply.text)

    def _content(self, reply: str) -> str:
        """The message of a chat reply; empty where the model said nothing (it spent its tokens on thinking)."""
        try:
            return json.loads(reply)["choices"][0]["message"].get("content") or ""
        except (ValueError, KeyError, IndexError, TypeError, AttributeError):
            self._is_down = True
            raise self._no_api(reply) from None

    def _client(self) -> openai.AsyncOpenAI:
        config = self._config
        client = openai.AsyncOpenAI(
            base_url=config.url,
            api_key=self._key or NO_KEY,
            timeout=config.timeout_s,
            max_retries=config.retries,
            default_headers={"Accept-Encoding": "identity"},
            http_client=openai.DefaultAsyncHttpxClient(event_hooks={"response": [self._bound]}),
        )
        client.organization = client.project = None  # which it takes from the environment, meant for another server
        return client

    async def _bound(self, response: httpx2.Response) -> None:
        """Limits what will be read of a reply, an error's too."""
        if response.headers.get("content-encoding", "identity") != "identity":
            raise ReplyRefused(
                "the reply is compressed, so its size is not known; have the server send it plain, as asked"
            )
        stream = response.stream
        assert isinstance(stream, httpx2.AsyncByteStream), "an asynchronous client's"
        response.stream = _Bounded(stream, self._config.max_response_kib, self._config.timeout_s)

    def _explain(self, error: openai.OpenAIError) -> str:
        config, place = self._config, f"judge.endpoint {self._config.url}"
        tries = f" in each of {config.retries + 1} tries" if config.retries else ""
        if isinstance(error, ReplyRefused):
            return f"{place}: {error}"
        if isinstance(error, openai.APITimeoutError):
            wanted = "see what the server does, or raise judge.endpoint.timeout_s"
            return f"{place} gave no whole answer within {config.timeout_s:g} s{tries}; {wanted}"
        if isinstance(error, openai.APIConnectionError):
            wanted = "start the server, or correct judge.endpoint.url or the network"
            return f"{place} cannot be reached{tries} ({self._line(error.__cause__ or error)}); {wanted}"
        if isinstance(error, (openai.AuthenticationError, openai.PermissionDeniedError)):
            given = f"the key in {config.key_env}" if self._key else "a request without a key (judge.endpoint.key_env)"
            return f"{place} refused {given} ({self._line(error)}); set that variable to a key that it takes"
        return f"{place} failed ({self._line(error)}); wanted an answer of {config.model}: see the server's log"

    def _no_api(self, reply: str) -> JudgeError:
        return JudgeError(
            f"judge.endpoint {self._config.url} answered {self._shown(reply)!r}; wanted the JSON of an OpenAI-compatible API: "
            "correct judge.endpoint.url (it usually ends in /v1)"
        )

    def _line(self, error: BaseException) -> str:
        return self._shown(f"{type(error).__name__}: {error}")

    def _shown(self, text: str) -> str:
        """A text of the server or the client, short and without the key."""
        text = " ".join(text.split())
        return (text.replace(self._key, "***") if self._key else text)[:SHOWN]


class EndpointJudge(Endpoint[PairItem, Verdict]):
    """Compares pairs."""

    async def _said(self, client: openai.AsyncOpenAI, item: PairItem) -> Verdict:
        return agreed(await self._ask(client, item, False), await self._ask(client, item, True))

    async def _ask(self, client: openai.AsyncOpenAI, item: PairItem, swapped: bool) -> Verdict:
        """What the model says in one order."""
        question = fill(self._config.instruction, item, swapped)
        for text in (question, f"{question}\n\n{AGAIN}"):
            answer = await self._answer(client, text)
            if answer is None:
                return Verdict("tie", TOO_LONG)
            if letter := read_letter(answer):
                return Verdict((SWAPPED if swapped else IN_ORDER)[letter])
        return Verdict("tie", UNREADABLE)


class _Bounded(httpx2.AsyncByteStream):
    """A reply's bytes, up to a size and a time from its head on (the client's own limit is for each piece)."""

    def __init__(self, inner: httpx2.AsyncByteStream, kib: int, seconds: float):
        self._inner, self._kib = inner, kib
        self._deadline = time.monotonic() + seconds

    async def __aiter__(self) -> AsyncIterator[bytes]:
        left = self._kib * KIB
        async for piece in self._inner:
            left -= len(piece)
            if left < 0:
                raise ReplyRefused(
                    f"the reply is larger than judge.endpoint.max_response_kib, {self._kib} KiB; raise it"
                )
            if time.monotonic() > self._deadline:
                raise httpx2.ReadTimeout("the reply goes on and on")
            yield piece

    async def aclose(self) -> None:
        await self._inner.aclose()


def read_key(key_env: str | None) -> str | None:
    """The key of that environment variable, None where none is asked for. JudgeError (never showing it) where it is not set."""
    if key_env is None:
        return None
    key = os.environ.get(key_env, "").strip()
    if not key:
        raise JudgeError(
            f"judge.endpoint.key_env is {key_env} and the environment variable is not set; set it to the key of the endpoint, "
            "or set judge.endpoint.key_env: null where it asks for none"
        )
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise JudgeError(f"{key_env} (judge.endpoint.key_env) holds characters that no key has; copy the key again")
    return key


def fill(instruction: str, item: PairItem, swapped: bool) -> str:
    """The question: the pair put into its places at once, so that a response that spells a place out changes nothing."""
    first, second = (item.second, item.first) if swapped else (item.first, item.second)
    texts = {"prompt": conversation(item.messages), "first": first, "second": second}
    return _PLACE.sub(lambda place: texts[place[1]], instruction)


def conversation(messages: Sequence[Message]) -> str:
    """One user turn as it is; of several turns each with its role."""
    if len(messages) == 1:
        return messages[0].content
    return "\n\n".join(f"{message.role}: {message.content}" for message in messages)


def without_thoughts(answer: str) -> str:
    """The answer without its <think> parts."""
    return _THOUGHT.sub("", answer)


def read_letter(answer: str) -> str | None:
    """The A, B or C that is all of an answer or of its last line ("Answer: **B**" too), thoughts left out; None for anything
    else."""
    lines = [line.strip() for line in without_thoughts(answer).splitlines() if line.strip()]
    found = _LETTER.fullmatch(lines[-1]) if lines else None
    return found[1].upper() if found else None


def agreed(one: Verdict, other: Verdict) -> Verdict:
    """The verdict of both orders."""
    if one.why or other.why:
        return Verdict("tie", one.why or other.why)
    return one if one.preferred == other.preferred else Verdict("tie", ORDERS)
