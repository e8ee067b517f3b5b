"""What section judge may be set to: one judge of the rounds, an endpoint that can be asked, no secret in a configuration.

Called by common/config/checks.py; each problem becomes one line that says what to do.
"""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from common.config.config import Config, EndpointConfig, JudgeConfig

_ENVIRONMENT_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
PLACES = ("{prompt}", "{first}", "{second}")
RUBRIC_PLACES = ("{prompt}", "{response}", "{objectives}")


def wrong_judge(config: Config) -> list[str]:
    """One line for each problem of section judge."""
    judge = config.judge
    found = [*_wrong_kinds(judge), *_wrong_endpoint(judge.endpoint)]
    adaptation = config.adaptation
    if judge.file and adaptation.when == "drift" and adaptation.drift.signal in ("accuracy", "gap"):
        found.append(
            f"adaptation.drift.signal {adaptation.drift.signal} asks the judge at every look, and people (judge.file) answer "
            "later; use drift.signal: variance or disagreement, or adaptation.when: steps"
        )
    return found


def is_environment_name(name: str) -> bool:
    """Whether this can be the name of an environment variable and does not look like a secret itself."""
    return _ENVIRONMENT_NAME.fullmatch(name) is not None and not name.startswith(("hf_", "sk_"))


def _wrong_kinds(judge: JudgeConfig) -> list[str]:
    named = {"judge.model": judge.model, "judge.endpoint.url": judge.endpoint.url, "judge.file": judge.file}
    given, found = [key for key, value in named.items() if value], []
    if len(given) > 1:
        found.append(f"{' and '.join(given)} are set; the rounds have one judge: keep one of them")
    if judge.revision and not judge.model:
        found.append("judge.revision is set without judge.model; set both or neither")
    if judge.file and not judge.file.endswith(".jsonl"):
        found.append(f"judge.file is {judge.file!r}; it must be a .jsonl file, one answer a line (docs/adaptation.md)")
    return found


def _wrong_endpoint(endpoint: EndpointConfig) -> list[str]:
    found = []
    if bool(endpoint.url) != bool(endpoint.model):
        found.append("judge.endpoint needs both url and model (the name that the server gives it), or neither")
    if endpoint.url is not None and (problem := _wrong_url(endpoint.url)):
        found.append(f"judge.endpoint.url {problem}")
    if endpoint.key_env is not None and not is_environment_name(endpoint.key_env):
        found.append(  # the value is not shown, since it may be a key
            "judge.endpoint.key_env must be the name of an environment variable, such as JUDGE_API_KEY, and what it is set to "
            "is none; put the key into the environment, never into a configuration"
        )
    if missing := [place for place in PLACES if place not in endpoint.instruction]:
        found.append(f"judge.endpoint.instruction has no {', '.join(missing)}; it must have {', '.join(PLACES)}")
    if missing := [place for place in RUBRIC_PLACES if place not in endpoint.rubric]:
        found.append(f"judge.endpoint.rubric has no {', '.join(missing)}; it must have {', '.join(RUBRIC_PLACES)}")
    return found


def _wrong_url(url: str) -> str:
    try:
        parts = urlsplit(url)
    except ValueError as error:  # of brackets that hold no address
        return f"cannot be read ({error}); it must be like http://host:8000/v1"
    if parts.username or parts.password:  # not shown
        return "holds a user or a password; put a key into the environment and name it in judge.endpoint.key_env"
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        return f"is {url!r}; it must be like http://host:8000/v1"
    return ""
