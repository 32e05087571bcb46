"""The meaning of the numbers in a label map: class names, colours, and one table from raw values to train ids."""

import colorsys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from segkit.arrays import UInt8Array
from segkit.errors import InputError, printable

IGNORE_INDEX = 255
UNDECLARED = -1

# The option for a user's own folder, the same in each command; only the data module knows whether it names a path.
MASKS_OPTION = "--data.masks binary (with a path: --data.masks 'binary PATH')"
_LISTED = 5  # classes that a note names


@dataclass(frozen=True)
class LabelSpace:
    """The classes of a data set and how its raw label values become train ids.

    Attributes:
        class_names: K names; the position is the train id. Control characters become escapes, for names are printed.
        palette: K RGB colours, 0..255.
        table: 256 entries, raw value -> train id 0..K-1, or 255 (ignore), or -1 (undeclared: an error when seen).

    Raises:
        InputError: Sizes disagree, K is not 1..255, or an entry is out of range.
    """

    class_names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    table: tuple[int, ...]

    def __post_init__(self) -> None:
        """Refuse sizes that disagree now rather than at the first batch."""
        object.__setattr__(self, "class_names", tuple(map(printable, self.class_names)))
        count = len(self.class_names)
        if not 1 <= count <= 255:
            raise InputError(f"label space has {count} classes; allowed are 1 to 255 (255 marks ignored pixels)")
        if len(self.palette) != count:
            raise InputError(f"label space has {count} class names but {len(self.palette)} colours; give one each")
        if any(len(colour) != 3 or not all(0 <= value <= 255 for value in colour) for colour in self.palette):
            raise InputError("label space has a colour that is not three numbers 0..255; correct the palette")
        if len(self.table) != 256:
            raise InputError(f"label table has {len(self.table)} entries; it needs 256, one for each raw value")
        wrong = [entry for entry in self.table if entry not in (UNDECLARED, IGNORE_INDEX) and not 0 <= entry < count]
        if wrong:
            allowed = f"0..{count - 1}, 255 (ignore) and -1 (undeclared)"
            raise InputError(f"label table holds {wrong[0]}; allowed are {allowed}")

    @property
    def num_classes(self) -> int:
        """K, ignored pixels not counted."""
        return len(self.class_names)

    def map_labels(self, raw: UInt8Array, source: str) -> UInt8Array:
        """Map raw values uint8 (H, W) to train ids uint8 (H, W), 255 = ignore.

        Args:
            raw: The label map as stored.
            source: Its name in errors: the file.

        Raises:
            InputError: A raw value is not declared in the table; the message has value, count, first pixel and cause.
        """
        if self.table == identity_table(self.num_classes) and ((raw < self.num_classes) | (raw == IGNORE_INDEX)).all():
            return raw.copy()  # train ids already; a table would take seven times as long
        data = raw.tobytes()
        undeclared = bytes(entry == UNDECLARED for entry in self.table)
        if 1 in data.translate(undeclared):  # bytes.translate and `in` run at memory speed, indexing does not
            raise InputError(self._describe_undeclared(raw, source))
        mapped = bytearray(data).translate(bytes(max(entry, 0) for entry in self.table))
        return np.frombuffer(mapped, np.uint8).reshape(raw.shape)

    def unmap_labels(self, ids: UInt8Array) -> UInt8Array:
        """Map train ids uint8 (H, W) back to raw values: the lowest raw value of each class.

        255 becomes the lowest ignored raw value, or stays 255 where the table ignores nothing.

        Raises:
            ValueError: An id is neither 0..K-1 nor 255.
        """
        if ((ids >= self.num_classes) & (ids != IGNORE_INDEX)).any():
            raise ValueError(f"train ids must be 0..{self.num_classes - 1} or 255, found {int(ids.max())}")
        inverse = np.full(256, 255, np.uint8)
        for raw_value in reversed(range(256)):
            if self.table[raw_value] != UNDECLARED:
                inverse[self.table[raw_value]] = raw_value
        return inverse[ids]

    def looks_binary(self, ids: Iterable[int]) -> bool:
        """Whether masks with these train ids altogether (including 255) are probably 0/255 masks of two classes.

        They then hold only the raw values 0 and 255, and 255 is ignored here.
        """
        wanted = set(ids)
        raw = {value for value, entry in enumerate(self.table) if entry in wanted}
        return self.num_classes > 1 and IGNORE_INDEX in wanted and raw <= {0, IGNORE_INDEX}

    def note_of_absence(self, ids: Iterable[int]) -> str | None:
        """A remark on masks with these train ids altogether (including 255) if they show at most one of the classes.

        Nothing is learned from such masks, and a score says nothing about the classes that they lack.
        """
        found = sorted(set(ids))
        present = [label for label in found if 0 <= label < self.num_classes]
        if len(present) > 1 or len(present) == self.num_classes:
            return None
        absent = [name for label, name in enumerate(self.class_names) if label not in present]
        never = ", ".join(absent[:_LISTED]) + (f" and {len(absent) - _LISTED} more" if len(absent) > _LISTED else "")
        if self.looks_binary(found):
            values = "values 0 and 255 occur, and 255 is" if present else "value 255 occurs, which is"
            return (
                f"only the {values} ignored; never: {never}; masks of 0/255 are read as two classes by {MASKS_OPTION}"
            )
        if not present:
            return f"no pixel is of a class, all are ignored; never: {never}"
        return f"only one class occurs, {self.class_names[present[0]]}; never: {never}"

    def to_dict(self) -> dict[str, list[str] | list[list[int]] | list[int]]:
        """The label space as plain lists, for a checkpoint or a JSON file."""
        return {
            "class_names": list(self.class_names),
            "palette": [list(colour) for colour in self.palette],
            "table": list(self.table),
        }

    @classmethod
    def from_rows(
        cls, rows: Sequence[tuple[int, str, tuple[int, int, int]]], ignored: Sequence[int] = ()
    ) -> "LabelSpace":
        """Build a label space from a table with a row for each class, in the order of the train ids.

        Args:
            rows: (raw value, name, RGB colour).
            ignored: Raw values of no class. All others are undeclared: an error when one is seen.
        """
        table = {raw: train_id for train_id, (raw, _, _) in enumerate(rows)} | dict.fromkeys(ignored, IGNORE_INDEX)
        return cls(
            class_names=tuple(name for _, name, _ in rows),
            palette=tuple(colour for _, _, colour in rows),
            table=tuple(table.get(raw, UNDECLARED) for raw in range(256)),
        )

    @classmethod
    def from_dict(cls, plain: Mapping[str, object]) -> "LabelSpace":
        """Build a label space from the result of `to_dict`.

        Raises:
            InputError: A key is absent or unknown, or a value has the wrong form.
        """
        keys = ["class_names", "palette", "table"]
        if sorted(plain) != keys:
            raise InputError(f"label space has the keys {sorted(plain)}; expected are {keys}")
        names, palette, table = (plain[key] for key in keys)
        try:
            return cls(
                tuple(str(name) for name in _list(names)),
                tuple(_rgb(_list(colour)) for colour in _list(palette)),
                tuple(int(str(entry)) for entry in _list(table)),
            )
        except InputError:
            raise
        except (TypeError, ValueError) as error:
            raise InputError(f"label space is not made of plain lists of names and numbers ({error})") from error

    def _describe_undeclared(self, raw: UInt8Array, source: str) -> str:
        counts = np.bincount(raw.ravel(), minlength=256)
        unknown = [value for value in range(256) if counts[value] and self.table[value] == UNDECLARED]
        value = unknown[0]
        row, col = divmod(int((raw == value).argmax()), raw.shape[1])
        more = f" (and {len(unknown) - 1} other undeclared values)" if len(unknown) > 1 else ""
        return (
            f"{source}: raw label value {value} is not declared: {counts[value]} pixels, first at row {row}, "
            f"column {col}{more}; {self._likely_cause(counts > 0, unknown)}; allowed raw values: {self._allowed()}"
        )

    def _likely_cause(self, occurs: npt.NDArray[np.bool_], unknown: Sequence[int]) -> str:
        """The probable mistake, and what to do; `occurs` says which of the 256 raw values the map has."""
        values, count = set(np.flatnonzero(occurs).tolist()), self.num_classes
        is_identity = all(self.table[value] == value for value in range(count))
        if values <= {0, 1} and self.table[0] == 0 and self.table[255] == 1:
            return "a 0/1 mask where 0/255 is declared: set masks to ids"
        if values == {0, 255}:
            return f"a 0/255 mask: write class numbers 0 and 1, or in a folder of your own set {MASKS_OPTION}"
        if unknown == [IGNORE_INDEX] and max(values - {IGNORE_INDEX}, default=0) < count:
            if is_identity:
                return "255 mostly marks pixels to ignore: declare it so in the table"
            return "these look like train ids: give the files with raw ids (of Cityscapes *_labelIds.png)"
        if unknown == [count] and is_identity:
            return (
                "one class more than declared: perhaps 0 is a background to be ignored, the last class lacks a name, "
                f"or {count} is void: write 255, which is ignored in a truth and counts as no class in a prediction "
                f"(in a folder of your own, table.csv may map {count} to 255)"
            )
        if len(unknown) > 20:
            return "so many values suggest a grey image, or labels resized with interpolation: use nearest"
        return (
            "likely a wrong class count, or raw ids where train ids are expected: correct the label map or the classes"
        )

    def _allowed(self) -> str:
        declared = [value for value in range(256) if self.table[value] != UNDECLARED]
        starts = [value for value in declared if value - 1 not in declared]
        ends = [value for value in declared if value + 1 not in declared]
        return ", ".join(str(a) if a == b else f"{a}..{b}" for a, b in zip(starts, ends, strict=True))


def identity_table(num_classes: int) -> tuple[int, ...]:
    """Raw values that already are train ids: 0..K-1 kept, 255 ignored, anything else undeclared."""
    return tuple(raw if raw < num_classes or raw == IGNORE_INDEX else UNDECLARED for raw in range(256))


def binary_table(num_classes: int, source: str) -> tuple[int, ...]:
    """Raw values 0 and 255 are the two classes, anything else is undeclared.

    Raises:
        InputError: There are not two classes in `source`, their file.
    """
    if num_classes != 2:
        raise InputError(f"{source}: {num_classes} classes; binary masks have two, 0 and 255")
    return tuple({0: 0, 255: 1}.get(raw, UNDECLARED) for raw in range(256))


def distinct_palette(num_colours: int) -> tuple[tuple[int, int, int], ...]:
    """Visually distinct RGB colours, the same for every run; the first n do not depend on how many follow.

    Hues advance by the golden ratio, which keeps any prefix evenly spread; brightness and saturation alternate.
    """
    bands = ((0.75, 0.95), (0.95, 0.65), (0.45, 0.95), (0.60, 0.45))
    colours = []
    for index in range(num_colours):
        saturation, value = bands[index % len(bands)]
        red, green, blue = colorsys.hsv_to_rgb((0.6 + index * 0.6180339887498949) % 1.0, saturation, value)
        colours.append((round(red * 255), round(green * 255), round(blue * 255)))
    return tuple(colours)


def _list(value: object) -> Sequence[object]:
    if not isinstance(value, (list, tuple)):
        raise TypeError(f"expected a list, got {type(value).__name__}")
    return value


def _rgb(colour: Sequence[object]) -> tuple[int, int, int]:
    red, green, blue = (int(str(value)) for value in colour[:3])
    return red, green, blue


def numbered_space(num_classes: int) -> LabelSpace:
    """A label space for unknown data: "class 0", "class 1", ..., distinct colours, raw values = train ids."""
    names = tuple(f"class {i}" for i in range(num_classes))
    return LabelSpace(names, distinct_palette(num_classes), identity_table(num_classes))


def check_same_classes(names: Sequence[str], wanted: Sequence[str], model: str, data: str) -> None:
    """Refuse a model whose classes are not the data's: another number of them, or the same in another order.

    Names that differ otherwise may be another spelling ("sidewalk", "pavement"), or none were known: they pass.

    Args:
        names: The model's class names by train id.
        wanted: The data's class names.
        model: The model's name in errors: its file.
        data: The data's name.

    Raises:
        InputError: They differ; the message names both, and the likely cause.
    """
    if len(names) != len(wanted):
        cause = "it was trained on another data set, or with other classes"
        if len(names) == len(wanted) + 1:
            cause = "it has one class more, perhaps a background that this data set ignores"
        shown = ", ".join(names[:3])
        raise InputError(
            f"{model}: trained on {len(names)} classes ({shown}, ...), {data} has {len(wanted)}: {cause}; "
            "give the data set that it was made for"
        )
    if list(names) != list(wanted) and sorted(names) == sorted(wanted):
        first = next(i for i, (own, other) in enumerate(zip(names, wanted, strict=True)) if own != other)
        raise InputError(
            f"{model}: has the classes of {data} in another order (class {first} is {names[first]!r}, in the data "
            f"{wanted[first]!r}), so that every score would be wrong; give the data the order of the training"
        )
