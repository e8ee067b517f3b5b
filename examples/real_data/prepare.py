"""Writes a run's data from real preference pairs: the pairs that fit, the prompts of the loop, held-out prompts.

Called by `python -m examples.real_data`. The same pairs and model write the same bytes; manifest.json is written last and
records the model, the hashes of the sources, of this package and of every file, so that a finished directory is left alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from common.data.data import PreferencePair, PromptRow, read_pairs, to_fields, write_jsonl
from common.data.sources import DataError, short
from examples.manifest import MANIFEST, code_hash, file_hash, is_prepared, write_manifest
from examples.real_data import pairs as select
from examples.smollm.fetch import fetch_model

MODEL = Path("data") / "smollm-0" / "model"


@dataclass(frozen=True)
class Sources:
    """The files to read: preference pairs, and MT-bench questions where there are some."""

    pairs: Path
    questions: Path | None


def prepare(sources: Sources, out: Path, model: str | None) -> None:
    """Fills `out` and prints one line for each file, or one line alone where it already holds this very data. `model`: the
    directory or Hub id of the policy, whose tokenizer says what fits; SmolLM2-135M where none is named.

    Raises RunError for files that cannot be read or that hold no usable pairs, and for a model that cannot be had.
    """
    if model is None:
        make_sure_of_model(MODEL)
    recipe = _recipe(sources, model or str(MODEL))
    if is_prepared(out, recipe):
        print(f"{out} already holds this data; nothing to do")
        return
    tokenizer, pairs = tokenizer_of(model or str(MODEL)), read_pairs(sources.pairs)
    out.mkdir(parents=True, exist_ok=True)
    (out / MANIFEST).unlink(missing_ok=True)
    _write(pairs, tokenizer, sources, out)
    write_manifest(out, recipe)


def make_sure_of_model(directory: Path) -> None:
    """SmolLM2-135M-Instruct, where it is not there yet."""
    if not (directory / "model.safetensors").is_file():
        fetch_model(directory)
    print(f"{directory}: SmolLM2-135M-Instruct")


def tokenizer_of(model: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a directory or a Hub id. Raises DataError where it cannot be read or knows no conversations."""
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(model)
    except (OSError, ValueError) as error:
        raise DataError(
            f"--model {model}: no tokenizer can be read ({short(str(error))}); name a model's directory or Hub id, or leave "
            "--model out for SmolLM2-135M-Instruct"
        ) from error
    if not tokenizer.chat_template:
        raise DataError(f"--model {model}: its tokenizer has no chat template; name a model that knows conversations")
    return tokenizer


def _write(pairs: list[PreferencePair], tokenizer: PreTrainedTokenizerBase, sources: Sources, out: Path) -> None:
    usable = select.usable(tokenizer, pairs)
    held_out = sum(select.held_out(pair.messages) for pair in usable)
    print(
        f"{len(pairs)} pairs: {len(usable)} kept, {len(pairs) - len(usable)} dropped (prompt over "
        f"{select.MAX_PROMPT_TOKENS} or a response over {select.MAX_RESPONSE_TOKENS} tokens); {held_out} held out"
    )
    asked = select.questions(tokenizer, sources.questions) if sources.questions else []
    _write_rows(out / "preferences.jsonl", usable)
    _write_rows(out / "prompts.jsonl", select.prompts(tokenizer, pairs, of_held_out=False))
    _write_rows(out / "eval_prompts.jsonl", [*asked, *select.prompts(tokenizer, pairs, of_held_out=True)])


def _write_rows(path: Path, rows: Sequence[PromptRow | PreferencePair]) -> None:
    write_jsonl(path, map(to_fields, rows))
    print(f"wrote {path} ({len(rows)} lines)")


def _recipe(sources: Sources, model: str) -> dict[str, object]:
    """All that the written files depend on."""
    given = {path.name: file_hash(path) for path in (sources.pairs, sources.questions) if path is not None}
    return {
        "model": model,
        "sources": given,
        "generator": code_hash(Path(__file__).parent.glob("*.py")),
    }
