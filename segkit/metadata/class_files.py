"""Class names and colours in files that a user writes: classes.txt and palette.csv."""

import csv
from pathlib import Path

from segkit.errors import InputError
from segkit.metadata.label_space import IGNORE_INDEX

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
    """Colours of palette.csv: header id,name,r,g,b (name optional); a row for 255 is allowed and not used.

    Raises:
        InputError: A column, row or number is wrong, or a name is not the one in classes.txt.
    """
    reader = csv.DictReader(read_text(path).splitlines(), skipinitialspace=True)
    if not {"id", "r", "g", "b"} <= set(reader.fieldnames or ()):
        raise InputError(f"{path}: header is {reader.fieldnames}; needed are the columns id,name,r,g,b")
    colours: dict[int, Colour] = {}
    for row in reader:
        label, colour = _palette_row(row, f"{path}: line {reader.line_num}")
        if label != IGNORE_INDEX and row.get("name") and label < len(names) and row["name"].strip() != names[label]:
            raise InputError(f"{path}: line {reader.line_num} calls class {label} {row['name']!r}, classes.txt "
                             f"{names[label]!r}; make them agree")  # fmt: skip
        if label in colours:
            raise InputError(f"{path}: line {reader.line_num} gives class {label} a second colour; remove one")
        colours[label] = colour
    colours.pop(IGNORE_INDEX, None)
    if sorted(colours) != list(range(len(names))):
        raise InputError(
            f"{path}: {len(colours)} rows of colours for the {len(names)} classes of classes.txt; "
            f"give ids 0..{len(names) - 1} one row each, or remove the file"
        )
    return tuple(colours[label] for label in range(len(names)))


def _palette_row(row: dict[str, str], where: str) -> tuple[int, Colour]:
    try:
        label, red, green, blue = (int(row[key]) for key in ("id", "r", "g", "b"))
    except (TypeError, ValueError):
        raise InputError(f"{where} is not id,name,r,g,b with whole numbers; correct it") from None
    if not all(0 <= value <= 255 for value in (label, red, green, blue)):
        raise InputError(f"{where} has a number outside 0..255; correct it")
    return label, (red, green, blue)


def read_text(path: Path) -> str:
    """A UTF-8 file.

    Raises:
        InputError: It is absent or not UTF-8.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; write it (layout: datasets/README.md)") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not readable as UTF-8 text ({type(error).__name__}); save it as UTF-8") from error
    return text
