"""What the treatments of wrong labels are worth on people's pairs, where nobody knows the truth.

    python -m studies.real_pairs --policy DIR --pairs FILE [--held-out 0.2] [--seed 0] [--out FILE.json]

DIR is a policy whose frozen states are read (a run's `sft`, or a model's directory), FILE its pairs (`preferences.jsonl` of
examples/real_data). The conversations are split into FOLDS by their opening; on all but one part the pairs' strengths are
computed and each method of treatments.py that needs no truth is trained, and the part left out is its test: each pair is
tested once, by models that saw no pair of its conversation or of a continuation. A pair counts as right by the share of a
method's models that order it as people did. Prints a Markdown table, progress on stderr; --out has the same numbers, and each
pair's. --held-out is the share of conversations that the policy was not trained on, by the rule of common/data/split.py, where
it was trained on chosen responses of the others; the last two columns are without that doubt. A policy that was trained on
none of them, as SmolLM2, needs only the first columns.

    accuracy     with Wilson's 95 % interval over pairs
    gain         over the baseline, with the 95 % interval of the pairs' differences, clustered by opening
    p            two-sided sign test (exact) of the openings where the two differ; one of as many tests as there are rows

Intervals are over pairs alone: folds share training pairs, and another seed would train other models.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoConfig

from common.config.config import RewardTrainingConfig
from common.config.file import BASE, load_config
from common.data.data import PreferencePair, read_pairs
from common.data.sources import DataError
from common.data.split import is_held_out, opening_key
from common.json_text import json_text
from learner.adaptation.evidence import mcnemar
from learner.reward_model.held_out import wilson_interval
from rewarder.scoring import Rendered
from studies import noisy_pairs, strengths, treatments
from studies.noisy_pairs import Pairs
from studies.statistics import Interval, clustered_interval
from studies.strengths import Floats, Mask
from studies.tables import markdown_table
from studies.treatments import Committees

FOLDS = 5
BASELINE, LENGTH = "baseline", "length"
Groups = NDArray[np.int64]


@dataclass(frozen=True)
class Outcome:
    """What one method reaches: over all pairs, and over those of conversations that the policy was not trained on; gains
    are over the baseline, p of the sign test."""

    accuracy: float
    low: float
    high: float
    gain: Interval
    p: float
    held_out: float
    held_out_gain: Interval


def main() -> None:
    """Compares ways to train on people's pairs, and prints or writes what it found."""
    parser = argparse.ArgumentParser(prog="python -m studies.real_pairs", description="Denoising on people's pairs.")
    parser.add_argument("--policy", type=Path, required=True, help="directory of the policy whose states are read")
    parser.add_argument("--pairs", type=Path, required=True, help="preference pairs (docs/data.md)")
    parser.add_argument("--held-out", type=float, default=0.2, help="share of conversations new to the policy")
    parser.add_argument("--seed", type=int, default=0, help="of the models")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    try:
        pairs = read_pairs(arguments.pairs)
        tested = evaluate(arguments.policy, pairs, arguments.seed)
    except (DataError, ValueError) as error:
        parser.exit(2, f"{error}\n")
    new = np.array([is_held_out(pair.messages, arguments.held_out) for pair in pairs])
    found = outcomes(tested, openings(pairs), new)
    print(table(found, len(pairs), int(new.sum())))
    if arguments.out is not None:
        arguments.out.write_text(json_text(record(found, tested, arguments.seed), indent=1) + "\n")


def openings(pairs: Sequence[PreferencePair]) -> Groups:
    """[P]: a number for each opening, the same for a conversation and its continuation."""
    return np.unique([opening_key(pair.messages) for pair in pairs], return_inverse=True)[1]


def folds(pairs: Sequence[PreferencePair]) -> Groups:
    """[P]: the fold of each pair, by a hash of its opening. Raises DataError where a fold would be empty."""
    found = np.array([int(opening_key(pair.messages), 16) % FOLDS for pair in pairs], np.int64)
    if missing := sorted(set(range(FOLDS)) - set(found.tolist())):
        raise DataError(
            f"of {FOLDS} folds of {len(pairs)} pairs by opening, {missing} are empty; give more conversations"
        )
    return found


def evaluate(policy: Path, pairs: Sequence[PreferencePair], seed: int) -> dict[str, Floats]:
    """[P] of each method: by how many of its models, as a share, a pair is ordered as people did."""
    fold = folds(pairs)
    rendered = noisy_pairs.rendered(policy, [(p.messages, text) for p in pairs for text in (p.chosen, p.rejected)])
    check_positions(rendered, AutoConfig.from_pretrained(policy).max_position_embeddings)
    rows = torch.arange(len(rendered)).reshape(-1, 2)
    every = Pairs(noisy_pairs.states_of(policy, rendered), rows, openings(pairs))
    tested = {LENGTH: by_length(np.array([one.response_end - one.prompt_end for one in rendered]).reshape(-1, 2), fold)}
    settings = load_config(BASE, ["aggregation.kind=final_score"]).learner.reward_model
    return tested | cross_validated(every, fold, settings, seed)


def check_positions(rendered: Sequence[Rendered], positions: int) -> None:
    """DataError where a conversation is longer than the policy reads."""
    longest = max(range(len(rendered)), key=lambda at: len(rendered[at].ids))
    if (tokens := len(rendered[longest].ids)) > positions:
        raise DataError(
            f"pair {longest // 2 + 1} has {tokens} tokens, the policy {positions} positions; leave long pairs out, as "
            "examples/real_data does"
        )


def by_length(tokens: NDArray[np.int64], fold: Groups) -> Floats:
    """[P]: whether the longer response is the chosen one, or the shorter where those win in the other folds; equal lengths
    count half. tokens [P, 2] of the chosen and the rejected response."""
    longer = (np.sign(tokens[:, 0] - tokens[:, 1]) + 1) / 2
    wins = np.array([longer[fold != part].mean() for part in range(FOLDS)])[fold] > 0.5
    return np.where(wins, longer, 1 - longer)


def cross_validated(every: Pairs, fold: Groups, settings: RewardTrainingConfig, seed: int) -> dict[str, Floats]:
    """[P] of each method of treatments.WITHOUT_TRUTH, as `evaluate`."""
    tested = {name: np.full(len(fold), np.nan) for name in treatments.WITHOUT_TRUTH}
    for part in range(FOLDS):
        training, rest = sides(every, fold == part)
        for name, committees in methods(training, settings, seed):
            tested[name][fold == part] = share_right(committees, rest)
            progress = f"fold {part + 1}/{FOLDS}: {name} {tested[name][fold == part].mean():.3f}"
            print(progress, file=sys.stderr, flush=True)
    assert not any(np.isnan(found).any() for found in tested.values()), "each pair is tested"
    return tested


def sides(every: Pairs, left: Mask) -> tuple[Pairs, Pairs]:
    """(training, test): the pairs that are not left out, and those that are; states have mean 0 and deviation 1 in training."""
    seen = every.states[every.rows[torch.from_numpy(~left)].flatten()]
    states = (every.states - seen.mean(0)) / seen.std(0)
    training, rest = (Pairs(states, every.rows[torch.from_numpy(kept)], every.prompts[kept]) for kept in (~left, left))
    return training, rest


def methods(training: Pairs, settings: RewardTrainingConfig, seed: int) -> Iterator[tuple[str, Committees]]:
    """Each method trained on these, by strengths that are computed on these."""
    labelled = treatments.labelled_pairs(training, np.zeros(len(training.rows), bool))
    models = strengths.everywhere(labelled, seed)
    found = {
        "out_of_fold": strengths.out_of_fold(labelled, training.prompts, seed),
        "in_sample": strengths.in_sample(models, labelled),
    }
    return treatments.without_truth(settings, labelled, found, models, seed)


def share_right(committees: Committees, pairs: Pairs) -> Floats:
    """[P]: the share of the committees that order a pair rightly."""
    return torch.stack([treatments.right(committee, pairs) for committee in committees]).double().mean(0).numpy()


def outcomes(tested: Mapping[str, Floats], groups: Groups, new: Mask) -> dict[str, Outcome]:
    """What is said of each method; `groups` [P] are openings, `new` [P] the pairs that the policy was not trained on."""
    base = tested[BASELINE]
    return {name: _outcome(found, found - base, groups, new) for name, found in tested.items()}


def sign_test(gains: Floats, groups: Groups) -> float:
    """Two-sided exact p of as many groups with a summed gain above 0 as below it; groups without one do not count."""
    sums = np.bincount(groups, gains).round(9)
    wins, losses = int((sums > 0).sum()), int((sums < 0).sum())
    return min(1.0, 2 * mcnemar(max(wins, losses), min(wins, losses)))


def table(found: Mapping[str, Outcome], num_pairs: int, num_new: int) -> str:
    """Writes the table as Markdown."""
    head = [
        "method",
        f"accuracy, {num_pairs:,} pairs",
        "gain",
        "p",
        f"{num_new:,} pairs new to the policy",
        "gain there",
    ]
    return markdown_table(head, [_row(name, one) for name, one in found.items()])


def record(found: Mapping[str, Outcome], tested: Mapping[str, Floats], seed: int) -> dict[str, object]:
    """The JSON file: outcomes and, for each pair in the file's order, the share of right models."""
    right = {name: values.round(4).tolist() for name, values in tested.items()}
    return {"folds": FOLDS, "seed": seed, "methods": {n: asdict(one) for n, one in found.items()}, "right": right}


def _outcome(found: Floats, gains: Floats, groups: Groups, new: Mask) -> Outcome:
    low, high = wilson_interval(float(found.mean()), len(found))
    gain, there = (clustered_interval(gains[kept].tolist(), groups[kept].tolist()) for kept in (np.ones_like(new), new))
    p, held_out = sign_test(gains, groups), float(found[new].mean())
    return Outcome(float(found.mean()), low, high, gain, p, held_out, there)


def _row(name: str, one: Outcome) -> list[str]:
    accuracy = f"{one.accuracy:.3f} [{one.low:.3f}, {one.high:.3f}]"
    if name == BASELINE:
        return [name, accuracy, "", "", f"{one.held_out:.3f}", ""]
    gain, there = one.gain.format(signed=True), one.held_out_gain.format(signed=True)
    return [name, accuracy, gain, f"{one.p:.2g}", f"{one.held_out:.3f}", there]


if __name__ == "__main__":
    main()
