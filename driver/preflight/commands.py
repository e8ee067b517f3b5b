"""What evaluate_rm and explain need, checked before any model is loaded.

Called by the preflight. Reads rows, config.json and tokenizers; waits for the disk only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from common.config.config import Config, EvaluateRmConfig, ExplainConfig
from common.config.stages import COMMANDS
from common.data.judged import read_answers
from common.data.sides import judged_sides
from driver.evaluate_rm.sets import PRIOR, V1, V2, sources
from driver.evaluate_rm.source import baseline, serving
from driver.preflight.environment import visible_gpus
from driver.preflight.findings import Findings
from driver.preflight.inputs import check_model, read_rows, tokenizer_of, try_rows
from driver.preflight.rows import Use, answers, as_explained
from rewarder.rewardbench import PRIOR_SETS


def check_commands(config: Config, stages: Sequence[str], findings: Findings) -> None:
    """A reward model, a place to run it, and something to look at, for each command among the stages."""
    asked = [name for name in COMMANDS if name in stages]
    if asked:
        _check_model(config, asked, findings)
    most = config.rewarder.max_tokens
    if "evaluate_rm" in stages:
        served = _serving_tokenizer(config, findings), _baseline_tokenizer(config, findings)
        named = zip(("the reward model", "the baseline"), served, strict=True)
        uses = [Use(whose, tokenizer, most, answers(judged_sides)) for whose, tokenizer in named]
        _check_evaluation(config.evaluate_rm, uses, findings)
    if "explain" in stages:
        use = Use("the reward model", _serving_tokenizer(config, findings), most, as_explained)
        _check_explanation(config.explain, [use], findings)


def _serving_tokenizer(config: Config, findings: Findings) -> Any:
    source = serving(config)
    return None if source is None else tokenizer_of("the reward model", source.name, source.revision, findings)


def _baseline_tokenizer(config: Config, findings: Findings) -> Any:
    """That of evaluate_rm.baseline, whose directory is checked too, or of the run's own baseline."""
    section, source = config.evaluate_rm, baseline(config)
    if section.baseline is not None:
        return check_model("evaluate_rm.baseline", section.baseline, section.baseline_revision, False, findings)[1]
    return None if source is None else tokenizer_of("the run's baseline", source.name, None, findings)


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


def _check_evaluation(section: EvaluateRmConfig, uses: Sequence[Use], findings: Findings) -> None:
    named = list(sources(section))
    if not named:
        findings.problem(
            "evaluate_rm has nothing to judge: set evaluate_rm.pairs, evaluate_rm.rewardbench or evaluate_rm.rewardbench2"
        )
    _check_prior_sets(section, findings)
    _check_names(section, findings)
    for key, _, source, read in named:
        try_rows(key, read_rows(key, source, read, findings), uses, findings)
    if section.baseline is None and section.baseline_revision:
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


def _check_explanation(section: ExplainConfig, uses: Sequence[Use], findings: Findings) -> None:
    texts = section.prompt is not None or bool(section.responses)
    if section.file and texts:
        findings.problem("explain.file is set beside explain.prompt or explain.responses; set one or the other")
    elif section.file:
        rows = read_rows("explain.file", section.file, lambda source: read_answers(source, section.rows), findings)
        try_rows("explain.file", rows, uses, findings)
    elif not texts:
        findings.problem("explain has nothing to explain: set explain.prompt and explain.responses, or explain.file")
    elif not (section.prompt or "").strip() or not section.responses:
        what = "explain.responses" if (section.prompt or "").strip() else "explain.prompt"
        findings.problem(
            f"explain: {what} is empty; set both explain.prompt and explain.responses (a list), or explain.file"
        )
