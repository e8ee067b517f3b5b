"""What evaluate_rm and explain need, checked before any model is loaded.

Called by the preflight. Reads rows, config.json and tokenizers; waits for the disk only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from common.config.config import Config, EvaluateRmConfig, ExplainConfig
from common.config.stages import COMMANDS
from common.data.judged import JudgedFile, read_answers
from driver.evaluate_rm.sets import PRIOR, V1, V2, sources
from driver.evaluate_rm.source import serving
from driver.preflight.environment import visible_gpus
from driver.preflight.findings import Findings
from driver.preflight.inputs import check_model, read_rows
from rewarder.rewardbench import PRIOR_SETS


def check_commands(config: Config, stages: Sequence[str], findings: Findings) -> None:
    """A reward model, a place to run it, and something to look at, for each command among the stages."""
    asked = [name for name in COMMANDS if name in stages]
    if asked:
        _check_model(config, asked, findings)
    if "evaluate_rm" in stages:
        _check_evaluation(config.evaluate_rm, findings)
    if "explain" in stages:
        _check_explanation(config.explain, findings)


def _check_model(config: Config, asked: Sequence[str], findings: Findings) -> None:
    makes_one = {"reward_model", "iterate"} & set(config.stages) and config.run_dir.is_dir()
    if serving(config) is None:
        findings.problem(
            f"{', '.join(asked)}: no reward model: {config.run_dir} has no rm/version_0 and rewarder.model is not set; "
            + ("finish the run's stage reward_model first, or " if makes_one else "")
            + "set rewarder.model, or run.dir and run.name to a run that made one"
        )
    if config.rewarder.gpus and not visible_gpus():
        findings.problem(
            f"{', '.join(asked)}: rewarder.gpus is {config.rewarder.gpus:g} and this machine shows no GPU; a command runs "
            "where launch.py runs: start it on a machine with one, or set rewarder.gpus: 0"
        )


def _check_evaluation(section: EvaluateRmConfig, findings: Findings) -> None:
    named = list(sources(section))
    if not named:
        findings.problem(
            "evaluate_rm has nothing to judge: set evaluate_rm.pairs, evaluate_rm.rewardbench or evaluate_rm.rewardbench2"
        )
    _check_prior_sets(section, findings)
    _check_names(section, findings)
    for key, _, source, read in named:
        read_rows(key, source, _as_rows(read), findings)
    if section.baseline:
        check_model("evaluate_rm.baseline", section.baseline, section.baseline_revision, False, findings)
    elif section.baseline_revision:
        findings.problem("evaluate_rm.baseline_revision is set without evaluate_rm.baseline; set both or neither")


def _check_prior_sets(section: EvaluateRmConfig, findings: Findings) -> None:
    for name in section.prior_sets:
        if name not in PRIOR_SETS:
            findings.problem(f"evaluate_rm.prior_sets names {name!r}; it must be one of {', '.join(PRIOR_SETS)}")
    if section.prior_sets and not section.rewardbench:
        findings.problem(
            "evaluate_rm.prior_sets is set without evaluate_rm.rewardbench; for such pairs alone use evaluate_rm.pairs"
        )


def _check_names(section: EvaluateRmConfig, findings: Findings) -> None:
    for name in section.pairs:
        if name in (V1, V2) or name.startswith(PRIOR):
            findings.problem(f"evaluate_rm.pairs names a set {name!r}, which is taken; give it another name")


def _as_rows(read: Callable[[str, int | None], JudgedFile]) -> Callable[[str, int | None], list[Any]]:
    return lambda source, limit: list(read(source, limit).rows)


def _check_explanation(section: ExplainConfig, findings: Findings) -> None:
    texts = section.prompt is not None or bool(section.responses)
    if section.file and texts:
        findings.problem("explain.file is set beside explain.prompt or explain.responses; set one or the other")
    elif section.file:
        read_rows("explain.file", section.file, lambda source, limit: read_answers(source, section.rows), findings)
    elif not texts:
        findings.problem("explain has nothing to explain: set explain.prompt and explain.responses, or explain.file")
    elif not (section.prompt or "").strip() or not section.responses:
        what = "explain.responses" if (section.prompt or "").strip() else "explain.prompt"
        findings.problem(
            f"explain: {what} is empty; set both explain.prompt and explain.responses (a list), or explain.file"
        )
