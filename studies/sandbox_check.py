"""Does the sandbox show what it is for? The checks of study `sandbox`, their table, and the figure of proxy against gold.

Called by render.py and by `python -m studies check`. Each check is an interval over seeds and a bound that it must clear.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from scipy.special import stdtrit

from studies.figures import proxy_and_gold
from studies.rows import Row
from studies.statistics import Interval, matched_kl, paired_interval, t_interval
from studies.tables import markdown_table

Arms = Mapping[str, Sequence[Row]]
MID_RANGE = (0.5, 0.8)
RISE_KL = 2.0  # nats: by step, some seeds are past their peak when others have just begun
RULES = ("single", "uniform", "fixed", "shuffled", "gated", "oracle")
STEPS = (0.0, 25.0, 50.0, 75.0)


@dataclass(frozen=True)
class Check:
    """One property: what was measured, what it must be, whether it is."""

    what: str
    measured: str
    wanted: str
    holds: bool


def checks(arms: Arms) -> list[Check]:
    """All properties that the studies rely on."""
    frozen, gold, rm = arms["frozen"], arms["gold"], arms["reward_model"]
    start = t_interval(list(_first(frozen, "gold").values()))
    early = matched_kl(frozen, [RISE_KL])[RISE_KL]
    low, high = MID_RANGE
    inside = low < start.low and start.high < high
    return [
        Check("gold of the SFT policy", start.format(), f"interval in {low} to {high}", inside),
        _positive("gold gained until the sequence KL is 2 nats", paired_interval(early, _first(frozen, "gold"))),
        _positive("gold lost from there to the last step", paired_interval(early, _last(frozen, "gold"))),
        _positive(
            "fall of the reward model's accuracy on the policy's own samples, step 0 to last",
            paired_interval(_first(frozen, "onpolicy_accuracy"), _last(frozen, "onpolicy_accuracy")),
        ),
        _positive("growth of proxy minus gold, step 0 to last", paired_interval(_gap(frozen, -1), _gap(frozen, 0))),
        _positive(
            "gold when trained on gold, minus gold with the frozen reward model, last step",
            paired_interval(_last(gold, "gold"), _last(frozen, "gold")),
        ),
        _beats("pair accuracy, gate minus best fixed weights", _rule_gain(rm, "gated")),
        _loses("pair accuracy, shuffled gate minus best fixed weights", _rule_gain(rm, "shuffled")),
    ]


def tables(arms: Arms) -> str:
    """The checks, the course of the frozen arm, and the reward model's rules, as Markdown."""
    listed = [[c.what, c.measured, c.wanted, "yes" if c.holds else "**no**"] for c in checks(arms)]
    return "\n".join(
        [
            markdown_table(["check", "measured", "wanted", "holds"], listed),
            "Along the run, frozen reward model (last column: trained on gold instead):\n",
            _course(arms["frozen"], arms["gold"]),
            "Order of two responses of the SFT policy to a held-out prompt, by the reward model's scores:\n",
            _rules_table(arms["reward_model"]),
        ]
    )


def draw(path: Path, arms: Arms) -> None:
    """Proxy, gold and on-policy accuracy along the run."""
    proxy_and_gold(path, arms, "", "frozen", ceiling="gold")


def _course(frozen: Sequence[Row], gold: Sequence[Row]) -> str:
    header = [
        "step",
        "KL, nats",
        "proxy",
        "gold",
        "on-policy accuracy",
        "violations on probes",
        "gold, trained on gold",
    ]
    columns = [(frozen, name) for name in ("kl", "proxy", "gold", "onpolicy_accuracy", "violations")] + [(gold, "gold")]
    return markdown_table(
        header,
        [
            [f"{step:g}", *(t_interval(list(_at(rows, name, step).values())).format() for rows, name in columns)]
            for step in STEPS
        ],
    )


def _rules_table(rows: Sequence[Row]) -> str:
    lines = [
        [
            rule,
            t_interval([row.end[f"accuracy/{rule}"] for row in rows]).format(),
            "-" if rule == "fixed" else _rule_gain(rows, rule).format(signed=True),
        ]
        for rule in RULES
    ]
    return markdown_table(["weights", "pair accuracy", "minus fixed"], lines)


def _rule_gain(rows: Sequence[Row], rule: str) -> Interval:
    return paired_interval(
        {row.seed: row.end[f"accuracy/{rule}"] for row in rows}, {row.seed: row.end["accuracy/fixed"] for row in rows}
    )


def _positive(what: str, interval: Interval) -> Check:
    return Check(what, interval.format(signed=True), "interval above 0", interval.low > 0)


def _beats(what: str, interval: Interval) -> Check:
    error = _standard_error(interval)
    measured = f"{interval.format(signed=True)} (s.e. {error:.4f})"
    return Check(what, measured, "above 2 s.e.", interval.mean > 2 * error)


def _loses(what: str, interval: Interval) -> Check:
    error = _standard_error(interval)
    measured = f"{interval.format(signed=True)} (s.e. {error:.4f})"
    return Check(what, measured, "not above 2 s.e.", interval.mean <= 2 * error)


def _standard_error(interval: Interval) -> float:
    return float((interval.high - interval.mean) / stdtrit(interval.n - 1, 0.975))


def _first(rows: Sequence[Row], name: str) -> dict[int, float]:
    return {row.seed: row.curve(name)[0] for row in rows}


def _last(rows: Sequence[Row], name: str) -> dict[int, float]:
    return {row.seed: row.curve(name)[-1] for row in rows}


def _at(rows: Sequence[Row], name: str, step: float) -> dict[int, float]:
    return {row.seed: row.curve(name)[row.curve("step").index(step)] for row in rows}


def _gap(rows: Sequence[Row], index: int) -> dict[int, float]:
    return {row.seed: row.curve("proxy")[index] - row.curve("gold")[index] for row in rows}
