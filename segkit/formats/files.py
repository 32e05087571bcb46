"""What readers and writers of formats share about files: JSON of any origin, and where a result is written."""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from segkit.archives import files_of
from segkit.arrays import Float64Array
from segkit.errors import InputError, one_line
from segkit.files import parse_json, replacing
from segkit.formats.base import check_names
from segkit.io import File, read_bytes
from segkit.io.header import MAX_SIDE


def json_files(export: Path) -> list[File]:
    """The JSON files of an export: itself, all of a zip, or those of a folder and of its folder `annotations`.

    Raises:
        InputError: It is a damaged zip.
    """
    if export.is_dir():
        return [*sorted(export.glob("*.json")), *sorted(export.glob("annotations/*.json"))]
    return [*files_of(export, (".json",)).values()] if export.suffix.lower() == ".zip" else [export]


def read_listing(export: Path, what: str, kind: type[dict[str, Any]] | type[list[Any]] = dict) -> Any:
    """The content of an export that is one JSON file, as `read_json`; tools zip it, with or without the images.

    Raises:
        InputError: See `read_json`; or there are several files, or none.
    """
    found = json_files(export)
    if len(found) != 1:
        raise InputError(
            f"{export}: {len(found)} JSON files where one is needed; unpack it, and give one after another"
        )
    return read_json(found[0], what, kind)


def read_json(path: File, what: str, kind: type[dict[str, Any]] | type[list[Any]] = dict) -> Any:
    """The JSON object, or list, in a file.

    Raises:
        InputError: It cannot be read, is no JSON, or of another kind; the message calls it `what`.
    """
    data = read_bytes(path, what)
    try:
        content = parse_json(data)
    except ValueError as error:
        raise InputError(f"{path}: damaged {what}, no JSON ({one_line(error)}); export it again") from error
    if not isinstance(content, kind):
        expected = "object" if kind is dict else "list"
        raise InputError(f"{path}: is no {what}: a JSON {expected} is expected; export it again")
    return content


@contextmanager
def parsing(source: str, what: str) -> Iterator[None]:
    """Turn what Python raises for plain data of another form than expected into one line.

    Raises:
        InputError: A key is missing, or a value has another type; `source` is no (whole) `what`.
    """
    try:
        yield
    except InputError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        why = f"{error} is missing" if isinstance(error, KeyError) else one_line(error)
        raise InputError(f"{source}: damaged, or no {what} ({why}); export it again") from error


def ring_of(numbers: object, source: str) -> Float64Array:
    """A ring (n, 2) from a list x, y, x, y, ... or a list of pairs, as JSON has them.

    Raises:
        InputError: It is no such list, or has a number that is no coordinate of an image.
    """
    try:
        flat = np.asarray(numbers, np.float64).reshape(-1)
        if flat.size == 0 or flat.size % 2:
            raise ValueError(f"{flat.size} numbers")
        if not (np.abs(flat) <= 16 * MAX_SIDE).all():  # of a NaN it is false
            raise ValueError("a number beyond any image")
    except (ValueError, TypeError, OverflowError) as error:
        raise InputError(
            f"{source}: a polygon is no list of pairs x, y in pixels ({one_line(error)}); export it again"
        ) from error
    ring = flat.reshape(-1, 2)
    return ring[:-1] if len(ring) > 1 and (ring[0] == ring[-1]).all() else ring


def below(folder: Path, name: str, ending: str) -> Path:
    """The file of an image in a folder that is written: its name with another ending.

    Raises:
        InputError: The name leads out of the folder.
    """
    check_names([name], str(folder))
    return folder / PurePosixPath(name).with_suffix(ending)


def json_list(items: Iterable[object]) -> Iterator[str]:
    """The parts of a JSON list, made one by one, so that no more than one item is in memory; each begins a line."""
    yield "["
    for number, item in enumerate(items):
        yield (",\n" if number else "\n") + json.dumps(item, ensure_ascii=False)
    yield "\n]"


def write_listing(path: Path, key: str, items: Iterable[object], rest: Mapping[str, object]) -> None:
    """Write the JSON object `{key: items, **rest}` atomically, item by item; `rest` may grow until the last one.

    Raises:
        InputError: The file cannot be written.
    """
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write(f'{{"{key}": ')
        file.writelines(json_list(items))
        more = [f"{json.dumps(name)}: {json.dumps(value, ensure_ascii=False)}" for name, value in rest.items()]
        file.write(",\n".join(["", *more]) + "}\n")
