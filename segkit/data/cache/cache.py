"""A split decoded once: images and train ids as flat files that are mapped into memory.

A folder `NAME-SPLIT-KEY` below `cache_dir` holds `images.u8` (each image's rows, RGB or the data's bands), `masks.u8`
(train ids) and `index.json`. The key is a hash of the sources (path, size, time of change), the label table and the
format's version: changed data have another key, so that a cache is either right or not found. Workers and processes map
the same files, of which the operating system keeps one copy; a crop reads only its own rows.

`segkit.data.cache.writing` writes caches.
"""

import re
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from segkit.arrays import UInt8Array
from segkit.bands import BandArray
from segkit.data.layout.base import Layout, Sample, samples_key
from segkit.errors import InputError
from segkit.files import parse_json

VERSION = 1  # version of the format; raise it when the contents change


IMAGES, MASKS, INDEX = "images.u8", "masks.u8", "index.json"
_PROBES = 4  # images whose checksums are compared when a cache is opened


@dataclass(frozen=True)
class Index:
    """What a cache holds.

    Attributes:
        key: Hash of what the cache was made from.
        source: Root of the data set.
        names: Names of the samples.
        sizes: (height, width) of each sample.
        checksums: CRC-32 of each image and mask; empty until all are written.
        channels: Number of channels of the images.
        dtype: NumPy type of the images.
    """

    key: str
    source: str
    names: tuple[str, ...]
    sizes: tuple[tuple[int, int], ...]
    checksums: tuple[tuple[int, int], ...] = ()
    channels: int = 3
    dtype: str = "uint8"

    @cached_property
    def offsets(self) -> npt.NDArray[np.int64]:
        """Pixels before each sample, and their total at the end."""
        return np.concatenate([[0], np.cumsum([height * width for height, width in self.sizes], dtype=np.int64)])

    @property
    def pixel_bytes(self) -> int:
        """Bytes of a pixel of an image."""
        return self.channels * np.dtype(self.dtype).itemsize

    @property
    def num_bytes(self) -> int:
        """Bytes of the image file and the mask file together."""
        return (self.pixel_bytes + 1) * int(self.offsets[-1])


class Cache:
    """A complete cache, opened.

    Args:
        folder: Folder of the cache.
        index: The index in that folder.
    """

    def __init__(self, folder: Path, index: Index) -> None:
        self.folder = folder
        self.index = index
        self._positions = {name: i for i, name in enumerate(index.names)}

    def read(self, sample: Sample) -> tuple[BandArray, UInt8Array]:
        """Image (H, W, C) and train ids uint8 (H, W) of a sample, as read-only views that read no bytes yet."""
        return self.view(self._positions[sample.name])

    def view(self, i: int) -> tuple[BandArray, UInt8Array]:
        """Image and train ids of the sample at a position."""
        (height, width), (start, end) = self.index.sizes[i], self.index.offsets[i : i + 2]
        size = self.index.pixel_bytes
        image: BandArray = self._images[size * start : size * end].view(self.index.dtype)
        return image.reshape(height, width, self.index.channels), self._masks[start:end].reshape(height, width)

    def verify(self, positions: Iterable[int]) -> None:
        """Compare checksums.

        Raises:
            InputError: The stored bytes differ from those that were written.
        """
        for i in positions:
            if checksums_of(*self.view(i)) != self.index.checksums[i]:
                raise InputError(f"{self.folder}: damaged at image {self.index.names[i]}; remove this folder, it is "
                                 "rebuilt")  # fmt: skip

    def __getstate__(self) -> dict[str, Any]:
        """The state without the maps: each worker process maps the same files itself."""
        return {name: value for name, value in self.__dict__.items() if name not in ("_images", "_masks")}

    @cached_property
    def _images(self) -> UInt8Array:
        return _mapped(self.folder / IMAGES)

    @cached_property
    def _masks(self) -> UInt8Array:
        return _mapped(self.folder / MASKS)


def find_cache(cache_dir: Path, layout: Layout, split: str, samples: Sequence[Sample]) -> Cache | None:
    """The complete cache of these samples, if there is one.

    Raises:
        InputError: The cache exists but is damaged.
    """
    key = samples_key(layout, samples, VERSION)
    return open_cache(folder_of(cache_dir, layout, split, key), key)


def open_cache(folder: Path, key: str) -> Cache | None:
    """The complete cache in a folder, if there is one.

    Raises:
        InputError: The cache exists but is damaged.
    """
    if not folder.is_dir():
        return None
    index = read_index(folder, key)
    if len(index.checksums) != len(index.names):
        raise InputError(f"{folder / INDEX}: no index of a complete cache; remove {folder}, it is rebuilt")
    for name, size in ((IMAGES, index.num_bytes - int(index.offsets[-1])), (MASKS, int(index.offsets[-1]))):
        found = (folder / name).stat().st_size if (folder / name).is_file() else 0
        if found != size:
            raise InputError(f"{folder / name}: has {found} bytes, {size} were written; remove {folder}, it is rebuilt")
    cache = Cache(folder, index)
    count = len(index.names)
    cache.verify(range(0, count, max(1, count // _PROBES)))
    return cache


def other_caches(cache_dir: Path, layout: Layout, split: str, samples: Sequence[Sample]) -> dict[Path, int]:
    """Other caches of the same data set and split, finished or not, and their bytes.

    They were made before files or the label table changed, or with other options of the data set.
    """
    own = folder_of(cache_dir, layout, split, samples_key(layout, samples, VERSION))
    return {
        folder: sum(_bytes_on_disk(file) for file in folder.iterdir())
        for folder in folders_of(cache_dir, layout, split)
        if folder.name.removesuffix(".part") != own.name and _root_of(folder) == root_of(layout)
    }


def prefix_of(layout: Layout, split: str) -> str:
    """The part of a cache's folder name before its key."""
    return f"{layout.title.replace(' ', '-').lower()}-{split}"


def folder_of(cache_dir: Path, layout: Layout, split: str, key: str) -> Path:
    """The folder where the complete cache with this key is, or would be."""
    return cache_dir / f"{prefix_of(layout, split)}-{key[:16]}"


def folders_of(cache_dir: Path, layout: Layout, split: str) -> list[Path]:
    """Caches of all data sets of this kind, finished or not."""
    name = re.compile(re.escape(prefix_of(layout, split)) + r"-[0-9a-f]{16}(\.part)?")
    found = sorted(cache_dir.iterdir()) if cache_dir.is_dir() else []
    return [folder for folder in found if folder.is_dir() and name.fullmatch(folder.name)]


def root_of(layout: Layout) -> str:
    """The data set's root as an index records it."""
    return str(layout.root.absolute())


def _root_of(folder: Path) -> str | None:
    """Root of the cached data set; None if the index is damaged."""
    try:
        return read_index(folder).source
    except InputError:
        return None


def _bytes_on_disk(file: Path) -> int:
    """Bytes that the folder occupies, without the holes of unfinished files."""
    stat = file.stat()
    return min(stat.st_size, 512 * stat.st_blocks) if hasattr(stat, "st_blocks") else stat.st_size


def read_index(folder: Path, key: str | None = None) -> Index:
    """The index of a cache, which must have this `key` if one is given.

    Raises:
        InputError: There is no index, or it belongs to another cache.
    """
    path = folder / INDEX
    try:
        plain = parse_json(path.read_text(encoding="utf-8"))
        index = Index(
            str(plain["key"]),
            str(plain["source"]),
            tuple(plain["names"]),
            tuple((int(height), int(width)) for height, width in plain["sizes"]),
            tuple((int(image), int(mask)) for image, mask in plain["checksums"]),
            int(plain.get("channels", 3)),
            str(np.dtype(plain.get("dtype", "uint8"))),
        )
        if len(index.names) != len(index.sizes):
            raise ValueError(f"{len(index.names)} names, {len(index.sizes)} sizes")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path}: no index of a cache ({type(error).__name__}: {error}); remove {folder}, it is rebuilt"
        ) from error
    if key is not None and index.key != key:
        raise InputError(f"{folder}: holds another cache than its name says; remove it, it is rebuilt")
    return index


def _mapped(path: Path) -> UInt8Array:
    """A plain array over the mapped file: slicing a memmap object takes a hundred times as long."""
    return np.asarray(np.memmap(path, np.uint8, "r"))


def checksums_of(image: BandArray, mask: UInt8Array) -> tuple[int, int]:
    """CRC-32 of the image and of the mask."""
    return zlib.crc32(np.ascontiguousarray(image).data), zlib.crc32(np.ascontiguousarray(mask).data)
