"""The files in which a user describes a data set's classes: classes.txt, palette.csv and table.csv."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from segkit.errors import InputError
from segkit.metadata.label_space import IGNORE_INDEX, UNDECLARED
from segkit.paths import looked_for, read_file

Colour = tuple[int, int, int]


def read_classes(path: Path) -> tuple[str, ...]:
    """Class names, one a line; line i (from 0) is class i.

    Raises:
        InputError: The file is absent or not UTF-8, a line is empty, or a name occurs twice.
    """
    names = [line.strip() for line in read_text(path).rstrip().split("\n")]
    for number, name in enumerate(names, start=1):
        if not name:
            raise InputError(f"{path}: line {number} is empty; write one class name a line, line 1 for label value 0")
        if name in names[: number - 1]:
            raise InputError(f"{path}: line {number} repeats the class name {name!r}; names must differ")
    return tuple(names)


def read_palette(path: Path, names: tuple[str, ...]) -> tuple[Colour, ...]:
    """Colours of palette.csv: header id,name,r,g,b (name optional); rows for 255 are allowed and not used.

    Raises:
        InputError: A column, row or number is wrong, or a name is not the one in classes.txt.
    """
    colours: dict[int, Colour] = {}
    for line, label, colour in _palette_rows(path, names):
        if label in colours and label != IGNORE_INDEX:
            raise InputError(f"{path}: line {line} gives class {label} a second colour; remove one")
        colours[label] = colour
    colours.pop(IGNORE_INDEX, None)
    if sorted(colours) != list(range(len(names))):
        raise InputError(
            f"{path}: {len(colours)} rows of colours for the {len(names)} classes of classes.txt; "
            f"give ids 0..{len(names) - 1} one row each, or remove the file"
        )
    return tuple(colours[label] for label in range(len(names)))


def read_colour_table(path: Path, names: tuple[str, ...]) -> dict[Colour, int]:
    """Train id, or 255 = ignore, of each colour of palette.csv; the ignored id 255 may have any number of rows.

    Raises:
        InputError: As `read_palette`, or two ids share a colour.
    """
    read_palette(path, names)
    ids: dict[Colour, int] = {}
    for line, label, colour in _palette_rows(path, names):
        if ids.setdefault(colour, label) != label:
            raise InputError(
                f"{path}: line {line} gives {label} the colour {colour} of {ids[colour]}; masks of colours need one "
                "colour for one class"
            )
    return ids


def read_table(path: Path, num_classes: int) -> tuple[int, ...]:
    """The 256 entries of table.csv: header raw,id; each raw mask value with its class, or 255 = ignore.

    Raises:
        InputError: A column or number is wrong, or a raw value stands there twice.
    """
    reader = csv.DictReader(read_text(path).splitlines(), skipinitialspace=True)
    if not {"raw", "id"} <= set(reader.fieldnames or ()):
        raise InputError(f"{path}: header is {reader.fieldnames}; expected are the columns raw,id")
    table = [UNDECLARED] * 256
    for row in reader:
        where = f"{path}: line {reader.line_num}"
        try:
            raw, label = int(row["raw"]), int(row["id"])
        except (TypeError, ValueError):
            raise InputError(f"{where} is not raw,id with whole numbers; correct it") from None
        if not 0 <= raw <= 255 or not (0 <= label < num_classes or label == IGNORE_INDEX):
            allowed = f"raw 0..255, id 0..{num_classes - 1} (a line of classes.txt) or 255 (ignored)"
            raise InputError(f"{where} maps {raw} to {label}; allowed are {allowed}")
        if table[raw] != UNDECLARED:
            raise InputError(f"{where} maps {raw} a second time; remove one")
        table[raw] = label
    return tuple(table)


def _palette_rows(path: Path, names: tuple[str, ...]) -> Iterator[tuple[int, int, Colour]]:
    """Line number, id and colour."""
    reader = csv.DictReader(read_text(path).splitlines(), skipinitialspace=True)
    if not {"id", "r", "g", "b"} <= set(reader.fieldnames or ()):
        raise InputError(f"{path}: header is {reader.fieldnames}; expected are the columns id,name,r,g,b")
    for row in reader:
        label, colour = _palette_row(row, f"{path}: line {reader.line_num}")
        if label != IGNORE_INDEX and row.get("name") and label < len(names) and row["name"].strip() != names[label]:
            raise InputError(
                f"{path}: line {reader.line_num} calls class {label} {row['name']!r}, classes.txt {names[label]!r}; "
                "make them agree"
            )
        yield reader.line_num, label, colour


def _palette_row(row: dict[str, str], where: str) -> tuple[int, Colour]:
    try:
        label, red, green, blue = (int(row[key]) for key in ("id", "r", "g", "b"))
    except (TypeError, ValueError):
        raise InputError(f"{where} is not id,name,r,g,b with whole numbers; correct it") from None
    if not all(0 <= value <= 255 for value in (label, red, green, blue)):
        raise InputError(f"{where} has a number outside 0..255; correct it")
    return label, (red, green, blue)


class Readable(Protocol):
    """A file: a path or a member of an archive, whose `str` is its name."""

    def read_bytes(self) -> bytes:
        """The file's content."""
        ...


def read_text(path: Readable) -> str:
    """A UTF-8 file, its lines ended by newlines.

    Raises:
        InputError: It is absent or not UTF-8.
    """
    try:
        data = read_file(path) if isinstance(path, Path) else path.read_bytes()
        text = data.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except FileNotFoundError:
        raise InputError(_absent(path)) from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not readable as UTF-8 text ({type(error).__name__}); save it as UTF-8") from error
    return text


def _absent(path: Readable) -> str:
    if isinstance(path, Path) and not path.parent.exists():
        return f"{path.parent}: no such data folder{looked_for(path.parent)}; correct --data.root"
    where = looked_for(path) if isinstance(path, Path) else ""
    return f"{path}: no such file{where}; correct the folder, or add what datasets/README.md says of this file"
