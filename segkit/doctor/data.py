"""Checks where data sets are, and the environment variables that segkit reads."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from segkit.doctor.finding import Finding
from segkit.errors import InputError, did_you_mean

if TYPE_CHECKING:  # they need NumPy and OpenCV, which may be what is broken
    from segkit.data.datamodule import SegmentationDataModule
    from segkit.data.layout.base import Layout, Split

ROOT = Path("datasets")

VARIABLES = {"SEGKIT_CACHE", "SEGKIT_FUSED_OPS", "SEGKIT_MAX_PIXELS"}


def data_below(roots: Sequence[Path]) -> Iterator[Finding]:
    """Find the data sets below the data roots, and their splits.

    Args:
        roots: Folders to search, each of which may be a data set itself; none = `datasets` in the working folder.
    """
    for root in roots or [ROOT]:
        if not root.exists():
            cure = "see datasets/README.md; data elsewhere: segkit doctor FOLDER"
            yield Finding("data", "wrong" if roots else "note", f"{root}: no such folder", cure)
            continue
        found = list(_below(root))
        yield from found
        if not found:
            cure = "see datasets/README.md for the folders; for your own data: segkit data check folder ROOT"
            yield Finding("data", "note", f"{root}: none of {', '.join(_known())} here", cure)


def variables() -> Iterator[Finding]:
    """The environment's SEGKIT_ variables: names and values."""
    given = {name: value for name, value in os.environ.items() if name.startswith("SEGKIT_")}
    if not given:
        yield Finding("variables", "ok", "no SEGKIT_ variable is set")
    for name, value in sorted(given.items()):
        yield _variable(name, value)


def _variable(name: str, value: str) -> Finding:
    found = f"{name}={value}"
    if name not in VARIABLES:
        cure = f"{did_you_mean(name, VARIABLES)}allowed: {', '.join(sorted(VARIABLES))}"
        return Finding("variables", "wrong", f"{found}: nothing reads it", cure)
    if name == "SEGKIT_FUSED_OPS" and value not in ("0", "1"):
        return Finding("variables", "wrong", f"{found}: neither 0 nor 1", "unset it, or set 0 for plain operations")
    if name == "SEGKIT_FUSED_OPS" and value == "0":
        return Finding("variables", "note", f"{found}: plain operations, slow and large", "unset it for the fused ones")
    if name == "SEGKIT_MAX_PIXELS":
        from segkit.io.header import max_pixels

        try:
            max_pixels()
        except InputError as error:
            return Finding("variables", "wrong", str(error), "unset it, or set a number")
    return Finding("variables", "ok", found)


def _below(root: Path) -> Iterator[Finding]:
    sets = _known()
    folders = [data.folder for data in sets.values()]
    for name, data in sets.items():
        place = root if root.name == data.folder else root / data.folder
        if not place.exists():
            continue
        splits = _splits(data(place))
        if splits:
            yield Finding(name, "ok", f"{place}: {', '.join(splits)}")
        elif folders.count(data.folder) == 1:  # a folder that two data sets share need not hold both
            cure = f"segkit data check {name} {place} says what is missing"
            yield Finding(name, "note", f"{place}: exists, but has none of its splits", cure)


def _known() -> "dict[str, type[SegmentationDataModule]]":
    """The data sets that have a folder of their own below the data root."""
    from segkit.data import names

    return {name: data for name, data in names.data_sets().items() if data.folder}


def _splits(layout: "Layout") -> "list[Split]":
    from segkit.data.layout.base import SPLITS

    return [split for split in SPLITS if _has(layout, split)]


def _has(layout: "Layout", split: "Split") -> bool:
    try:
        return layout.has_split(split)
    except InputError:  # a list of names is absent or wrong
        return False
