"""What section adaptation asks for and cannot have: nobody to prove a candidate, nothing to hold it, no gate, too few pairs.

Called by common/config_checks.py; each problem becomes one line that says what to do.
"""

from __future__ import annotations

from common.config import CACHED_TIERS, GATELESS, Config


def wrong_adaptation(config: Config) -> list[str]:
    """One line for each contradiction; nothing where the reward model is not adapted."""
    if not config.adaptation.enabled:
        return []
    return [*_nothing_to_hold(config), *_no_judge(config), *_wrong_method(config), *_too_few_pairs(config)]


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
    if adaptation.tier == "gate" and kind in GATELESS:
        found.append(f"adaptation.tier is gate but aggregation.kind {kind} has no gate; use adaptation.tier: lora")
    if adaptation.meta.second_order == "exact" and adaptation.tier not in CACHED_TIERS:
        found.append(
            f"adaptation.meta.second_order is exact but adaptation.tier {adaptation.tier} trains the backbone, which has no "
            "second derivative here; use difference (finite differences), or none"
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


def _too_few_pairs(config: Config) -> list[str]:
    adaptation, seen = config.adaptation, _seen_groups(config)
    most = min(adaptation.evidence_pairs, seen // 2)
    if adaptation.min_pairs <= most:
        return []
    return [
        f"adaptation.min_pairs is {adaptation.min_pairs} and a round has at most {most} pairs of evidence "
        f"(adaptation.evidence_pairs {adaptation.evidence_pairs}; an iteration's end sees {seen} groups, those since the "
        f"oldest checkpoint kept, of which half are evidence); lower it to {most}, or raise adaptation.evidence_pairs, "
        "checkpoint.every_steps or checkpoint.keep"
    ]


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
    """Groups of the current iteration that the scored stream still holds at its end, in the iteration where they are fewest:
    what the oldest checkpoint kept does not need is trimmed."""
    steps, every, keep = config.iteration.steps, config.checkpoint.every_steps, config.checkpoint.keep
    fewest = steps
    for end in range(steps, steps * config.iteration.num, steps):
        written = {end - 1 - (end - 1) % span - i * span for span in (every, steps) for i in range(keep)}
        kept = sorted(step for step in written if step > 0)[-keep:]
        fewest = min(fewest, end - max([end - steps, *kept[:1]]))
    return fewest * config.learner.groups_per_step
