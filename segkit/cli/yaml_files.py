"""YAML files that a command line names: read as plain data, what is wrong said in one line."""

from pathlib import Path
from typing import Any

import yaml

from segkit.errors import InputError


def read_yaml(path: Path) -> Any:
    """The content of a YAML file, as plain data.

    Raises:
        InputError: The file is absent or not YAML; names line and column.
    """
    return parse_yaml(read_text(path), path)


def read_text(path: Path) -> str:
    """The text of a config.

    Raises:
        InputError: It is absent or not UTF-8.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; paths are relative to the working directory")
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise InputError(f"{path}: cannot read this config ({reason}); correct the file") from error


def parse_yaml(text: str, path: Path) -> Any:
    """The content of a YAML text; `path` is what the message calls it.

    Raises:
        InputError: It is not YAML; names line and column.
    """
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise InputError(f"{path}{where}: not valid YAML: {getattr(error, 'problem', error)}") from error
