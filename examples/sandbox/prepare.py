"""Writes the sandbox to disk: the untrained policy, demonstrations, training prompts and held-out prompts.

Called by `python -m examples.sandbox`. The same seed writes the same bytes; manifest.json is written last and records
the seed, the hash of the generator's source and of every file, so that a finished directory is left alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from examples.sandbox.demonstrations import demonstrate
from examples.sandbox.version import world_hash
from examples.sandbox.world import Question, draw_distinct_questions, draw_kinds, draw_question

NUM_DEMONSTRATIONS = 6000
NUM_PROMPTS = 3000
NUM_EVAL_PROMPTS = 600
MANIFEST = "manifest.json"


def prepare(out: Path, seed: int) -> None:
    """Fills `out` and prints one line for each file, or one line alone where it already holds this very sandbox."""
    if is_prepared(out, seed):
        print(f"{out} already holds the sandbox of seed {seed}; nothing to do")
        return
    out.mkdir(parents=True, exist_ok=True)
    (out / MANIFEST).unlink(missing_ok=True)
    write_model(out / "model", seed)
    write_lines(out / "demonstrations.jsonl", demonstration_rows(stream(seed, 0)))
    write_lines(out / "prompts.jsonl", prompt_rows(draw_distinct_questions(stream(seed, 1), NUM_PROMPTS, False)))
    write_lines(
        out / "eval_prompts.jsonl", prompt_rows(draw_distinct_questions(stream(seed, 2), NUM_EVAL_PROMPTS, True))
    )
    write_manifest(out, seed)


def stream(seed: int, index: int) -> np.random.Generator:
    """One independent generator for each file, so that a change to one leaves the others alone."""
    return np.random.default_rng([seed, index])


def demonstration_rows(rng: np.random.Generator) -> Iterator[dict[str, object]]:
    for kind in draw_kinds(rng, NUM_DEMONSTRATIONS):
        question = draw_question(rng, kind, held_out=False)
        yield {"prompt": messages(question), "response": demonstrate(rng, question.cell), "meta": question.cell.meta}


def prompt_rows(questions: Iterable[Question]) -> Iterator[dict[str, object]]:
    for question in questions:
        yield {"prompt": messages(question), "meta": question.cell.meta}


def messages(question: Question) -> list[dict[str, str]]:
    return [{"role": "user", "content": question.text}]


def write_model(path: Path, seed: int) -> None:
    from examples.sandbox.model import build_policy, build_tokenizer  # torch only where it is needed: seconds to import

    build_policy(seed).save_pretrained(path)
    build_tokenizer().save_pretrained(path)
    for file in sorted(path.iterdir()):
        print(f"wrote {file} ({file.stat().st_size} bytes)")


def write_lines(path: Path, rows: Iterable[dict[str, object]]) -> None:
    lines = [json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n")
    print(f"wrote {path} ({len(lines)} lines)")


def write_manifest(out: Path, seed: int) -> None:
    files = [path for path in out.rglob("*") if path.is_file()]
    hashes = {path.relative_to(out).as_posix(): file_hash(path) for path in sorted(files)}
    manifest = {"seed": seed, "generator": world_hash(), "files": hashes}
    partial = out / f"{MANIFEST}.partial"
    partial.write_text(json.dumps(manifest, indent=2) + "\n")
    partial.rename(out / MANIFEST)
    print(f"wrote {out / MANIFEST} ({len(hashes)} files listed)")


def is_prepared(out: Path, seed: int) -> bool:
    """True where the manifest has this seed and this generator, and every file it lists is there unchanged."""
    if not (out / MANIFEST).is_file():
        return False
    manifest = json.loads((out / MANIFEST).read_text())
    if (manifest["seed"], manifest["generator"]) != (seed, world_hash()):
        return False
    return all((out / name).is_file() and file_hash(out / name) == want for name, want in manifest["files"].items())


def file_hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
