"""Writes the model and the data of a run: prompts with constraints, held-out prompts, and people's pairs where there are some.

Called by `python -m examples.smollm`. The same seed and pairs write the same bytes, but for the model, which is always the
same; manifest.json is written last, so that a finished directory is left alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.data.data import PreferencePair, to_fields, write_jsonl
from examples.manifest import MANIFEST, code_hash, file_hash, is_prepared, write_manifest
from examples.smollm.people import FILE, QUESTIONS
from examples.smollm.prompts import prompt_rows

NUM_PROMPTS = 2400
NUM_EVAL_PROMPTS = 96
SHARE_OF_HH = 0.2  # of the prompts of the loop, where there are pairs


@dataclass(frozen=True)
class Sizes:
    """How many of people's pairs each part uses at most; a pass over a pair takes as long as one over two samples."""

    train: int = 200
    second: int = 160
    evaluate: int = 32
    questions: int = 16


def prepare(out: Path, seed: int, folder: Path | None, model: str | None, sizes: Sizes) -> None:
    """Fills `out` and prints a line for each file, or one line alone where it already holds this very data. `model`: a
    directory to use in place of the package's. Raises RunError."""
    recipe = _recipe(seed, folder, model, sizes)
    if is_prepared(out, recipe):
        print(f"{out} already holds this data of seed {seed}; nothing to do")
        return
    out.mkdir(parents=True, exist_ok=True)
    (out / MANIFEST).unlink(missing_ok=True)
    source = Path(model) if model else _fetched(out)
    _write_rows(out, seed, folder, source, sizes)
    write_manifest(out, recipe)


def stream(seed: int, index: int) -> np.random.Generator:
    """One independent generator for each file, so that a change to one leaves the others alone."""
    return np.random.default_rng([seed, index])


def _fetched(out: Path) -> Path:
    from examples.smollm.fetch import fetch_model  # torch only where it is needed: seconds to import

    if not (out / "model" / "model.safetensors").is_file():
        fetch_model(out / "model")
    print(f"{out / 'model'}: SmolLM2-135M-Instruct")
    return out / "model"


def _write_rows(out: Path, seed: int, folder: Path | None, model: Path, sizes: Sizes) -> None:
    from transformers import AutoTokenizer

    from examples.smollm import people

    own = list(prompt_rows(stream(seed, 0), NUM_PROMPTS, held_out=False))
    held_out = list(prompt_rows(stream(0, 1), NUM_EVAL_PROMPTS, held_out=True))  # the same for every seed
    found = people.find_pairs(folder)
    if found is not None:
        pairs = people.usable(found[0], AutoTokenizer.from_pretrained(model))
        print(f"{len(found[0])} preference pairs of {found[1]}: {len(pairs)} are short enough")
        train, second, evaluate = (
            [pair for pair in pairs if people.part_of(pair.messages) == part][:most]
            for part, most in (("train", sizes.train), ("second", sizes.second), ("evaluate", sizes.evaluate))
        )
        _write_pairs(out / "preferences.jsonl", train)
        _write_pairs(out / "second.jsonl", second)
        own = _mixed(own, list(people.asked(train, stream(seed, 2), held_out=False)), stream(seed, 3))
        held_out += people.asked(evaluate, stream(0, 4), held_out=True)
    if folder is not None and (folder / QUESTIONS).is_file():
        held_out += list(people.questions(folder / QUESTIONS, stream(0, 5)))[: sizes.questions]
    _write(out / "prompts.jsonl", own)
    _write(out / "eval_prompts.jsonl", held_out)


def _mixed(
    own: Sequence[dict[str, object]], people: Sequence[dict[str, object]], rng: np.random.Generator
) -> list[dict[str, object]]:
    """The project's own prompts and people's, of which there are SHARE_OF_HH at most, in a random order."""
    most = int(len(own) * SHARE_OF_HH / (1 - SHARE_OF_HH))
    rows = [*own, *people[:most]]
    return [rows[index] for index in rng.permutation(len(rows))]


def _write(path: Path, rows: Iterable[dict[str, object]]) -> None:
    kept = list(rows)
    write_jsonl(path, kept)
    print(f"wrote {path} ({len(kept)} lines)")


def _write_pairs(path: Path, pairs: Sequence[PreferencePair]) -> None:
    _write(path, map(to_fields, pairs))


def _recipe(seed: int, folder: Path | None, model: str | None, sizes: Sizes) -> dict[str, object]:
    """All that the written files depend on."""
    given = {name: file_hash(folder / name) for name in (FILE, QUESTIONS) if folder and (folder / name).is_file()}
    return {
        "seed": seed,
        "model": model,
        "sizes": vars(sizes),
        "sources": given,
        "generator": code_hash(Path(__file__).parent.glob("*.py")),
    }
