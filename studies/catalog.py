"""All studies. Each asks one question; what its rows say is printed in the page that it names.

To add one: an entry here, a block `<!-- rows: NAME -->` in its page, a renderer in render.py, then `make study NAME=...`.
"""

from __future__ import annotations

from studies.study import Arm, Study, find
from studies.worlds import REAL_MODEL

POLICY, REWARD_MODEL = "studies.measures:policy", "studies.measures:reward_model"
EQUAL = "aggregation.weights={correct: 1, cover: 1, polite: 1, brief: 1, safe: 1, fluent: 1}"
JUDGED = "aggregation.objectives=[correct, cover, polite, brief, safe, fluent]"
BREADTH, PLANTED = ("breadth",), ("breadth", "planted")
# The paper's case: one Bradley-Terry score, trained on the same preferences alone, transformed
SINGLE_MODEL = (
    "judge.labeler=studies.labelers:pairs_alone",
    "rewarder.objectives=[preferred]",
    "rewarder.preference=preferred",
    "aggregation.kind=final_score",
)
FLIPPED = ("sft", "reward_model", "shifted")  # what arms with flipped labels need
SHIFTED = ("aggregation.kind=final_score",)  # as the policy whose samples are out of distribution was trained
# Every round trains the whole model, for about half an epoch of the original pairs, and is weighed on as many labels
ROUNDS = (
    "adaptation.when=iteration",
    "adaptation.tier=full",
    "adaptation.steps=60",
    "adaptation.batch_pairs=16",
    "adaptation.learning_rate=3e-4",
    "adaptation.evidence_pairs=192",
    "adaptation.guard_r2=0.05",
    "adaptation.meta.prompts=8",
)
# Every candidate serves: what the method does to the policy, where the gate would have refused it
UNGATED = ("adaptation.level=1", "adaptation.guard_accuracy=1", "adaptation.guard_r2=1")
KEPT = "adaptation.fit_rounds=2"  # the second round is fitted on the first one's labels too
ADAPTATION, SHARED = "studies.adaptation:measure", ("sft", "reward_model", "frozen_run")
REAL = "studies.smollm:measure"
# Of what both configurations of the real model have; option equal adds what people's pairs train
REAL_EQUAL = (
    "aggregation.weights={sentences: 1, words: 1, bullets: 1, keyword: 1, avoid: 1, case: 1, closing: 1, "
    "opening: 1, json: 1, commas: 1, quoted: 1, language: 1, brevity: 1}"
)
HACKED = "judge.labeler=studies.labelers:hacked"


def _rounds(method: str, *settings: str, name: str = "", options: tuple[str, ...] = ()) -> Arm:
    """An arm of study adaptation."""
    return Arm(name or method, ADAPTATION, (*ROUNDS, f"adaptation.method={method}", *settings), options, SHARED)


STUDIES = (
    Study(
        "sandbox",
        "Does the sandbox show what online RLHF suffers from, and is its gate worth something?",
        (
            Arm("reward_model", REWARD_MODEL),
            Arm("frozen", POLICY, ("aggregation.kind=final_score",)),
            Arm("gold", POLICY, ("aggregation.kind=final_score",), ("gold",)),
        ),
        page="docs/sandbox.md",
    ),
    Study(
        "fixed_weights",
        "Is the gated, transformed reward better than a fixed weighted sum of the same objectives?",
        (
            Arm("grouped", POLICY),
            Arm("final_score", POLICY, ("aggregation.kind=final_score",)),
            Arm("equal_weights", POLICY, ("aggregation.kind=weighted_sum", EQUAL)),
            Arm("fitted_weights", POLICY, ("aggregation.kind=weighted_sum", EQUAL), ("fitted",)),
        ),
        page="docs/studies.md",
    ),
    Study(
        "reward_models",
        "What is the gate worth, beside fixed weights and a Bradley-Terry model, and what do heads in closed form lose?",
        (
            Arm("regression", REWARD_MODEL, ("learner.reward_model.baseline=true",)),
            Arm("ridge", REWARD_MODEL, ("learner.reward_model.baseline=true", "learner.reward_model.stage_1=ridge")),
        ),
        page="docs/studies.md",
    ),
    Study(
        "aggregation",
        "Which way of making one reward of several objectives gives answers that are good in every respect?",
        (
            Arm("weighted_sum", POLICY, ("aggregation.kind=weighted_sum", EQUAL), BREADTH),
            Arm("single_model", POLICY, SINGLE_MODEL, BREADTH),
            Arm("final_score", POLICY, ("aggregation.kind=final_score",), BREADTH),
            Arm("per_objective", POLICY, ("aggregation.kind=per_objective", JUDGED), BREADTH),
            Arm("grouped", POLICY, (), BREADTH),
            Arm("zscore", POLICY, ("aggregation.kind=zscore", EQUAL), BREADTH),
            Arm("min", POLICY, ("aggregation.kind=min", JUDGED), BREADTH),
        ),
        page="docs/studies.md",
    ),
    Study(
        "planted_hack",
        "One objective's raters like a harmless-looking word: how far does each aggregation fall for it?",
        (
            Arm("weighted_sum", POLICY, (HACKED, "aggregation.kind=weighted_sum", EQUAL), PLANTED),
            Arm("final_score", POLICY, (HACKED, "aggregation.kind=final_score"), PLANTED),
            Arm("per_objective", POLICY, (HACKED, "aggregation.kind=per_objective", JUDGED), PLANTED),
            Arm("grouped", POLICY, (HACKED,), PLANTED),
            Arm("zscore", POLICY, (HACKED, "aggregation.kind=zscore", EQUAL), PLANTED),
            Arm("min", POLICY, (HACKED, "aggregation.kind=min", JUDGED), PLANTED),
        ),
        page="docs/studies.md",
        seeds=(0, 1, 2),
    ),
    Study(
        "denoising",
        "Does strength find wrong labels, and which treatment of them gives the better reward model, on both sides of a shift?",
        tuple(
            Arm(f"flipped_{share:02d}", "studies.denoising:measure", SHIFTED, (f"flipped={share / 100}",), FLIPPED)
            for share in (0, 10, 25, 40)
        ),
        page="docs/studies.md",
    ),
    Study(
        "adaptation",
        "Does a reward model that is adapted to the policy's samples, with labels or without, give a better policy?",
        (
            Arm("frozen", ADAPTATION, (), ("frozen",), SHARED),
            _rounds("none"),
            _rounds("literal", "adaptation.meta.size=0.05"),
            _rounds("no_restore", "adaptation.meta.size=0.005"),
            _rounds("joint", "adaptation.meta.weight=0.5"),
            _rounds("look_ahead", "adaptation.meta.size=0.1"),
            _rounds("ocrm"),
            _rounds("labelled", "adaptation.fit_pairs=64", name="labelled_64"),
            _rounds("labelled", "adaptation.fit_pairs=256", name="labelled_256"),
            _rounds("labelled", "adaptation.fit_pairs=1024", name="labelled_all"),
            _rounds("labelled", "adaptation.fit_pairs=64", KEPT, name="labelled_64_kept"),
            _rounds("labelled", "adaptation.fit_pairs=256", KEPT, name="labelled_256_kept"),
            _rounds("literal", "adaptation.meta.size=0.05", *UNGATED, name="literal_ungated"),
            _rounds("labelled", "adaptation.fit_pairs=64", *UNGATED, name="labelled_64_ungated"),
            _rounds("labelled", "adaptation.fit_pairs=256", *UNGATED, name="labelled_256_ungated"),
            _rounds("labelled", "adaptation.fit_pairs=1024", *UNGATED, name="labelled_all_ungated"),
            _rounds("labelled", "adaptation.fit_pairs=256", KEPT, *UNGATED, name="labelled_256_kept_ungated"),
        ),
        page="docs/studies.md",
    ),
    Study(
        "policy_start",
        "Should the policy of a new iteration go on, or start again from the anchor, where the reward model was adapted?",
        (
            Arm("frozen", ADAPTATION, (), ("frozen",), SHARED),
            Arm("frozen_reset", ADAPTATION, (), ("frozen", "reset"), SHARED),
            *(
                _rounds(
                    "labelled",
                    f"adaptation.fit_pairs={pairs}",
                    *gate,
                    name=f"labelled_{pairs}{name}{end}",
                    options=options,
                )
                for pairs in (64, 256)
                for name, gate in (("", ()), ("_ungated", UNGATED))
                for end, options in (("", ()), ("_reset", ("reset",)))
            ),
        ),
        page="docs/studies.md",
    ),
    Study(
        "smollm",
        "Does a real language model get better at all that a prompt asks for, and is the AND better than fixed weights?",
        (
            Arm("grouped", REAL, (), (), ()),
            Arm("weighted_sum", REAL, ("aggregation.kind=weighted_sum", REAL_EQUAL), ("equal",), ()),
            Arm("longer", REAL, ("iteration.steps=48",), (), ()),
        ),
        page="docs/smollm.md",
        seeds=(0, 1, 2),
        world=REAL_MODEL,
    ),
)


def study(name: str) -> Study:
    """Raises ValueError with the names there are."""
    return find(STUDIES, name)
