"""What people bring to a run, checked before any model is loaded: data files, judge functions, model directories.

Called by the preflight. Reads rows, config.json and tokenizers; never weights. Waits for the disk only: whatever must
come over the network is named in a note.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from common.chat.chat import chat_of
from common.config.config import Config, DataConfig
from common.config.stages import BY_NAME, TABLE
from common.data.data import PromptRow, read_demonstrations, read_prompts
from common.data.rows import Rows
from common.data.sources import DataError, is_hub_name
from common.data.split import prompt_key
from common.judge import load_function
from driver.preflight.chat import understood
from driver.preflight.findings import Findings, first_line
from driver.preflight.rows import LONG_PROMPT, Use, as_demonstration, as_prompt, as_scored_prompt, walk

ANY_LENGTH = 10**9  # tokens
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")


@dataclass(frozen=True)
class Tokenizers:
    """Those that will render rows, None where one is not on this machine or not needed."""

    policy: Any
    reward_model: Any
    judge: Any = None


def check_data(config: Config, stages: Sequence[str], tokenizers: Tokenizers, findings: Findings) -> None:
    """The files that the stages read are named, well-formed, taken by each template, and hold enough prompts that fit."""
    data = config.data
    _check_named(config, set(stages), findings)
    _check_made(config, set(stages), findings)
    prompts: Rows[PromptRow] = Rows("")
    if {"collect", "iterate"} & set(stages) and data.prompts:
        prompts = _check_prompts("data.prompts", data.prompts, _prompt_uses(config, stages, tokenizers), data, findings)
        if "iterate" in stages and prompts and len(prompts) < config.iteration.num:
            findings.problem(
                f"data.prompts has {len(prompts)} prompts for iteration.num {config.iteration.num} iterations; each "
                "needs at least one of its own: add prompts or lower iteration.num"
            )
    if {"iterate", "evaluate"} & set(stages) and data.eval_prompts:
        uses = [Use("the policy", tokenizers.policy, data.max_prompt_tokens, as_prompt)]
        judged = _check_prompts("data.eval_prompts", data.eval_prompts, uses, data, findings)
        if "iterate" in stages and config.adaptation.enabled:
            _check_disjoint(prompts, judged, findings)
    if "sft" in stages and data.demonstrations:
        rows = read_rows("data.demonstrations", data.demonstrations, read_demonstrations, findings)
        try_rows("data.demonstrations", rows, [Use("the policy", tokenizers.policy, 0, as_demonstration)], findings)


def _prompt_uses(config: Config, stages: Sequence[str], tokenizers: Tokenizers) -> list[Use]:
    """The policy answers prompts; in the loop the answers are scored, and in rounds they may be judged by a model."""
    uses = [Use("the policy", tokenizers.policy, config.data.max_prompt_tokens, as_prompt)]
    if "iterate" in stages:
        most = config.rewarder.max_tokens
        uses.append(Use("the reward model", tokenizers.reward_model, most, as_scored_prompt))
        uses.append(Use("judge.model", tokenizers.judge, ANY_LENGTH, as_scored_prompt))  # longer ones are ties
    return uses


def _check_prompts(key: str, source: str, uses: Sequence[Use], data: DataConfig, findings: Findings) -> Rows[PromptRow]:
    """The prompts that fit; the others are a problem, or skipped, as data.long_prompts says."""
    rows: Rows[PromptRow] = read_rows(key, source, read_prompts, findings)
    used = try_rows(key, rows, uses, findings, said_elsewhere=LONG_PROMPT if data.long_prompts == "refuse" else None)
    skipped = used.left_out[LONG_PROMPT]
    if skipped and data.long_prompts == "refuse":
        place, tokens = _first_too_long(rows, used, uses[0])
        findings.problem(
            f"{key}: {place}: the prompt has {tokens} tokens, chat template included, and data.max_prompt_tokens is "
            f"{data.max_prompt_tokens} ({skipped} of {len(rows)} prompts are longer); raise it, shorten them, or set "
            "data.long_prompts: skip"
        )
    elif skipped:
        findings.note(f"{key}: {skipped} of {len(rows)} prompts are above data.max_prompt_tokens and will be skipped")
    return used


def _first_too_long(rows: Rows[PromptRow], used: Rows[PromptRow], use: Use) -> tuple[str, int]:
    """The place of the first prompt that does not fit, and its tokens."""
    fitting = set(used.numbers)
    index = next(index for index, number in enumerate(rows.numbers) if number not in fitting)
    return rows.place(index), len(chat_of(use.tokenizer).prompt(rows[index].messages))


def _check_disjoint(prompts: Sequence[PromptRow], eval_prompts: Sequence[PromptRow], findings: Findings) -> None:
    """What the reward model is fitted and weighed on must not be what the policy is judged on in the end."""
    both = {prompt_key(row.messages) for row in prompts} & {prompt_key(row.messages) for row in eval_prompts}
    if both:
        findings.problem(
            f"{len(both)} prompts are in data.prompts and in data.eval_prompts, and adaptation.when fits the reward model on "
            "samples of the former; take them out of one of the two"
        )


def check_functions(config: Config, findings: Findings) -> None:
    """The functions of the judge section and the rewarder's programs can be imported."""
    judge = config.judge
    named = {"judge.function": judge.function, "judge.labeler": judge.labeler, "judge.ideal": judge.ideal}
    named |= {f"rewarder.programs.{objective}": spec for objective, spec in config.rewarder.programs.items()}
    for key, spec in named.items():
        if spec is None:
            continue
        try:
            load_function(spec)
        except ValueError as error:
            findings.problem(f"{key}: {error}")
        except Exception as error:  # the user's module may raise anything while it is imported
            findings.problem(f"{key}: {first_line(error)}")


def check_model(
    key: str, name: str, revision: str | None, trust_remote_code: bool, findings: Findings
) -> tuple[Path | None, Any]:
    """The model's directory and its tokenizer, each None where it is not on this machine or not usable."""
    directory = Path(name)
    if not directory.is_dir():
        return _check_hub_model(key, name, revision, trust_remote_code, findings)
    if not _has_weights(directory):
        findings.problem(
            f"{key}: {name} has no weights in *.safetensors; convert others with transformers' save_pretrained"
        )
    usable = _check_config_json(key, directory, findings)
    return (directory if usable else None), _tokenizer(key, directory, trust_remote_code, findings) if usable else None


def tokenizer_of(key: str, name: str, revision: str | None, findings: Findings) -> Any:
    """The tokenizer of a model that is checked elsewhere, None where it is not on this machine or not usable."""
    if Path(name).is_dir():
        return _tokenizer(key, Path(name), False, findings)
    if is_path(name):
        return None  # check_model has named it
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(name, "tokenizer_config.json", revision=revision)
    return _tokenizer(key, Path(cached).parent, False, findings) if isinstance(cached, str) else None


def _check_named(config: Config, stages: set[str], findings: Findings) -> None:
    """One problem for each stage whose input no key names and no other stage of the run makes."""
    data, judge, rewarder, made = config.data, config.judge, config.rewarder, config.stages
    labels = data.ratings or data.preferences or "collect" in made
    needs = [
        ("sft", data.demonstrations, "data.demonstrations"),
        ("collect", data.prompts, "data.prompts"),
        ("collect", judge.labeler, "judge.labeler"),
        ("preferences", data.preferences or "collect" in made, "data.preferences (or stage collect)"),
        ("reward_model", labels, "data.ratings or data.preferences (or stage collect)"),
        ("reward_model", rewarder.objectives, "rewarder.objectives"),
        ("iterate", data.prompts, "data.prompts"),
        ("iterate", rewarder.model or "reward_model" in made, "rewarder.model (or stage reward_model)"),
    ]
    for stage, given, key in needs:
        if stage in stages and not given:
            findings.problem(f"stage {stage} needs {key}, which is not set; set it, or leave {stage} out of the stages")
    if any(BY_NAME[stage].policy for stage in stages) and not config.policy.model:
        findings.problem("policy.model is not set; give a Hub id or a local directory")
    if "evaluate" in stages and not (judge.function and data.eval_prompts):
        findings.note("stage evaluate has no judge.function or no data.eval_prompts: gold rewards will not be measured")


def _check_made(config: Config, stages: set[str], findings: Findings) -> None:
    """Where only some stages run now, what the others make for them is there from before."""
    for maker in TABLE:
        users = {stage.name for stage in TABLE if maker.name in stage.builds_on}
        if maker.name == "collect" and config.adaptation.enabled:
            users.add("iterate")  # whose rounds hold a candidate against the original data
        is_waited_for = maker.name in config.stages and maker.name not in stages and users & stages
        if maker.makes is not None and is_waited_for and not (config.run_dir / maker.makes).exists():
            findings.problem(
                f"stage {', '.join(sorted(users & stages))} builds on stage {maker.name}, which is in `stages` but has made "
                f"no {config.run_dir / maker.makes} yet; run it first, or take it out of `stages` in the configuration"
            )


def read_rows(key: str, source: str, read: Callable[[str], Rows[Any]], findings: Findings) -> Rows[Any]:
    """All rows of a file; each problem becomes a finding, and a Hub name that is not read here a note."""
    is_elsewhere = not Path(source).exists() and is_hub_name(source) and not is_path(source)
    if is_elsewhere and find_spec("datasets") is not None:
        findings.note(f"{key}: {source} is no local file; it will be loaded from the Hub, which needs the network")
        return Rows(source)
    try:
        return read(source)
    except DataError as error:
        for problem in str(error).splitlines():
            findings.problem(f"{key}: {problem}")
        return Rows(source)


def try_rows(
    key: str, rows: Rows[Any], uses: Sequence[Use], findings: Findings, said_elsewhere: str | None = None
) -> Rows[Any]:
    """The rows that every use takes. Says what became of the rows of the file; a file of which nothing is left is a problem,
    unless rows were left out for a reason that is a problem by itself and `said_elsewhere`."""
    before = len(findings.problems)
    used = walk(key, rows, uses, findings)
    if rows and not used and len(findings.problems) == before and said_elsewhere not in used.left_out:
        findings.problem(f"{key}: {rows.source}: no row is left ({used.counts()}); raise the limit, or give other rows")
    if rows or rows.left_out:
        findings.rows.append(f"{key}: {used.counts()}")
    return used


def is_local(source: str) -> bool:
    """Whether the file is read here, so that what it lacks is known."""
    return Path(source).is_file()


def _check_hub_model(
    key: str, name: str, revision: str | None, trust_remote_code: bool, findings: Findings
) -> tuple[Path | None, Any]:
    from huggingface_hub import try_to_load_from_cache

    if is_path(name):
        findings.problem(
            f"{key}: no such directory {name}; wanted a Hugging Face model directory or a Hub id owner/name"
        )
        return None, None
    cached = try_to_load_from_cache(name, "config.json", revision=revision)
    if not isinstance(cached, str):
        if os.environ.get("HF_HUB_OFFLINE", "0").upper() in ("1", "TRUE", "YES", "ON"):
            findings.problem(f"{key}: {name} is no directory here and not in the Hub cache, and HF_HUB_OFFLINE is set")
        else:
            findings.note(
                f"{key}: {name} is no directory here; it will be downloaded from the Hub (needs the network), "
                "and its size is unknown until then"
            )
        return None, None
    directory = Path(cached).parent
    if not any((directory / file).is_file() for file in TOKENIZER_FILES):
        findings.note(f"{key}: the tokenizer of {name} will be downloaded from the Hub (needs the network)")
        return directory, None
    return directory, _tokenizer(key, directory, trust_remote_code, findings)


def is_path(name: str) -> bool:
    """Whether a name that is not there was meant as a path: not owner/name, or its first part is a directory here."""
    return name.startswith((".", "~", "/")) or name.count("/") != 1 or Path(name.partition("/")[0]).is_dir()


def _has_weights(directory: Path) -> bool:
    return any(True for _ in directory.glob("*.safetensors"))


def _check_config_json(key: str, directory: Path, findings: Findings) -> bool:
    path = directory / "config.json"
    if not path.is_file():
        findings.problem(f"{key}: {directory} has no config.json; is it a Hugging Face model directory?")
        return False
    try:
        found = json.loads(path.read_bytes())
    except ValueError as error:
        findings.problem(f"{key}: {path} is not valid JSON: {first_line(error)}")
        return False
    if not isinstance(found, dict):
        findings.problem(f"{key}: {path} holds no JSON object")
    return isinstance(found, dict)


def _tokenizer(key: str, directory: Path, trust_remote_code: bool, findings: Findings) -> Any:
    """The tokenizer, None (and a problem) without files or a chat template."""
    if not any((directory / file).is_file() for file in TOKENIZER_FILES):
        findings.problem(
            f"{key}: {directory} has no tokenizer ({', '.join(TOKENIZER_FILES)}); save it beside the model"
        )
        return None
    from transformers import AutoTokenizer  # seconds to import, and not needed by a run that failed above

    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=trust_remote_code)
    except Exception as error:  # tokenizers fail in many ways; each becomes the user's one line
        findings.problem(f"{key}: the tokenizer in {directory} cannot be read: {first_line(error)}")
        return None
    if not tokenizer.chat_template:
        findings.problem(
            f"{key}: the tokenizer in {directory} has no chat template; use a chat model, or put the template of its "
            "family in chat_template.jinja in that directory"
        )
        return None
    return tokenizer if understood(key, tokenizer, findings) else None
