"""What section adaptation asks for and cannot have: nobody to prove a candidate, nothing to hold it, no gate, too few pairs.

Called by common/config/checks.py; each problem becomes one line that says what to do.
"""

from __future__ import annotations

from common.config.aggregations import AGGREGATIONS
from common.config.config import CACHED_TIERS, Config
from common.config.round_times import due_steps, seen_since


def wrong_adaptation(config: Config) -> list[str]:
    """One line for each contradiction; nothing where the reward model is not adapted."""
    if not config.adaptation.enabled:
        return []
    found = [*_nothing_to_hold(config), *_no_judge(config), *_wrong_method(config), *_too_few_pairs(config)]
    found += [*_wrong_ratings(config), *_wrong_batches(config)]
    return [*found, *_never_due(config), *_wrong_drift(config)]


def _no_judge(config: Config) -> list[str]:
    if config.judge.compares:
        return []
    return [
        f"adaptation.when is {config.adaptation.when} but there is no judge: a candidate may serve only if labels of fresh "
        "samples prove it better; set judge.model, judge.endpoint.url, judge.file, judge.labeler or judge.function, or "
        "adaptation.when: never"
    ]


def _wrong_method(config: Config) -> list[str]:
    adaptation, kind, found = config.adaptation, config.aggregation.kind, []
    if adaptation.tier == "gate" and not AGGREGATIONS[kind].gated:
        found.append(f"adaptation.tier is gate but aggregation.kind {kind} has no gate; use adaptation.tier: lora")
    if adaptation.meta.second_order == "exact" and adaptation.tier not in CACHED_TIERS:
        found.append(
            f"adaptation.meta.second_order is exact but adaptation.tier {adaptation.tier} trains the backbone, which has no "
            "second derivative here; use difference (finite differences), or none"
        )
    if (adaptation.when, adaptation.drift.signal) == ("drift", "accuracy") and config.judge.compares == "file":
        found.append(
            "adaptation.drift.signal is accuracy but judge.file has people judge, who answer later than a look; use another "
            "signal, or adaptation.when: steps"
        )
    asks = adaptation.select == "disagreement" or (adaptation.when, adaptation.drift.signal) == (
        "drift",
        "disagreement",
    )
    if asks and adaptation.ensemble is None:
        found.append(
            "adaptation asks for disagreement but adaptation.ensemble is null; name an ensemble (stage preferences makes "
            "one: docs/preferences.md), or use select: random and another drift.signal"
        )
    return found


def _wrong_ratings(config: Config) -> list[str]:
    """What cannot be rated, or cannot learn from ratings."""
    adaptation, judge, found = config.adaptation, config.judge, []
    if adaptation.labels == "pairs":
        return []
    asks = f"adaptation.labels is {adaptation.labels}"
    if adaptation.method != "labelled":
        found.append(
            f"{asks} but method {adaptation.method} is fitted on no labels; use method: labelled, or labels: pairs"
        )
    if adaptation.tier == "gate" and adaptation.labels == "ratings":
        found.append(
            f"{asks} but tier gate leaves every objective's head as it is; use tier: heads or above, or labels: both"
        )
    if not config.rewarder.objectives:
        found.append(
            f"{asks} but rewarder.objectives is empty, so nobody knows what to rate; list the objectives in order"
        )
    fewest = 10 * len(config.rewarder.objectives)
    if judge.compares == "endpoint" and judge.endpoint.answer_tokens < fewest:
        found.append(
            f"{asks} but judge.endpoint.answer_tokens is {judge.endpoint.answer_tokens}: a number for each of "
            f"{len(config.rewarder.objectives)} objectives as JSON needs more; set it to {fewest} or above"
        )
    return found


def _wrong_batches(config: Config) -> list[str]:
    """Batches of what no fit has, and weights that cannot be put back."""
    adaptation, found = config.adaptation, []
    if adaptation.batch_older and adaptation.fit_rounds == 1:
        found.append(
            f"adaptation.batch_older is {adaptation.batch_older} but fit_rounds is 1, so no label of an earlier round is kept; "
            "raise fit_rounds, or set batch_older: 0"
        )
    if adaptation.patience is not None and adaptation.method != "labelled":
        found.append(
            f"adaptation.patience looks at fresh labels, and method {adaptation.method} has none; set patience: null"
        )
    if adaptation.patience is not None and adaptation.zero_stage == 3:
        found.append(
            "adaptation.patience keeps the best weights whole on each rank, and zero_stage 3 shards them; use zero_stage: 2"
        )
    return found


def _too_few_pairs(config: Config) -> list[str]:
    adaptation, seen = config.adaptation, _seen_groups(config)
    most = min(adaptation.evidence_pairs, seen // 2)
    if adaptation.min_pairs <= most:
        return []
    ends = adaptation.when == "iteration"
    where, since = ("an iteration's end", "") if ends else ("a round", "the one before, the iteration's start or ")
    keys = "" if ends else "adaptation.every_steps, "
    return [
        f"adaptation.min_pairs is {adaptation.min_pairs} and a round has at most {most} pairs of evidence "
        f"(adaptation.evidence_pairs {adaptation.evidence_pairs}; {where} sees {seen} groups, those since "
        f"{since}the oldest checkpoint kept, of which half are evidence); lower it to {most}, or raise "
        f"adaptation.evidence_pairs, {keys}checkpoint.every_steps or checkpoint.keep"
    ]


def _never_due(config: Config) -> list[str]:
    """Too few rounds, or looks: the first look only takes the baseline."""
    adaptation, total = config.adaptation, config.iteration.num * config.iteration.steps
    least, what = {"steps": (1, "round"), "drift": (2, "look")}.get(adaptation.when, (0, ""))
    if (times := len(due_steps(adaptation, config.iteration))) >= least:
        return []
    return [
        f"adaptation.when is {adaptation.when} but a run of {total} steps with adaptation.every_steps {adaptation.every_steps} "
        f"has {times} {what}s, none after its last step; at least {least} is wanted: lower adaptation.every_steps"
    ]


def _wrong_drift(config: Config) -> list[str]:
    adaptation, drift, found = config.adaptation, config.adaptation.drift, []
    if adaptation.when != "drift":
        return []
    if drift.signal == "gap" and not config.judge.function:
        found.append(
            "adaptation.drift.signal is gap but there is no judge.function, whose numbers the reward is held against; set it, "
            "or use signal: accuracy, which needs preferences alone"
        )
    if drift.signal in ("accuracy", "variance") and drift.change > 1:
        found.append(
            f"adaptation.drift.change is {drift.change:g}, but {drift.signal} cannot fall by more than 1; use 0.05 or so"
        )
    if drift.signal == "accuracy" and drift.pairs > adaptation.evidence_pairs:
        found.append(
            f"adaptation.drift.pairs is {drift.pairs}, above adaptation.evidence_pairs {adaptation.evidence_pairs}: a round "
            "uses the pairs of its look as evidence, and would leave some that were paid for; lower the one or raise the other"
        )
    return found


def _nothing_to_hold(config: Config) -> list[str]:
    """Which original data are missing, on which a candidate must not get worse."""
    data, found = config.data, []
    if "collect" in config.stages:
        return found
    if not data.preferences:
        found.append(
            f"adaptation.when is {config.adaptation.when} but there are no original pairs, on which a candidate must not "
            "get worse; set data.preferences or add stage collect"
        )
    if (tier := config.adaptation.tier) != "gate" and not data.ratings and not config.rewarder.programs:
        found.append(
            f"adaptation.tier is {tier} but there are no ratings, by which the objectives keep their meaning; set "
            "data.ratings, add stage collect, or use adaptation.tier: gate"
        )
    return found


def _seen_groups(config: Config) -> int:
    """Groups that a round sees, where they are fewest: those since the last round or look and of this iteration that the scored
    stream still holds; what the oldest checkpoint kept does not need is trimmed."""
    times = config.adaptation, config.iteration
    seen = (end - max([seen_since(*times, end), *_oldest_kept(config, end)]) for end in due_steps(*times))
    return min(seen, default=config.iteration.steps) * config.learner.groups_per_step


def _oldest_kept(config: Config, end: int) -> list[int]:
    """The step of the oldest checkpoint that is there when step `end` ends; none before the first one."""
    steps, every, keep = config.iteration.steps, config.checkpoint.every_steps, config.checkpoint.keep
    written = {end - 1 - (end - 1) % span - i * span for span in (every, steps) for i in range(keep)}
    return sorted(step for step in written if step > 0)[-keep:][:1]
