"""Where rows come from: .jsonl, .jsonl.gz and .parquet files, and data sets on the Hub, opened and numbered.

Called by common/data/data.py, which knows what a row means. Waits for the disk (and for the network where a Hub data set is
not cached). Every row comes with its place, file:line or file:row, for error messages.
"""

from __future__ import annotations

import gzip
import importlib
import importlib.util
import itertools
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, cast

from common.errors import RunError

Fields = Mapping[str, object]
_HUB_NAME = re.compile(r"^[A-Za-z0-9][\w.-]*/[\w.-]+(:[\w.\[\]%:+-]+)?$")


class DataError(RunError, ValueError):
    """What is wrong with a data file, one problem a line: file:line, what, got, wanted."""


def is_hub_name(source: str) -> bool:
    """True where `source` has the shape owner/name[:split] and none of the file endings."""
    return not source.endswith((".jsonl", ".jsonl.gz", ".parquet")) and bool(_HUB_NAME.match(source))


def raw_rows(source: str) -> Iterator[tuple[str, bytes | Fields]]:
    """The rows of a file or Hub data set with their places; a line of text is not parsed yet. Raises DataError."""
    path = Path(source)
    if path.is_file() and source.endswith(".parquet"):
        return _parquet_rows(path)
    if path.is_file() and source.endswith((".jsonl", ".jsonl.gz")):
        return _lines(path)
    if path.exists():
        raise DataError(f"{source}: not a file that can be read; wanted .jsonl, .jsonl.gz or .parquet")
    if is_hub_name(source):
        return _hub_rows(source)
    raise DataError(
        f"{source}: no such file; wanted a .jsonl, .jsonl.gz or .parquet file, or a Hub name owner/name[:split]"
    )


def _lines(path: Path) -> Iterator[tuple[str, bytes]]:
    """(file:line, bytes) of each line that is not blank."""
    try:
        with cast(IO[bytes], gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")) as file:
            yield from ((f"{path}:{number}", line) for number, line in enumerate(file, 1) if line.strip())
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error


def _parquet_rows(path: Path) -> Iterator[tuple[str, Fields]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        batches = pq.ParquetFile(path).iter_batches(batch_size=1024)
        rows = itertools.chain.from_iterable(batch.to_pylist() for batch in batches)
        yield from ((f"{path}:{number}", row) for number, row in enumerate(rows, 1))
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a readable parquet file: {error}") from error


def _hub_rows(source: str) -> Iterator[tuple[str, Fields]]:
    if importlib.util.find_spec("datasets") is None:
        raise DataError(
            f"{source}: no such file, and Hub data sets need the package datasets, which is not installed; "
            "run `pip install datasets`, or give a .jsonl, .jsonl.gz or .parquet file"
        )
    name, _, split = source.partition(":")
    try:
        rows: Iterable[Fields] = importlib.import_module("datasets").load_dataset(name, split=split or "train")
    except Exception as error:  # the Hub client has many exception trees; each becomes the user's one error
        raise DataError(f"{source}: cannot be loaded from the Hub: {type(error).__name__}: {error}") from error
    return ((f"{source}:{number}", row) for number, row in enumerate(rows, 1))


def fields_of(raw: bytes | Fields) -> Fields:
    """The fields of a row. Raises DataError for a line that is no JSON object."""
    if not isinstance(raw, bytes):
        return raw
    try:
        fields = json.loads(raw)
    except ValueError as error:
        raise DataError(f"not valid JSON: {error}; got {short(raw.decode('utf-8', 'replace').strip())}") from error
    except RecursionError as error:
        raise DataError("nested too deeply to be read; wanted one flat JSON object a line") from error
    if not isinstance(fields, dict):
        raise DataError(f"got {short(fields)}; wanted one JSON object a line")
    return fields


def short(value: object) -> str:
    """A value as text of at most 80 characters, for messages."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
