"""Whoever compares pairs in the rounds, checked before any model is loaded: a model's directory, an endpoint, people's answers.

Called by the preflight. Reads config.json and answers, and asks an endpoint for its models once; waits for it some seconds.
Keys never appear in a finding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from common.config.config import Config, EndpointConfig, JudgeConfig
from common.judge import JudgeError
from common.model_size import num_parameters
from driver.judges.label_book import LabelError
from driver.judges.people import read_answers
from driver.judges.people_ratings import read_ratings
from driver.preflight.findings import Findings
from driver.preflight.inputs import check_model
from driver.preflight.models import check_reward_model, check_template

TIMEOUT_S = 5.0
LOCAL = ("localhost", "127.0.0.1", "::1")


def check_judge(config: Config, stages: Sequence[str], findings: Findings) -> tuple[int | None, Any]:
    """What the rounds of stage iterate need of their judge; (the parameters of judge.model, its tokenizer), None where they are
    not known or not needed."""
    judge = config.judge
    if "iterate" not in stages or not config.adaptation.enabled:
        return None, None
    if judge.compares == "endpoint":
        _check_endpoint(judge.endpoint, findings)
    if judge.compares == "file":
        _check_file(judge, config.rewarder.objectives, findings)
    return _check_model(judge, config.rewarder.max_tokens, findings) if judge.compares == "model" else (None, None)


def _check_model(judge: JudgeConfig, max_tokens: int, findings: Findings) -> tuple[int | None, Any]:
    assert judge.model is not None, "what compares is given"
    directory, tokenizer = check_model("judge.model", judge.model, judge.revision, False, findings)
    if directory is not None and Path(judge.model).is_dir():
        check_reward_model("judge.model", directory, [], findings, classifiers=True)
    if tokenizer is not None and not check_template(tokenizer, max_tokens, findings, "judge.model"):
        tokenizer = None
    return num_parameters(directory), tokenizer


def _check_endpoint(endpoint: EndpointConfig, findings: Findings) -> None:
    from driver.judges.endpoint import EndpointJudge, read_key  # a second to import

    try:
        key = read_key(endpoint.key_env)
        once = replace(endpoint, timeout_s=min(TIMEOUT_S, endpoint.timeout_s), retries=0)
        models = EndpointJudge(once, key).models()
    except JudgeError as error:
        findings.problem(str(error))
        return
    if endpoint.model not in models:
        shown = ", ".join(models[:10]) or "none"
        findings.problem(
            f"judge.endpoint.model is {endpoint.model!r} and {endpoint.url} has {shown}; name one of these"
        )
    address = urlsplit(endpoint.url or "")
    if key and address.scheme == "http" and address.hostname not in LOCAL:
        findings.note(f"judge.endpoint.url is http: the key in {endpoint.key_env} goes over the network unencrypted")


def _check_file(judge: JudgeConfig, objectives: Sequence[str], findings: Findings) -> None:
    assert judge.file is not None, "what compares is given"
    try:
        read_answers(Path(judge.file))
        read_ratings(Path(judge.file), objectives)
    except LabelError as error:
        findings.problem(f"judge.file: {error}")
