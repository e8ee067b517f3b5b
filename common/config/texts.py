"""YAML that keeps what was written: where a key holds text, `1e3`, `007`, `yes`, `12:30` and `2026-01-01` are text.

YAML decides a scalar's type by its looks; here the type of the configuration's key decides, for keys that hold text. Called by
common/config/file.py, for files and for the values of the command line. Interpolations such as `${oc.env:X}` stay as they are.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import types
import typing
from typing import Any

import yaml
from omegaconf._yaml import get_yaml_loader  # OmegaConf's YAML: 1e3 is a number, no dates, aliases within limits

TEXT, NULL, MERGE = (f"tag:yaml.org,2002:{name}" for name in ("str", "null", "merge"))
NULLS = ("~", "null", "Null", "NULL")
MISSING = re.compile(r"\\*\?\?\?")  # OmegaConf's word for a value that is still to come, and its escapes


def read_yaml(text: str, hint: Any) -> Any:
    """The plain data of a YAML document whose content has the type `hint`. Raises yaml.YAMLError."""
    loader = get_yaml_loader()(text)
    try:
        node = loader.get_single_node()
        return None if node is None else loader.construct_document(_as_written(node, hint))
    finally:
        loader.dispose()


def read_value(text: str, hint: Any) -> Any:
    """The value that `key=text` gives a key of the type `hint`. Text is taken to its last letter, but for quotes around all of
    it; other values are YAML. Raises yaml.YAMLError."""
    inner, nullable = _without_null(hint)
    if inner is not str:
        return read_yaml(text, hint)
    if not text or (nullable and text in NULLS):
        return None
    return _escaped(_unquoted(text))


def hint_at(hint: Any, name: str) -> Any:
    """The type of the key or section with this dotted name inside a section; Any where there is none."""
    for part in filter(None, name.split(".")):
        hint = _member(_without_null(hint)[0], part)
    return hint


def _as_written(node: yaml.Node, hint: Any) -> yaml.Node:
    """Returns the node with every scalar as text that its type wants as text."""
    inner, nullable = _without_null(hint)
    if isinstance(node, yaml.ScalarNode):
        is_null = node.tag == NULL and (nullable or not node.value)
        return node if inner is not str or is_null else _text(node)
    if isinstance(node, yaml.SequenceNode) and typing.get_origin(inner) is list:
        items = [_as_written(item, typing.get_args(inner)[0]) for item in node.value]
        return yaml.SequenceNode(node.tag, items, node.start_mark, node.end_mark, node.flow_style)
    if isinstance(node, yaml.MappingNode):
        pairs = [_pair(key, value, inner) for key, value in node.value]
        return yaml.MappingNode(node.tag, pairs, node.start_mark, node.end_mark, node.flow_style)
    return node


def _pair(key: yaml.Node, value: yaml.Node, section: Any) -> tuple[yaml.Node, yaml.Node]:
    """A key, whose name is always text, and its value."""
    if not isinstance(key, yaml.ScalarNode):
        return key, value
    if key.tag == MERGE:  # of one mapping, or of several
        return key, _as_written(value, list[section] if isinstance(value, yaml.SequenceNode) else section)
    return _text(key), _as_written(value, _member(section, key.value))


def _text(node: yaml.ScalarNode) -> yaml.ScalarNode:
    return yaml.ScalarNode(TEXT, _escaped(node.value), node.start_mark, node.end_mark, node.style)


def _escaped(text: str) -> str:
    """Text that OmegaConf would take for a missing value, so that it reads it as text."""
    return f"\\{text}" if MISSING.fullmatch(text) else text


def _unquoted(text: str) -> str:
    """What stands between the quotes, where YAML's quotes enclose the whole text."""
    if len(text) < 2 or text[0] not in "'\"" or text[-1] != text[0]:
        return text
    try:
        node = yaml.compose(text, yaml.SafeLoader)
    except yaml.YAMLError:  # the quotes belong to the text, as in: 'a' or 'b'
        return text
    return node.value if isinstance(node, yaml.ScalarNode) and node.end_mark.index == len(text) else text


def _member(section: Any, name: str) -> Any:
    """The type of a section's key, or of a mapping's values."""
    if dataclasses.is_dataclass(section):
        return _hints(section).get(name, Any)
    return typing.get_args(section)[1] if typing.get_origin(section) is dict else Any


@functools.cache
def _hints(section: Any) -> dict[str, Any]:
    return typing.get_type_hints(section)


def _without_null(hint: Any) -> tuple[Any, bool]:
    """(the type without None, whether None is allowed)."""
    if typing.get_origin(hint) not in (types.UnionType, typing.Union):
        return hint, False
    (inner,) = (one for one in typing.get_args(hint) if one is not types.NoneType)
    return inner, True
