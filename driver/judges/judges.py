"""Who compares pairs in a round: a function, a stronger reward model, a language model behind an endpoint, or people.

Called by driver/rounds/labelling.py. Each is a driver.labels.Judge: it gets the pairs that have no label and hands on each
answer as it comes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from common.config.config import Config
from common.judge import PairItem
from driver.cluster.doors import Judges
from driver.judges.label_book import Judge, Keep, make_judge
from driver.judges.people import people

PAIRS_PER_CALL = 16  # that one process compares before its answers are kept


def judge_of(config: Config, judges: Judges) -> Judge:
    """The judge that the configuration names."""
    judge = config.judge
    if judge.compares == "model":
        return model_judge(judges)
    if judge.compares == "endpoint":
        from driver.judges.endpoint import EndpointJudge, read_key  # a second to import

        return EndpointJudge(judge.endpoint, read_key(judge.endpoint.key_env))
    if judge.compares == "file":
        assert judge.file is not None, "what compares is given"
        return people(Path(judge.file))
    return make_judge(judge, config.run.seed)


def model_judge(judges: Judges) -> Judge:
    """Compares by the scores of the judge's own processes, which take the pairs in turns."""

    def judge(items: Sequence[PairItem], keep: Keep) -> None:
        size = min(PAIRS_PER_CALL, -(-len(items) // len(judges)))
        calls = [items[start : start + size] for start in range(0, len(items), size)]
        for start in range(0, len(calls), len(judges)):
            now = calls[start : start + len(judges)]
            answers = judges.compare(now)
            for call, verdicts in zip(now, answers, strict=True):
                for item, verdict in zip(call, verdicts, strict=True):
                    keep(item, verdict)

    return judge
