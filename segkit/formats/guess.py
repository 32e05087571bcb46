"""Finds out which annotation format a file or folder is in, by its name and its first bytes."""

import zipfile
from pathlib import Path

from segkit.errors import InputError
from segkit.formats.files import json_files
from segkit.io import File, read_bytes

_FIRST = 1 << 20  # bytes of a file that are looked at
_BLANK = b"\xef\xbb\xbf \t\r\n"
_MARKS = ("SegmentationClass", "labelmap.txt", "data.yaml")  # names by which a folder or zip is told


def guess_format(path: Path) -> str | None:
    """The name of the format, of those that segkit reads; None if it is in none of them, or cannot be opened.

    Args:
        path: An export: a file, a zip, or the folder that it was unpacked to.
    """
    try:
        if path.is_dir() or path.suffix.lower() == ".zip":
            return _of_folder(path, _names(path))
        return _of_file(path.suffix.lower(), path)
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError):
        return None


def refuse_export(path: Path) -> None:
    """Refuse an export where a data set is needed, with the command that makes one of it.

    Raises:
        InputError: It is an export, and no folder with a classes.txt.
    """
    name = None if (path / "classes.txt").exists() else guess_format(path)
    if name is not None:
        raise InputError(
            f"{path}: an export ({name}), not a data set: `segkit data convert {path} -o FOLDER` makes one of it, "
            "which `segkit data check folder FOLDER` and training read"
        )


def _of_folder(path: Path, names: set[str]) -> str | None:
    if "SegmentationClass" in names:
        return "cvat" if "labelmap.txt" in names else "voc"
    if path.is_dir() and "data.yaml" in names:
        return _of_file(".yaml", path / "data.yaml")
    files = json_files(path)
    if path.is_dir() and files and b'"shapes"' in _start(files[0]):
        return "labelme"
    name = _of_file(".json", files[0]) if len(files) == 1 else None
    return None if name == "panoptic" else name  # which has a folder beside it


def _of_file(suffix: str, path: File) -> str | None:
    start = _start(path) if suffix in (".json", ".yaml") else b""
    if suffix == ".yaml":
        return "yolo" if b"names:" in start and b"train:" in start else None
    if start.startswith(b"{") and b'"shapes"' not in start and (b'"annotations"' in start or b'"images"' in start):
        return "panoptic" if b'"segments_info"' in start else "coco"
    return "labelstudio" if start.startswith(b"[") and b'"data"' in start else None


def _start(path: File) -> bytes:
    if not isinstance(path, Path):
        return read_bytes(path, "export")[:_FIRST].lstrip(_BLANK)
    with path.open("rb") as file:
        return file.read(_FIRST).lstrip(_BLANK)


def _names(path: Path) -> set[str]:
    """Which of `_MARKS` lie in a folder or in the folders there; of a zip, all that lies so far up."""
    if path.is_dir():  # it may be a data set of many files, so that these are asked for and not all of them listed
        return {name for name in _MARKS if any(path.glob(name)) or any(path.glob(f"*/{name}"))}
    with zipfile.ZipFile(path) as archive:
        return {part for name in archive.namelist() for part in name.split("/")[:3]}
