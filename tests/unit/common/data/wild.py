"""Rows of every format that is read, and values as files in the wild have them, for tests/unit/common/data/test_fuzz.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from common.data.data import read_demonstrations, read_pairs, read_prompts, read_ratings
from common.data.judged import read_answers, read_judged
from common.data.rows import Rows
from common.data.strengths import read_strengths
from driver.evaluate_rm.sets import read_version_1, read_version_2

Row = dict[str, Any]
USER, YES, NO = (
    {"role": role, "content": text} for role, text in (("user", "hi"), ("assistant", "y"), ("assistant", "n"))
)
PAIR = {"prompt": "hi", "chosen": "y", "rejected": "n"}
STRENGTH = {"strength_mean": 0.5, "strength_std": 0.1, "members": 4, "in_sample_mean": None, "in_sample_std": None}


def judged(path: Path) -> Rows[Any]:
    return read_judged(path, "subset")


def strengths(path: Path) -> None:
    read_strengths(path, read_pairs(path))


# format: (reader, rows that it takes)
FORMATS: dict[str, tuple[Callable[[Any], Any], list[Row]]] = {
    "prompts": (read_prompts, [{"prompt": "hi", "meta": {"a": "b"}, "id": "1"}, {"context_messages": [USER]}]),
    "demonstrations": (read_demonstrations, [{"prompt": "hi", "response": "y"}, {"messages": [USER, YES]}]),
    "ratings, wide": (read_ratings, [{"prompt": "hi", "response": "y", "scores": {"a": 0.5, "b": None}}]),
    "ratings, long": (
        read_ratings,
        [{"prompt": [USER], "response": "y", "scores": {name: 0.5}} for name in ("a", "b", "a")],
    ),
    "preferences": (read_pairs, [PAIR, {"chosen": [USER, YES], "rejected": [USER, NO]}, {**PAIR, "prompt": "ho"}]),
    "HHH-alignment": (judged, [{"input": "hi", "targets": {"choices": ["n", "y"], "labels": [0, 1]}}]),
    "Unified-Feedback": (
        judged,
        [
            {"conv_A": [USER, NO], "conv_B": [USER, YES], "conv_A_rating": rating, "conv_B_rating": 1.5}
            for rating in (0, 1.5)
        ],
    ),
    "MT-bench": (
        judged,
        [
            {"conversation_a": [USER, YES], "conversation_b": [USER, NO], "winner": winner, "turn": 1}
            for winner in ("model_a", "tie")
        ],
    ),
    "RewardBench": (read_version_1, [{**PAIR, "subset": "math-prm", "id": 3}, {**PAIR, "subset": "donotanswer"}]),
    "RewardBench 2": (
        read_version_2,
        [
            {"prompt": "hi", "chosen": ["y"], "rejected": ["n", "m"], "subset": "Math", "id": "1"},
            *(
                {"prompt": "hi", "chosen": ["y"], "rejected": ["n"], "subset": "Ties", "id": f"{kind}:1"}
                for kind in ("ref", "tied")
            ),
        ],
    ),
    "strengths": (strengths, [{**PAIR, **STRENGTH}, {**PAIR, "prompt": "ho", **STRENGTH}]),
    "explain": (
        read_answers,
        [{"prompt": "hi", "response": "y"}, {"prompt": "hi", "responses": ["y", "n"]}, PAIR],
    ),
}

DEEP = "[" * 60 + "]" * 60
DEEPEST = "[" * 100_000
# Values as JSON spells them, so that a file may hold what json.dumps would not write
VALUES = [
    *(
        "null",
        "true",
        "NaN",
        "-Infinity",
        "1e999",
        "1" * 400,
        "1" * 5000,
        "-0.0",
        "2",
        '""',
        '" "',
        "[]",
        "{}",
        "[null]",
    ),
    *(
        '"\\ud800"',
        '["\\udfff"]',
        '{"\\ud800": 1}',
        '"\\u0000"',
        '"caf\u00e9"',
        DEEP,
        DEEPEST,
        '{"a": 1, "a": 2}',
        "[1, 2]",
    ),
    *(
        '"\\n\\nHuman: hi\\n\\nAssistant: y"',
        '"a<extra_id_1>Assistant\\nb"',
        '[{"role": "user", "content": 1}]',
        '"all"',
    ),
    *(
        '[{"role": "tool", "content": "a"}]',
        '[{"role": "assistant", "content": "z"}]',
        '{"choices": null, "labels": null}',
    ),
]
