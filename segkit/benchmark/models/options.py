"""Facts about a model that its file lacks and the user gives: options of the command, and keys of a plan."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from segkit.errors import InputError
from segkit.metadata.class_match import RAW
from segkit.plain_data import read_yaml


@dataclass(frozen=True)
class ModelOptions:
    """The given facts about a model besides its file.

    Attributes:
        classes: Corrections of `segkit.metadata.class_match.match_classes`; None: as its names say.
        preprocessing: See `segkit.benchmark.models.preprocessing.Preprocessing`, of a file that does not say it.
    """

    classes: Mapping[str | int, str | None] | str | None = None
    preprocessing: Mapping[str, Any] | None = None

    @classmethod
    def read(cls, values: Mapping[str, Any], where: str) -> "ModelOptions":
        """Of the options of a command or the keys of a plan's row, each a mapping or the path of its YAML file.

        Raises:
            InputError: A value is neither, or a file cannot be read; `where` begins the message.
        """
        return cls(**{name: _table(values.get(name), f"{where}{': ' if where else ''}{name}") for name in OPTIONS})

    def to_dict(self) -> dict[str, Any]:
        """What was given, as plain data: with string keys, as JSON gives them back."""
        given = {name: getattr(self, name) for name in OPTIONS if getattr(self, name) is not None}
        return {name: [*map(list, v.items())] if isinstance(v, Mapping) else v for name, v in given.items()}


def _table(value: Any, where: str) -> Any:
    if value is None or (value == RAW and where.endswith("classes")):
        return value
    found = read_yaml(Path(value)) if isinstance(value, str) else value
    if not isinstance(found, Mapping):
        raise InputError(f"{where}: {value!r} holds no mapping; give a YAML file of 'key: value' lines")
    return dict(found)


OPTIONS = tuple(field.name for field in fields(ModelOptions))
