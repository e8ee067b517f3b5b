"""Who rates responses in a round: the judge that compares pairs too, asked for a number of each objective.

    function   what it says of each objective, beside its gold        labeler  its ratings, by a seed of the content
    model      a gated reward model's scores of the same names        endpoint a rubric, answered as JSON (rubric.py)
    file       people (people_ratings.py)

Called by driver/rounds/labelling.py. Each is a Rater: it gets the responses that have no rating and hands on each as it comes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

from common.config.config import Config, JudgeConfig
from common.judge import JudgeError, JudgeItem, Labels, ask_judge, load_function
from common.ratings import RateItem, Rating, rating_of
from driver.cluster.doors import Judges
from driver.judges.judges import PAIRS_PER_CALL
from driver.judges.label_book import KeepRating, Rater


def rater_of(config: Config, judges: Judges) -> Rater:
    """The judge that the configuration names, as one who rates."""
    judge, objectives = config.judge, config.rewarder.objectives
    if judge.compares == "model":
        return model_rater(judges, objectives)
    if judge.compares == "endpoint":
        from driver.judges.endpoint import read_key  # a second to import
        from driver.judges.rubric import RubricJudge

        return RubricJudge(judge.endpoint, read_key(judge.endpoint.key_env), objectives)
    if judge.compares == "file":
        from driver.judges.people_ratings import people_who_rate

        assert judge.file is not None, "what compares is given"
        return people_who_rate(Path(judge.file), objectives)
    return make_rater(judge, objectives, config.run.seed)


def make_rater(config: JudgeConfig, objectives: Sequence[str], seed: int) -> Rater:
    """Rates by judge.labeler, or else by judge.function."""
    if config.labeler is not None:
        label = load_function(config.labeler)
        return rated_one_by_one(lambda item: _by_labeler(label, item, objectives, seed))
    assert config.function is not None, "the configuration asks for a judge"
    judge = load_function(config.function)
    return rated_one_by_one(lambda item: rating_of("judge.function", ask_judge(judge, item.item), objectives, item))


def rated_one_by_one(ask: Callable[[RateItem], Rating]) -> Rater:
    """One who is asked about one response after the other."""

    def rate(items: Sequence[RateItem], keep: KeepRating) -> None:
        for item in items:
            keep(item, ask(item))

    return rate


def model_rater(judges: Judges, objectives: Sequence[str]) -> Rater:
    """Rates by the judge's own processes, which take the responses in turns."""

    def rate(items: Sequence[RateItem], keep: KeepRating) -> None:
        size = min(PAIRS_PER_CALL, -(-len(items) // len(judges)))
        calls = [items[start : start + size] for start in range(0, len(items), size)]
        for start in range(0, len(calls), len(judges)):
            now = calls[start : start + len(judges)]
            for call, ratings in zip(now, judges.rate(now, objectives), strict=True):
                for item, rating in zip(call, ratings, strict=True):
                    keep(item, rating)

    return rate


def _by_labeler(
    label: Callable[[list[JudgeItem], int], Labels], item: RateItem, objectives: Sequence[str], seed: int
) -> Rating:
    """The labeler's seed comes from the content: the same response gets the same rating, whenever it is asked for."""
    digest = hashlib.sha256(f"{seed}\0{item.key}".encode()).digest()
    try:
        ratings = label([item.item], int.from_bytes(digest[:6], "big")).ratings
    except Exception as error:  # the user's code may raise anything; the run ends with its name
        raise JudgeError(f"judge.labeler raised {type(error).__name__}: {error}, on {item.response[:80]!r}") from error
    if len(ratings) != 1:
        raise JudgeError(f"judge.labeler returned {len(ratings)} ratings for 1 response; want one dict a response")
    return rating_of("judge.labeler", ratings[0], objectives, item)
