"""Lists of image names that come with data sets: one image a line."""

import re
from collections.abc import Sequence
from pathlib import PurePosixPath

from segkit.data.layout.files import Source
from segkit.errors import InputError
from segkit.metadata.class_files import read_text
from segkit.paths import IMAGE_SUFFIXES, leads_outside, shown

_SUFFIX = f"(?:{'|'.join(map(re.escape, IMAGE_SUFFIXES))})"
_TWO_PATHS = re.compile(rf"(?P<image>.+{_SUFFIX})\s*[\s,;]\s*(?P<mask>.+{_SUFFIX})", re.IGNORECASE)
_TWO_WORDS = re.compile(r"(?P<image>[^\s,;]+)\s*[\s,;]\s*(?P<mask>[^\s,;]+)")

NEEDED = "a line is an image's path below its folder, without suffix (town/a), or such paths of image and mask"


def read_names(list_file: Source, folders: Sequence[str] = (), mask_ending: str = "") -> tuple[str, ...]:
    """The names in a list, in its order.

    A line is a name, which may have the suffix of an image or begin with the folder of the images. A second column must
    name the mask of the same image; the layout knows where it is.

    Args:
        list_file: The list, one image a line; empty lines are skipped.
        folders: Folders with which a path may begin, the longest first ("JPEGImages"); they are no part of the name.
        mask_ending: The text after the image's name in the name of its mask.

    Raises:
        InputError: The file is not UTF-8, names nothing, or names an image twice; or a line leads out of the folder, or
            its second column belongs to another image.
    """
    names: dict[str, int] = {}
    for number, line in enumerate(read_text(list_file).split("\n"), start=1):
        if line.strip():
            name = _name(line.strip(), f"{list_file}: line {number}", folders, mask_ending)
            if name in names:
                lines = f"lines {names[name]} and {number}"
                raise InputError(f"{list_file}: names {name} twice, in {lines}; every image counts once: remove one")
            names[name] = number
    if not names:
        raise InputError(f"{list_file}: names no image; {NEEDED}")
    return tuple(names)


def _name(line: str, where: str, folders: Sequence[str], mask_ending: str) -> str:
    image, mask = _columns(line, mask_ending)
    name = _without(image, folders)
    if leads_outside(name) or not name.strip("./"):
        raise InputError(f"{where} is {shown(line)!r}, which leads out of the folder of the images; {NEEDED}")
    if mask and not _agree(image, mask, mask_ending):
        raise InputError(
            f"{where} is {shown(line)!r}: the mask is not named like its image; an ending that all masks have is given "
            f"by --data.masks 'labels/{{name}}_mask.png'; {NEEDED}"
        )
    return name


def _columns(line: str, mask_ending: str) -> tuple[str, str]:
    """Image and mask of a line (empty if it has no mask); names may contain spaces."""
    two = _TWO_PATHS.fullmatch(line)
    if two is None:
        two = _TWO_WORDS.fullmatch(line)
        two = two if two and _agree(two["image"], two["mask"], mask_ending) else None
    return (two["image"], two["mask"]) if two else (line, "")


def _agree(image: str, mask: str, mask_ending: str) -> bool:
    stem = PurePosixPath(_stem(image)).name
    return PurePosixPath(_stem(mask)).name in (stem, stem + mask_ending)


def _without(path: str, folders: Sequence[str]) -> str:
    """The path without the images' folder, before which there may be a slash, and without suffix."""
    stem = _stem(path).removeprefix("./")
    inside = stem.removeprefix("/")  # DeepLab's lists have "/JPEGImages/..."
    return next((inside.removeprefix(f"{f}/") for f in folders if inside.startswith(f"{f}/")), stem)


def _stem(path: str) -> str:
    return path[: path.rindex(".")] if path.lower().endswith(IMAGE_SUFFIXES) else path
