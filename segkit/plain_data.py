"""Reads YAML of any origin as plain data; errors take one line.

A few bytes of YAML can stand for billions of values (anchors of anchors) or for endlessly nested lists, which would
overflow the readers' recursion. Both are refused before anything is built.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from segkit.errors import InputError
from segkit.paths import looked_for

DEEPEST = 100  # levels of nested lists and mappings
MOST_VALUES = 100_000  # with anchors expanded

_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_yaml(path: Path) -> Any:
    """The content of a YAML file, as plain data.

    Raises:
        InputError: The file is missing or not YAML; names line and column.
    """
    return parse_yaml(read_text(path), path)


def read_text(path: Path) -> str:
    """The text of a config.

    Raises:
        InputError: The file is missing or not UTF-8.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file{looked_for(path)}; give another path")
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise InputError(f"{path}: cannot read this config ({reason}); correct the file") from error


def parse_yaml(text: str, path: Path | str) -> Any:
    """The content of a YAML text; `path` is its name in messages.

    Raises:
        InputError: It is not YAML (names line and column), nested too deeply, or too large.
    """
    try:
        check_size(text, path)
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:  # a date of month 13 is a ValueError
        if isinstance(error, InputError):
            raise
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise InputError(f"{path}{where}: not valid YAML: {getattr(error, 'problem', None) or error}") from error


def check_size(text: str, path: Path | str) -> None:
    """Refuse a YAML text that stands for more than any config has.

    Raises:
        InputError: It is nested too deeply, has too many values, or has an anchor inside itself.
        yaml.YAMLError: It is not YAML.
    """
    anchors: dict[str, int] = {}  # values that each stands for
    opened: list[tuple[str | None, int]] = [(None, 0)]  # anchor and values so far of the lists that we are in
    for event in yaml.parse(text, Loader=_Loader):
        values, anchor = 0, getattr(event, "anchor", None)
        if isinstance(event, yaml.CollectionStartEvent):
            opened.append((anchor, 1))
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, values = opened.pop()
        elif isinstance(event, yaml.ScalarEvent):
            values = 1
        elif isinstance(event, yaml.AliasEvent):
            if any(anchor == around for around, _ in opened):
                raise InputError(f"{path}: the anchor {anchor} contains itself; write the values out")
            values, anchor = anchors.get(str(anchor), 1), None
        if anchor is not None:
            anchors[anchor] = values
        around, so_far = opened[-1]
        opened[-1] = (around, so_far + values)
        if len(opened) > DEEPEST:
            raise InputError(f"{path}: more than {DEEPEST} nested lists; no config of segkit is as deep")
        if so_far + values > MOST_VALUES:
            raise InputError(f"{path}: stands for more than {MOST_VALUES:,} values; no config of segkit has that many")


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Turn `{"a": {"b": 1}}` into `{"a.b": 1}`."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat
