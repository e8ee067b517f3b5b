"""A language model behind an endpoint as a judge that rates: a rubric that asks for a number of each objective, as JSON.

    {"correct": 7, "polite": 10}  ->  {"correct": 0.7, "polite": 1.0}      (0 to SCALE, SCALE is best)

Made by driver/judges/raters.py. The network and its errors are driver/judges/endpoint.py's. An answer that cannot be read is
asked for once more. What is still missing or outside then is not rated, and what is no JSON at all (a refusal too) leaves the
response unrated, with the reason; neither ends the run, and neither is asked again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence

import openai

from common.config.config import EndpointConfig
from common.judge import TOO_LONG, UNREADABLE
from common.ratings import RateItem, Rating
from driver.judges.endpoint import Endpoint, conversation, without_thoughts

SCALE = 10
_PLACE = re.compile(r"\{(prompt|response|objectives)\}")


class RubricJudge(Endpoint[RateItem, Rating]):
    """Asks one model about responses, `concurrency` of them at once."""

    def __init__(self, config: EndpointConfig, key: str | None, objectives: Sequence[str]):
        super().__init__(config, key)
        self._objectives = objectives

    async def _said(self, client: openai.AsyncOpenAI, item: RateItem) -> Rating:
        question, found = fill_rubric(self._config.rubric, item, self._objectives), dict[str, float]()
        for text in (question, f"{question}\n\n{again(self._objectives)}"):
            answer = await self._answer(client, text)
            if answer is None:
                return Rating(found, "" if found else TOO_LONG)
            found |= read_scores(answer, self._objectives)
            if len(found) == len(self._objectives):
                break
        return Rating(found, "" if found else UNREADABLE)


def fill_rubric(rubric: str, item: RateItem, objectives: Sequence[str]) -> str:
    """The question: texts put into their places at once, so that a response that spells a place out changes nothing."""
    texts = {"prompt": conversation(item.messages), "response": item.response, "objectives": ", ".join(objectives)}
    return _PLACE.sub(lambda place: texts[place[1]], rubric)


def again(objectives: Sequence[str]) -> str:
    """What is added where an answer could not be read."""
    wanted = ", ".join(f"{json.dumps(name)}: a number from 0 to {SCALE}" for name in objectives)
    return f"Your answer must be one JSON object and nothing else: {{{wanted}}}."


def read_scores(answer: str, objectives: Sequence[str]) -> dict[str, float]:
    """The numbers in [0, 1] of the last JSON object of an answer that names an objective; others, and numbers that are none or
    outside, are left out. Thoughts do not count."""
    found: dict[str, float] = {}
    for row in _objects(without_thoughts(answer)):
        scores = {name: row[name] for name in objectives if name in row}
        found = {name: value / SCALE for name, value in scores.items() if _is_score(value)} if scores else found
    return found


def _is_score(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return 0 <= value <= SCALE  # NaN is outside too


def _objects(text: str) -> Iterator[dict[str, float]]:
    """Every JSON object that stands in a text, outermost ones alone."""
    decoder, at = json.JSONDecoder(), text.find("{")
    while at >= 0:
        try:
            value, at = decoder.raw_decode(text, at)
        except ValueError:
            at = text.find("{", at + 1)
            continue
        if isinstance(value, dict):
            yield value
        at = text.find("{", at)
