"""What a chat template does to a run, said before any model is loaded: where it opens and closes turns, and where sampling
ends.

Called by the preflight. Renders made-up texts and reads generation_config.json and config.json; waits for the disk only.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from common.chat.chat import Chat, chat_of
from common.chat.template import RenderError
from driver.preflight.findings import Findings, first_line

CONFIGS = ("generation_config.json", "config.json")


def understood(key: str, tokenizer: Any, findings: Findings) -> bool:
    """Whether the tokenizer's template can be aligned; if not, a problem says why."""
    try:
        chat_of(tokenizer)
    except RenderError as error:
        findings.problem(f"{key}: {error}")
        return False
    return True


def note_turns(key: str, directory: Path | None, tokenizer: Any, findings: Findings) -> None:
    """Notes on a policy's template: the turn is opened otherwise than by add_generation_prompt, or sampling stops on a
    token that is not in the model's EOS set, or on none that the template has."""
    if tokenizer is None:
        return
    chat = chat_of(tokenizer)
    if said := _opening(chat):
        findings.note(f"{key}: {said}")
    end = chat.turn_end()
    if end is None:
        findings.note(
            f"{key}: the chat template closes an assistant's turn with no token of its own; responses end with the model's EOS "
            "tokens alone, and stage sft does not teach where to stop. If rollout/truncated_frac is near 1, use a "
            "template that closes turns"
        )
    elif directory is not None and end not in (known := _end_tokens(key, directory, tokenizer, findings)):
        findings.note(
            f"{key}: the chat template closes an assistant's turn with {tokenizer.convert_ids_to_tokens(end)!r} (token "
            f"{end}), which is not among the model's EOS tokens {sorted(known)}; sampling stops on it, SFT teaches it, "
            "and the exported policy has it in generation_config.json"
        )


def _opening(chat: Chat) -> str | None:
    turns = chat.turns
    if not turns.opens_if_asked:
        return (
            f"the chat template never opens the assistant's turn; prompts are opened with {turns.generation!r}, as it "
            "does before a response. Whoever uses the exported policy needs a template that heeds add_generation_prompt"
        )
    if turns.conversation_extra:
        return (
            f"the chat template opens a turn behind every conversation; {turns.conversation_extra!r} is taken off where a "
            "response is learned or scored"
        )
    return None


def _end_tokens(key: str, directory: Path, tokenizer: Any, findings: Findings) -> set[int]:
    """Those that vLLM ends a response on by itself: the tokenizer's, and those of generation_config.json or config.json."""
    found = {tokenizer.eos_token_id}
    for path in (directory / name for name in CONFIGS if (directory / name).is_file()):
        try:
            value = json.loads(path.read_bytes())["eos_token_id"]
        except KeyError:
            continue
        except (ValueError, TypeError) as error:
            findings.problem(
                f"{key}: {path} is no JSON object: {first_line(error)}; download or export the model again"
            )
            continue
        found |= set(value) if isinstance(value, list) else {value}
    return {token for token in found if token is not None}
