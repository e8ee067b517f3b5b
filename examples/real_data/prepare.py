"""Writes a run's data from real preference pairs: tokenizer and untrained policy, demonstrations, pairs, prompts.

Called by `python -m examples.real_data`. The same pairs and seed write the same bytes; manifest.json is written last and
records the seed, the hashes of the sources, of this package and of every file, so that a finished directory is left alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from common.data.data import Demonstration, PreferencePair, PromptRow, read_pairs, to_fields, write_jsonl
from common.json_text import json_text

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Sources:
    """The files to read: preference pairs, and MT-bench questions where there are some."""

    pairs: Path
    questions: Path | None


def prepare(sources: Sources, out: Path, seed: int) -> None:
    """Fills `out` and prints one line for each file, or one line alone where it already holds this very data. Raises
    DataError for files that cannot be read or that hold no usable pairs."""
    recipe = _recipe(sources, seed)
    if is_prepared(out, recipe):
        print(f"{out} already holds this data of seed {seed}; nothing to do")
        return
    pairs = read_pairs(sources.pairs)
    out.mkdir(parents=True, exist_ok=True)
    (out / MANIFEST).unlink(missing_ok=True)
    _write(pairs, sources, out, seed)
    _write_manifest(out, recipe)


def _write(pairs: list[PreferencePair], sources: Sources, out: Path, seed: int) -> None:
    from examples.real_data import model  # torch only where it is needed: seconds to import
    from examples.real_data import pairs as select

    tokenizer = model.build_tokenizer(select.texts(pair for pair in pairs if not select.held_out(pair.messages)))
    usable = select.usable(tokenizer, pairs)
    held_out = sum(select.held_out(pair.messages) for pair in usable)
    print(
        f"{len(pairs)} pairs: {len(usable)} kept, {len(pairs) - len(usable)} dropped (prompt over "
        f"{select.MAX_PROMPT_TOKENS} or a response over {select.MAX_RESPONSE_TOKENS} tokens); {held_out} held out"
    )
    policy = model.build_policy(tokenizer, seed)
    policy.save_pretrained(out / "model")
    tokenizer.save_pretrained(out / "model")
    print(f"wrote {out / 'model'} ({policy.num_parameters() / 1e6:.2f} M parameters, {len(tokenizer)} tokens)")
    asked = select.questions(tokenizer, sources.questions) if sources.questions else []
    _write_rows(out / "preferences.jsonl", usable)
    _write_rows(out / "demonstrations.jsonl", select.demonstrations(tokenizer, pairs))
    _write_rows(out / "prompts.jsonl", select.prompts(tokenizer, pairs, of_held_out=False))
    _write_rows(out / "eval_prompts.jsonl", [*asked, *select.prompts(tokenizer, pairs, of_held_out=True)])


def _write_rows(path: Path, rows: Sequence[PromptRow | Demonstration | PreferencePair]) -> None:
    write_jsonl(path, map(to_fields, rows))
    print(f"wrote {path} ({len(rows)} lines)")


def is_prepared(out: Path, recipe: dict[str, object]) -> bool:
    """True where the manifest has this recipe, and every file that it lists is there unchanged."""
    if not (out / MANIFEST).is_file():
        return False
    manifest = json.loads((out / MANIFEST).read_text())
    files = manifest.pop("files")
    return manifest == recipe and all((out / name).is_file() and _hash(out / name) == files[name] for name in files)


def _recipe(sources: Sources, seed: int) -> dict[str, object]:
    """All that the written files depend on."""
    code = sorted(Path(__file__).parent.glob("*.py"))
    given = {path.name: _hash(path) for path in (sources.pairs, sources.questions) if path is not None}
    return {"seed": seed, "sources": given, "generator": hashlib.sha256("".join(map(_hash, code)).encode()).hexdigest()}


def _write_manifest(out: Path, recipe: dict[str, object]) -> None:
    files = {path.relative_to(out).as_posix(): _hash(path) for path in sorted(out.rglob("*")) if path.is_file()}
    partial = out / f"{MANIFEST}.partial"
    partial.write_text(json_text({**recipe, "files": files}, indent=2) + "\n")
    partial.rename(out / MANIFEST)
    print(f"wrote {out / MANIFEST} ({len(files)} files listed)")


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
