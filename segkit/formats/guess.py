"""Finds out which annotation format a file or folder is in, by its name and its first bytes."""

import zipfile
from collections.abc import Callable
from pathlib import Path

from segkit.formats.names import FORMATS

_FIRST = 1 << 20  # bytes of a file that are looked at


def guess_format(path: Path) -> str | None:
    """The name of the format, of those that segkit reads; None if it is in none of them, or cannot be opened.

    Args:
        path: An export: a file, a zip, or the folder that it was unpacked to.
    """
    try:
        found = (name for name, is_it in _TESTS if is_it(path) and name in FORMATS and FORMATS[name].reads)
        return next(found, None)
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError):
        return None


def _begins(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_FIRST).lstrip(b"\xef\xbb\xbf \t\r\n")


def _is_json(path: Path, start: bytes, *keys: bytes) -> bool:
    if path.suffix.lower() != ".json" or not path.is_file():
        return False
    first = _begins(path)
    return first.startswith(start) and all(b'"' + key + b'"' in first for key in keys)


def _names(path: Path) -> set[str]:
    """What lies in a folder or zip, and in its folders."""
    if path.is_dir():
        return {found.name for pattern in ("*", "*/*") for found in path.glob(pattern)}
    if path.suffix.lower() != ".zip":
        return set()
    with zipfile.ZipFile(path) as archive:
        return {part for name in archive.namelist() for part in name.split("/")[:3]}


def _is_labelme(path: Path) -> bool:
    file = next(iter(sorted(path.glob("*.json"))), None) if path.is_dir() else path
    return file is not None and _is_json(file, b"{", b"shapes")


def _is_yolo(path: Path) -> bool:
    if path.suffix.lower() in (".yaml", ".yml") and path.is_file():
        return all(key in _begins(path) for key in (b"names:", b"train:"))
    return path.is_dir() and bool({"data.yaml", "dataset.yaml", "data.yml"} & _names(path))


# In this order: CVAT's export is laid out as VOC's with a file more, and LabelMe's is an object of JSON, too.
_TESTS: tuple[tuple[str, Callable[[Path], bool]], ...] = (
    ("cvat", lambda path: {"labelmap.txt", "SegmentationClass"} <= _names(path)),
    ("voc", lambda path: "SegmentationClass" in _names(path)),
    ("labelme", _is_labelme),
    (
        "coco",
        lambda path: _is_json(path, b"{") and any(_is_json(path, b"{", key) for key in (b"annotations", b"images")),
    ),
    ("labelstudio", lambda path: _is_json(path, b"[", b"data")),
    ("yolo", _is_yolo),
)
