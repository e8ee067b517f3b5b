"""The command `python -m examples.real_data --pairs FILE --out DIR`; see prepare."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from common.data.sources import DataError
from common.errors import RunError
from examples.real_data.prepare import MODEL, Sources, prepare

VARIABLE = "ITER_RLHF_DATA"
PAIRS, QUESTIONS = "hh_harmless.jsonl.gz", "mt_bench_questions.jsonl"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m examples.real_data", description="Write a run's data from real preference pairs."
    )
    parser.add_argument("--pairs", type=Path, help="your own pairs (formats: docs/data.md)")
    parser.add_argument("--data", type=Path, help=f"or a folder with {PAIRS} and {QUESTIONS} (default: ${VARIABLE})")
    parser.add_argument("--out", type=Path, required=True, help="directory to fill; files of other data are replaced")
    parser.add_argument(
        "--model", help=f"the policy's directory or Hub id (default: {MODEL}, fetched where it is not there)"
    )
    arguments = parser.parse_args()
    try:
        sources = find_sources(arguments.data, arguments.pairs, os.environ.get(VARIABLE))
        prepare(sources, arguments.out, arguments.model)
    except RunError as error:
        parser.exit(2, f"{error}\n")


def find_sources(folder: Path | None, pairs: Path | None, from_environment: str | None) -> Sources:
    """The files to read. Raises DataError that says which are missing."""
    if pairs is not None:
        if not pairs.is_file():
            raise DataError(f"--pairs: no such file {pairs}; wanted .jsonl, .jsonl.gz or .parquet (docs/data.md)")
        return Sources(pairs, None)
    folder = folder or (Path(from_environment) if from_environment else None)
    if folder is None:
        raise DataError(f"no data: give --data DIR, or set {VARIABLE}, or give your own pairs with --pairs FILE")
    if missing := [name for name in (PAIRS, QUESTIONS) if not (folder / name).is_file()]:
        raise DataError(
            f"{folder} has no {' and no '.join(missing)}; name the folder that has {PAIRS} and {QUESTIONS} by --data "
            f"or {VARIABLE}, or give your own pairs with --pairs FILE"
        )
    return Sources(folder / PAIRS, folder / QUESTIONS)


if __name__ == "__main__":
    main()
