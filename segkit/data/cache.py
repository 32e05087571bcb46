"""A split decoded once: pictures and train ids as flat uint8 files that are mapped into memory.

A folder `NAME-SPLIT-KEY` below `cache_dir` holds `images.u8` (each picture's rows, RGB), `masks.u8` (train ids) and
`index.json`. The key is a hash of the sources (path, size, time of change), the label table and the format's version:
changed data have another key, so that a cache is either right or not found. Workers and processes map the same files,
of which the operating system keeps one copy; a crop reads its own rows and no others.

Writing goes to `<folder>.part`, which a run that was killed leaves behind and the next one completes; a journal has the
check sums of the pictures that are done.
"""

import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from filelock import FileLock
from tqdm import tqdm

from segkit.data.layouts.base import Layout, Sample, samples_key
from segkit.errors import InputError
from segkit.files import write_json
from segkit.io import picture_size

VERSION = 1  # of the format; raise it when what is stored changes

UInt8Array = npt.NDArray[np.uint8]

_IMAGES, _MASKS, _INDEX, _JOURNAL = "images.u8", "masks.u8", "index.json", "journal"
_RECORD = np.dtype([("index", "<u4"), ("image", "<u4"), ("mask", "<u4")])
_SPARE = 64 << 20  # bytes of disk to leave free
_PROBES = 4  # pictures whose check sums are compared when a cache is opened


@dataclass(frozen=True)
class Index:
    """What a cache holds.

    Attributes:
        key: Of what it was made from.
        names: Of the samples.
        sizes: (height, width) of each.
        checksums: CRC-32 of each image and mask; empty until all are written.
    """

    key: str
    names: tuple[str, ...]
    sizes: tuple[tuple[int, int], ...]
    checksums: tuple[tuple[int, int], ...] = ()

    @cached_property
    def offsets(self) -> npt.NDArray[np.int64]:
        """Pixels before each sample, and of all."""
        return np.concatenate([[0], np.cumsum([height * width for height, width in self.sizes], dtype=np.int64)])

    @property
    def num_bytes(self) -> int:
        """Of both files."""
        return 4 * int(self.offsets[-1])


class Cache:
    """A complete cache, opened.

    Args:
        folder: That of the cache.
        index: As written there.
    """

    def __init__(self, folder: Path, index: Index) -> None:
        self.folder = folder
        self.index = index
        self._positions = {name: i for i, name in enumerate(index.names)}

    def read(self, sample: Sample) -> tuple[UInt8Array, UInt8Array]:
        """Picture uint8 (H, W, 3) and train ids uint8 (H, W) of a sample: read-only views, of which nothing is read."""
        return self._view(self._positions[sample.name])

    def verify(self, positions: Iterable[int]) -> None:
        """Compare check sums.

        Raises:
            InputError: What is stored is not what was written.
        """
        for i in positions:
            if _checksums(*self._view(i)) != self.index.checksums[i]:
                raise InputError(f"{self.folder}: damaged at picture {self.index.names[i]}; remove this folder, it is "
                                 "made anew")  # fmt: skip

    def __getstate__(self) -> dict[str, Any]:
        """Without the maps: a worker process makes its own, of the same memory."""
        return {name: value for name, value in self.__dict__.items() if name not in ("_images", "_masks")}

    @cached_property
    def _images(self) -> UInt8Array:
        return _mapped(self.folder / _IMAGES)

    @cached_property
    def _masks(self) -> UInt8Array:
        return _mapped(self.folder / _MASKS)

    def _view(self, i: int) -> tuple[UInt8Array, UInt8Array]:
        (height, width), (start, end) = self.index.sizes[i], self.index.offsets[i : i + 2]
        image = self._images[3 * start : 3 * end].reshape(height, width, 3)
        return image, self._masks[start:end].reshape(height, width)


def find_cache(cache_dir: Path, layout: Layout, split: str, samples: Sequence[Sample]) -> Cache | None:
    """The complete cache of these samples, if there is one.

    Raises:
        InputError: It is there and damaged.
    """
    key = samples_key(layout, samples, VERSION)
    folder = _folder(cache_dir, layout, split, key)
    if not folder.is_dir():
        return None
    cache = Cache(folder, _read_index(folder, key))
    sizes = {_IMAGES: cache.index.num_bytes // 4 * 3, _MASKS: cache.index.num_bytes // 4}
    for name, size in sizes.items():
        found = (folder / name).stat().st_size if (folder / name).is_file() else 0
        if found != size:
            raise InputError(
                f"{folder / name}: has {found} bytes, {size} were written; remove {folder}, it is made anew"
            )
    count = len(samples)
    cache.verify(range(0, count, max(1, count // _PROBES)))
    return cache


def make_cache(
    cache_dir: Path,
    layout: Layout,
    split: str,
    samples: Sequence[Sample],
    workers: int | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Cache:
    """The cache of these samples; decoded and written first, or completed, where it is not there yet.

    Args:
        cache_dir: Holds the caches; made if it is absent.
        layout: Reads the samples.
        split: For the cache's name and messages.
        samples: With masks.
        workers: Threads that decode; None: one for each core.
        say: Told in a line each how much disk is needed, and what is found.

    Raises:
        InputError: The disk is too full, or a picture or mask cannot be read; what is done is kept.
    """
    cache_dir.mkdir(parents=True, exist_ok=True)
    lock = cache_dir / f".{layout.title.replace(' ', '-').lower()}-{split}.lock"
    with FileLock(lock):  # of several processes one writes, the others find it written
        found = find_cache(cache_dir, layout, split, samples)
        if found is not None:
            return found
        with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
            return _Writer(cache_dir, layout, split, samples, pool, say).run()


class _Writer:
    """One run that makes, or completes, a cache."""

    def __init__(
        self,
        cache_dir: Path,
        layout: Layout,
        split: str,
        samples: Sequence[Sample],
        pool: ThreadPoolExecutor,
        say: Callable[[str], None],
    ) -> None:
        self.layout, self.samples, self.pool, self.say = layout, samples, pool, say
        self.key = samples_key(layout, samples, VERSION)
        self.title = f"{layout.title} {split}"
        self.folder = _folder(cache_dir, layout, split, self.key)
        self.part = self.folder.with_name(self.folder.name + ".part")

    def run(self) -> Cache:
        index = self._begin()
        done = self._done(index)
        self._check_disk(index, done)
        left = [i for i in range(len(self.samples)) if i not in done]
        images, masks = (self._open(name, index, size) for name, size in ((_IMAGES, 3), (_MASKS, 1)))
        cached = Cache(self.part, index)
        with (self.part / _JOURNAL).open("ab") as journal, self._bar("cache", len(done)) as bar:

            def store(i: int) -> tuple[int, int, int]:
                image, mask = self.layout.read(self.samples[i])
                if mask is None or mask.shape != index.sizes[i]:
                    raise InputError(f"{self.samples[i].image}: changed while the cache was written; run again")
                start, end = index.offsets[i : i + 2]
                images[3 * start : 3 * end], masks[start:end] = image.ravel(), mask.ravel()
                return (i, *_checksums(image, mask))

            for record in self.pool.map(store, left):
                journal.write(np.array([record], _RECORD).tobytes())
                journal.flush()
                done[record[0]] = record[1:]
                bar.update()
        images.flush()
        masks.flush()
        complete = Index(index.key, index.names, index.sizes, tuple(done[i] for i in range(len(self.samples))))
        write_json(self.part / _INDEX, asdict(complete))
        (self.part / _JOURNAL).unlink()
        os.replace(self.part, self.folder)
        self.say(f"{self.title}: cached in {self.folder}")
        del cached
        return Cache(self.folder, complete)

    def _begin(self) -> Index:
        """The index of a run that was stopped, or a new one: sizes are read from the files' headers."""
        if (self.part / _INDEX).is_file():
            return _read_index(self.part, self.key)
        sizes = []
        with self._bar("sizes", 0) as bar:
            for width_height in self.pool.map(lambda sample: picture_size(sample.image), self.samples):
                sizes.append((width_height[1], width_height[0]))
                bar.update()
        index = Index(self.key, tuple(sample.name for sample in self.samples), tuple(sizes))
        self.part.mkdir(parents=True, exist_ok=True)
        write_json(self.part / _INDEX, asdict(index))
        return index

    def _done(self, index: Index) -> dict[int, tuple[int, int]]:
        """What an earlier run has written, as far as its check sums are right."""
        path = self.part / _JOURNAL
        if not path.is_file():
            return {}
        data = path.read_bytes()
        records = np.frombuffer(data[: len(data) // _RECORD.itemsize * _RECORD.itemsize], _RECORD)
        cached = Cache(self.part, index)
        done = {}
        for i, image, mask in (tuple(int(value) for value in record) for record in records):
            if i < len(index.sizes) and _checksums(*cached._view(i)) == (image, mask):
                done[i] = (image, mask)
        path.write_bytes(b"".join(np.array([(i, *sums)], _RECORD).tobytes() for i, sums in done.items()))
        self.say(f"{self.title}: {len(done)} of {len(self.samples)} pictures are there already")
        return done

    def _check_disk(self, index: Index, done: dict[int, tuple[int, int]]) -> None:
        needed = index.num_bytes - 4 * sum(index.sizes[i][0] * index.sizes[i][1] for i in done)
        free = shutil.disk_usage(self.part).free
        gigabytes = f"{needed / 1e9:.2f} GB for {len(self.samples) - len(done)} pictures, {free / 1e9:.2f} GB are free"
        self.say(f"{self.title}: the cache needs {gigabytes}: {self.folder.parent}")
        if needed + _SPARE > free:
            raise InputError(f"{self.folder.parent}: the cache needs {gigabytes}; give another cache_dir, or none")

    def _open(self, name: str, index: Index, channels: int) -> "np.memmap[Any, np.dtype[np.uint8]]":
        """The file at its full length: what is not written yet takes no disk."""
        path, length = self.part / name, channels * int(index.offsets[-1])
        with path.open("ab") as file:
            file.truncate(length)
        return np.memmap(path, np.uint8, "r+")

    def _bar(self, what: str, done: int) -> Any:
        return tqdm(total=len(self.samples), initial=done, unit="picture", desc=f"{what} {self.title}")


def _folder(cache_dir: Path, layout: Layout, split: str, key: str) -> Path:
    return cache_dir / f"{layout.title.replace(' ', '-').lower()}-{split}-{key[:16]}"


def _read_index(folder: Path, key: str) -> Index:
    path = folder / _INDEX
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
        index = Index(
            str(plain["key"]),
            tuple(plain["names"]),
            tuple((int(height), int(width)) for height, width in plain["sizes"]),
            tuple((int(image), int(mask)) for image, mask in plain["checksums"]),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: no index of a cache ({error}); remove {folder}, it is made anew") from error
    if index.key != key:
        raise InputError(f"{folder}: holds another cache than its name says; remove it, it is made anew")
    return index


def _mapped(path: Path) -> UInt8Array:
    """A plain array over the map: slices of a memmap object cost a hundred times as much to make."""
    return np.asarray(np.memmap(path, np.uint8, "r"))


def _checksums(image: UInt8Array, mask: UInt8Array) -> tuple[int, int]:
    return zlib.crc32(np.ascontiguousarray(image).data), zlib.crc32(np.ascontiguousarray(mask).data)
