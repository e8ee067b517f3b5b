"""JSON that every reader takes: the one writer of what the project puts into files.

JSON has no NaN and no infinity; Python writes them all the same, and jq, browsers and other languages then refuse the whole
file. Called by everyone who writes JSON; tests/unit/common/test_json_text.py finds who does not. Holds no torch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping


def json_text(value: object, indent: int | None = None, sort_keys: bool = False, ensure_ascii: bool = True) -> str:
    """The value as JSON; numbers that are not finite are null, as a number that was not measured is. Raises TypeError for what
    JSON has no form for."""
    return json.dumps(_finite(value), indent=indent, sort_keys=sort_keys, ensure_ascii=ensure_ascii, allow_nan=False)


def _finite(value: object) -> object:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value
