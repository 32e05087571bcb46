"""The mask of an image: its allowed formats, and the message if it is missing."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import PurePosixPath

from segkit.data.layout.files import Files, Source
from segkit.errors import InputError

MASK_SUFFIXES = (".png", ".tif", ".tiff", ".npy")  # in any case; .png is tried first
CONVERTED = "_labelTrainIds"  # what mmsegmentation's converters append to a mask's name

_SHOWN = 3  # names of files in a message


def find_masks(files: Files, folder: str, paths: Sequence[str]) -> list[Source | None]:
    """The masks at these paths, or files that differ only in their suffix; None if there is neither.

    Args:
        files: Files of the data set.
        folder: Folder of the masks.
        paths: Paths at which they are expected.

    Raises:
        InputError: There are two masks for one path, as `a.PNG` and `a.tif`.
    """
    masks = [files.file(path) for path in paths]
    if None not in masks or not files.has(folder):
        return masks
    others = defaultdict[str, list[Source]](list)
    for relative, file in files.below(folder, MASK_SUFFIXES):
        others[f"{folder}/{relative.with_suffix('')}"].append(file)
    return [mask or _only(others[path.rpartition(".")[0]]) for mask, path in zip(masks, paths, strict=True)]


def what_is_there(files: Files, folder: str, path: str) -> str:
    """Words for a missing mask at `path`: the files in the folder of the masks, and the allowed ones."""
    if not files.has(folder):
        return f"there is no folder {files.describe(folder)}"
    wanted = PurePosixPath(path).relative_to(folder).with_suffix("")
    names = [relative for relative, _ in files.below(folder)]
    alike = [str(name) for name in names if name.name.startswith(wanted.name)] or [str(name) for name in names]
    more = f", ... ({len(names)} files)" if len(alike) > _SHOWN else ""
    held = f"holds {', '.join(alike[:_SHOWN])}{more}" if alike else "is empty"
    return f"that folder {held}; allowed are {', '.join(f'{wanted}{suffix}' for suffix in MASK_SUFFIXES)}"


def _only(found: list[Source]) -> Source | None:
    if len(found) > 1:
        raise InputError(f"{found[0]} and {found[1]} are masks of one image; remove one of them")
    return found[0] if found else None
