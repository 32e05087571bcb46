"""The findings of a check of a data set, as plain numbers and texts that can be read at any time."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
import numpy.typing as npt

from segkit.arrays import Int64Array
from segkit.data.layout.base import Layout, Split
from segkit.errors import InputError
from segkit.metadata.label_space import IGNORE_INDEX, UNDECLARED, LabelSpace

# kind            what it means and what to do; in the order of the report
PROBLEMS = {
    "data set":      "not the data set that was named, or its lists and tables are wrong",
    "count":         "not the official number of images: files were lost or added",
    "not found":     "names in a list of the split without an image; correct the list or add the images",
    "no mask":       "images without a mask; add the masks or remove the images",
    "no image":    "masks without an image; add the images or remove the masks",
    "unreadable":    "files that are damaged, or of a kind that is not read; copy or export them again",
    "mask format":   "masks that hold no class numbers 0..255 (JPEG, RGB, other numbers, PNGs of 16 bits, ...)",
    "undeclared":    "masks with values that the label table does not declare",
    "0/255 masks":   "splits whose masks hold 0 and 255 alone, and 255 is ignored; nothing is learned from one class",
    "size":          "images and masks of different sizes; export both at the same size",
}  # fmt: skip
WARNINGS = {
    "two splits":    "images that are in two splits; scores on images that were trained on say little",
    "exif":          "images with an EXIF orientation; masks must fit the stored image, else set --data.exif apply",
    "partly read":   "files with several pages or frames, or more than 8 bits",
    "clipped":       "values outside of the range of their band, which become its ends",
    "empty mask":    "masks without a valid pixel; nothing is learned or scored there",
    "one class":     "splits whose masks hold at most one class; nothing is learned from it, and scores say little",
}  # fmt: skip
NOTES = {
    "absent class":  "classes that no mask of the split has",
}  # fmt: skip
KINDS = PROBLEMS | WARNINGS | NOTES


@dataclass
class Findings:
    """Texts of all findings by kind (`KINDS`), one for each file."""

    found: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def add(self, kind: str, text: str) -> None:
        """Add one finding of this kind."""
        assert kind in KINDS
        self.found[kind].append(text)

    def count(self, kinds: Iterable[str]) -> int:
        """The number of findings of these kinds."""
        return sum(len(self.found[kind]) for kind in kinds if kind in self.found)


@dataclass
class SplitReport:
    """A split, as far as it has been checked.

    Attributes:
        split: Its name.
        official: Number of images that it should have; None if unknown.
        images: Number of images.
        masks: Number of images with a mask.
        is_labelled: Whether its masks are public.
        wanted: Number of images to open.
        opened: Number of images opened so far.
        pixels: Pixels of each raw value, int64 (256).
        having: Masks that have each raw value, int64 (256).
    """

    split: Split
    official: int | None = None
    images: int = 0
    masks: int = 0
    is_labelled: bool = True
    wanted: int = 0
    opened: int = 0
    pixels: Int64Array = field(default_factory=lambda: np.zeros(256, np.int64))
    having: Int64Array = field(default_factory=lambda: np.zeros(256, np.int64))

    def valid_share(self, table: Sequence[int]) -> float:
        """Share of the pixels of all masks that belong to a class."""
        return float(self.pixels[_is_class(table)].sum() / max(1, self.pixels.sum()))


@dataclass
class Report:
    """The findings of `check`; valid at any time, even after an interrupt.

    Attributes:
        layout: The data set.
        splits: The splits whose check has begun.
        findings: All findings so far.
    """

    layout: Layout
    splits: list[SplitReport] = field(default_factory=list)
    findings: Findings = field(default_factory=Findings)

    @property
    def label_space(self) -> LabelSpace | None:
        """The data set's label space; None if its files are wrong, which is noted as a problem."""
        try:
            return self.layout.label_space
        except InputError:
            return None

    def to_dict(self) -> dict[str, object]:
        """The whole report as plain lists and numbers."""
        space = self.label_space
        return {
            "data_set": self.layout.title,
            "root": str(self.layout.root),
            "problems": self.findings.count(PROBLEMS),
            "warnings": self.findings.count(WARNINGS),
            "splits": [_split_to_dict(split, space) for split in self.splits],
            "found": dict(self.findings.found),
        }


@dataclass(frozen=True)
class Row:
    """A raw value of the masks and the class that it becomes.

    Attributes:
        raw: 0..255.
        train_id: 0..K-1, 255 = ignored, or -1 = undeclared.
        name: Name of the class, "ignored" or "undeclared".
        pixels: Pixels in all masks of the split.
        masks: Number of masks that have it.
    """

    raw: int
    train_id: int
    name: str
    pixels: int
    masks: int


def rows_of(split: SplitReport, space: LabelSpace) -> list[Row]:
    """Rows in order of class, then ignored values, then undeclared ones; absent values without a class are left out."""
    shown = [raw for raw in range(256) if split.pixels[raw] or 0 <= space.table[raw] < space.num_classes]
    order = {UNDECLARED: IGNORE_INDEX + 1}
    shown.sort(key=lambda raw: (order.get(space.table[raw], space.table[raw]), raw))
    special = {IGNORE_INDEX: "ignored", UNDECLARED: "undeclared"}
    return [
        Row(raw, label, special.get(label) or space.class_names[label], int(split.pixels[raw]), int(split.having[raw]))
        for raw, label in ((raw, space.table[raw]) for raw in shown)
    ]


def absent_classes(split: SplitReport, space: LabelSpace) -> list[str]:
    """Classes without a pixel in any mask."""
    found = {row.train_id for row in rows_of(split, space) if row.pixels}
    return [name for label, name in enumerate(space.class_names) if label not in found]


def _is_class(table: Sequence[int]) -> npt.NDArray[np.bool_]:
    return np.array([label not in (IGNORE_INDEX, UNDECLARED) for label in table])


def _split_to_dict(split: SplitReport, space: LabelSpace | None) -> dict[str, object]:
    labels = [] if space is None or not split.masks else [asdict(row) for row in rows_of(split, space)]
    return {
        "split": split.split,
        "official": split.official,
        "images": split.images,
        "masks": split.masks if split.is_labelled else None,
        "opened": split.opened,
        "complete": split.opened == split.images,
        "pixels": int(split.pixels.sum()),
        "valid_share": None if space is None or not split.pixels.any() else split.valid_share(space.table),
        "labels": labels,
    }
