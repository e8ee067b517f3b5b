"""Where rows come from: .jsonl, .jsonl.gz and .parquet files, and data sets on the Hub, opened and numbered.

Called by common/data/rows.py; what a row means is known elsewhere (common/data/data.py). Waits for the disk (and for the
network where a Hub data set is not cached). Every row comes with its number, a line's from 1 in JSONL (blank lines are no
rows), for error messages. A row that cannot be read comes as the DataError that says why, so that all of them are named.
"""

from __future__ import annotations

import gzip
import importlib
import importlib.util
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, cast

from common.errors import RunError

Fields = Mapping[str, object]
UTF_16 = (b"\xff\xfe", b"\xfe\xff", b"\x00\x00\xfe\xff")  # byte order marks, of UTF-32 too
MAX_DEPTH = 50  # of lists and objects in one another
_HUB_NAME = re.compile(r"^[A-Za-z0-9][\w.-]*/[\w.-]+(:[\w.\[\]%:+-]+)?$")
_SURROGATE = re.compile("[\ud800-\udfff]")


class DataError(RunError, ValueError):
    """What is wrong with a data file, one problem a line: file:line, what, got, wanted."""


Raw = bytes | Fields | DataError


def is_hub_name(source: str) -> bool:
    """True where `source` has the shape owner/name[:split] and none of the file endings."""
    return not source.endswith((".jsonl", ".jsonl.gz", ".parquet")) and bool(_HUB_NAME.match(source))


def raw_rows(source: str) -> Iterator[tuple[int, Raw]]:
    """(number, row) of everything in a source. Raises DataError where the source as a whole cannot be read."""
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


def fields_of(raw: Raw) -> Fields:
    """The columns of a row that have a value: a null is as good as no column. Raises DataError."""
    if isinstance(raw, DataError):
        raise raw
    fields = json_object(raw) if isinstance(raw, bytes) else raw
    return {name: value for name, value in fields.items() if value is not None}


def short(value: object) -> str:
    """A value as an error message shows it."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


# ---- JSONL ------------------------------------------------------------------------------------------------------------


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """(line number, bytes) of each line that is not blank."""
    try:
        with cast(IO[bytes], gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")) as file:
            for number, line in enumerate(file, 1):
                if number == 1 and line.startswith(UTF_16):
                    raise DataError(
                        f"{path}: the file is in UTF-16 or UTF-32; wanted UTF-8: convert it by `iconv -f UTF-16 -t UTF-8`"
                    )
                if line.strip():
                    yield number, line
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error


def json_object(line: bytes) -> Fields:
    """A line as it is, nulls too. Raises DataError."""
    try:
        fields = json.loads(line.decode("utf-8-sig"), object_pairs_hook=_unique)
    except UnicodeDecodeError as error:
        raise DataError(
            f"not UTF-8 text: {error.reason} at byte {error.start + 1}; convert the file, a Latin-1 one by "
            "`iconv -f LATIN1 -t UTF-8`"
        ) from error
    except DataError:
        raise
    except ValueError as error:
        raise DataError(f"not valid JSON: {error}; got {short(line.decode('utf-8', 'replace').strip())}") from error
    except RecursionError as error:
        raise DataError(_TOO_DEEP) from error
    if not isinstance(fields, dict):
        raise DataError(f"got {_shallow(fields)}; wanted one JSON object a line")
    if line.count(b"[") + line.count(b"{") > MAX_DEPTH and _depth(fields) > MAX_DEPTH:
        raise DataError(_TOO_DEEP)
    if b"\\ud" in line or b"\\uD" in line:
        _check_surrogates(fields)
    return fields


_TOO_DEEP = "nested too deeply to be read; wanted one flat JSON object a line"


def _unique(pairs: Sequence[tuple[str, object]]) -> dict[str, object]:
    """A JSON object, whose reader would silently keep the last of two equal keys."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"the key {short(twice)} is there twice in one object; keep one of them")
    return found


def _shallow(value: object) -> str:
    """A value that may be nested too deeply for repr."""
    return f"a list of {len(value)} values" if isinstance(value, list) else short(value)


def _depth(value: object) -> int:
    """How many lists and objects contain one another, without recursion."""
    depth, level = 0, [value]
    while level and depth <= MAX_DEPTH:
        level = [inner for outer in level if isinstance(outer, (list, dict)) for inner in _inside(outer)]
        depth += 1
    return depth


def _inside(outer: list[Any] | dict[str, Any]) -> Iterable[object]:
    return outer.values() if isinstance(outer, dict) else outer


def _check_surrogates(fields: Fields) -> None:
    """Text of the file may spell half a character (\\ud800), which no later step could write down."""
    for name, value in fields.items():
        if _SURROGATE.search(json.dumps([name, value], ensure_ascii=False)):
            raise DataError(f"{short(name)} has a lone surrogate, which is not valid Unicode text: {short(value)}")


# ---- parquet and the Hub ----------------------------------------------------------------------------------------------


def _parquet_rows(path: Path) -> Iterator[tuple[int, Fields | DataError]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
        names = file.schema_arrow.names
        if twice := [name for name in names if names.count(name) > 1]:
            raise DataError(f"{path}: the column {twice[0]!r} is there twice; keep one of them")
        number = 0
        for batch in file.iter_batches(batch_size=1024):
            for row in _batch_rows(batch):
                number += 1
                yield number, row
    except (pa.ArrowException, OSError, UnicodeDecodeError, OverflowError) as error:
        raise DataError(f"{path}: not a readable parquet file: {error}") from error


def _batch_rows(batch: Any) -> Iterator[Fields | DataError]:
    """Rows without their times and dates, which no format reads and Python cannot always hold. Where a batch has a text that is
    no UTF-8, its rows are tried one by one."""
    import pyarrow as pa

    batch = batch.select([field.name for field in batch.schema if not pa.types.is_temporal(field.type)])
    try:
        yield from batch.to_pylist()
        return
    except (ValueError, OverflowError):
        pass
    for at in range(batch.num_rows):
        try:
            (row,) = batch.slice(at, 1).to_pylist()
        except (ValueError, OverflowError) as error:
            row = DataError(f"a column cannot be read: {error}")
        yield row


def _hub_rows(source: str) -> Iterator[tuple[int, Fields]]:
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
    return enumerate(rows, 1)
