"""Writes a cache: a split is decoded once into flat files, which `segkit.data.cache.cache` describes.

They are written to `<folder>.part`. A killed run leaves it behind and the next one completes it, even if some images
have been repaired in between; a journal records the checksums of finished images.
"""

import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from segkit.bands import BandArray
from segkit.bars import Bar
from segkit.data.cache.cache import (
    IMAGES,
    INDEX,
    MASKS,
    VERSION,
    Cache,
    Index,
    checksums_of,
    folder_of,
    folders_of,
    open_cache,
    prefix_of,
    read_index,
    root_of,
)
from segkit.data.layout.base import Layout, Sample, sample_keys, samples_key
from segkit.errors import InputError
from segkit.files import check_writable, write_bytes, write_json, write_refusal
from segkit.io import image_size
from segkit.machine import cores

_JOURNAL = "journal"
_RECORD = np.dtype([("index", "<u4"), ("sample", "S16"), ("image", "<u4"), ("mask", "<u4")])
_SPARE = 64 << 20  # bytes of disk to leave free


def make_cache(
    cache_dir: Path,
    layout: Layout,
    split: str,
    samples: Sequence[Sample],
    workers: int | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Cache:
    """Open the cache of these samples; write or complete it first if necessary.

    Args:
        cache_dir: The folder of all caches; created if it is absent.
        layout: Reads the samples.
        split: Name of the split, for the cache's name and messages.
        samples: Samples with masks.
        workers: Threads that decode; None: one for each core.
        say: Called with a line on the disk space needed, and with one on what is found.

    Raises:
        InputError: The disk is full or not writable, or an image or mask cannot be read; finished work is kept.
    """
    key = samples_key(layout, samples, VERSION)
    folder = folder_of(cache_dir, layout, split, key)
    found = open_cache(folder, key)  # before the lock, because the folder may be read-only
    if found is not None:
        return found
    check_writable(cache_dir, "cache_dir")
    cache_dir.mkdir(parents=True, exist_ok=True)
    lock = FileLock(cache_dir / f".{prefix_of(layout, split)}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(f"{layout.title} {split}: waiting for another process that makes a cache in {cache_dir}")
        lock.acquire()
    try:  # one of several processes writes, the others find the cache
        found = open_cache(folder, key)
        if found is not None:
            return found
        with ThreadPoolExecutor(workers or cores()) as pool:
            return _Writer(folder, key, layout, split, samples, pool, say).run()
    except OSError as error:
        raise write_refusal(error, error.filename or cache_dir) or error from error
    finally:
        lock.release()


class _Writer:
    """One run that writes or completes a cache."""

    def __init__(
        self,
        folder: Path,
        key: str,
        layout: Layout,
        split: str,
        samples: Sequence[Sample],
        pool: ThreadPoolExecutor,
        say: Callable[[str], None],
    ) -> None:
        self.layout, self.samples, self.pool, self.say = layout, samples, pool, say
        self.key, self.folder = key, folder
        self.title = f"{layout.title} {split}"
        self.part = self.folder.with_name(self.folder.name + ".part")
        self.unfinished = [
            f for f in folders_of(folder.parent, layout, split) if f.suffix == ".part" and f != self.part
        ]
        self.sample_keys = [key[:16].encode() for key in sample_keys(layout, samples)]

    def run(self) -> Cache:
        index = self._begin()
        for name, size in ((IMAGES, index.pixel_bytes), (MASKS, 1)):
            _lengthen(self.part / name, size * int(index.offsets[-1]))
        done = self._done(index)
        self._check_disk(index, done)
        self._write(index, done)
        complete = replace(index, checksums=tuple(done[i] for i in range(len(self.samples))))
        write_json(self.part / INDEX, asdict(complete))
        os.replace(self.part, self.folder)
        (self.folder / _JOURNAL).unlink(missing_ok=True)  # only now: a run killed before this must resume
        self.say(f"{self.title}: cached in {self.folder}")
        return Cache(self.folder, complete)

    def _write(self, index: Index, done: dict[int, tuple[int, int]]) -> None:
        """Decode and store the samples that are not in `done`, and add their checksums to it."""
        left = [i for i in range(len(self.samples)) if i not in done]
        with (self.part / _JOURNAL).open("ab") as journal, self._bar("cache", len(done)) as bar:
            for i, sums in zip(left, self.pool.map(lambda i: self._store(index, i), left), strict=True):
                journal.write(self._record(i, sums))
                journal.flush()
                done[i] = sums
                bar.update()
        for name in (IMAGES, MASKS):
            with (self.part / name).open("r+b") as file:
                os.fsync(file.fileno())

    def _store(self, index: Index, i: int) -> tuple[int, int]:
        """Decode and write one sample; return its checksums.

        It writes to the file and not to a map, because on a full disk writing to a map kills the process.
        """
        image, mask = self.layout.read(self.samples[i])
        if mask is None or mask.shape != index.sizes[i]:
            raise InputError(f"{self.samples[i].image}: changed while the cache was written; run again")
        start = int(index.offsets[i])
        try:
            _write_at(self.part / IMAGES, index.pixel_bytes * start, image)
            _write_at(self.part / MASKS, start, mask)
        except OSError as error:
            raise InputError(
                f"{self.part}: cannot be written ({error.strerror}); free the disk and run again: what is done is kept"
            ) from error
        return checksums_of(image, mask)

    def _begin(self) -> Index:
        """The index of a stopped run, or a new one with sizes from the files' headers."""
        try:
            return read_index(self.part, self.key)
        except InputError:
            pass  # absent, or half-written when the power failed
        sizes, apply_exif = [], self.layout.reader.apply_exif
        with self._bar("sizes", 0) as bar:
            for width, height in self.pool.map(lambda sample: image_size(sample.image, apply_exif), self.samples):
                sizes.append((height, width))
                bar.update()
        names, bands = tuple(sample.name for sample in self.samples), self.layout.bands
        kind = {} if bands is None else {"channels": len(bands.names), "dtype": bands.dtype}
        index = Index(self.key, root_of(self.layout), names, tuple(sizes), **kind)  # type: ignore[arg-type]
        self._take_over(index)
        self.part.mkdir(parents=True, exist_ok=True)
        write_json(self.part / INDEX, asdict(index))
        return index

    def _take_over(self, index: Index) -> None:
        """Take over an unfinished cache of the same images, some of which have been repaired since."""
        for folder in () if self.part.exists() else self.unfinished:
            try:
                other = read_index(folder)
            except InputError:
                continue
            if replace(other, key=index.key, checksums=()) == index:
                os.replace(folder, self.part)
                return

    def _done(self, index: Index) -> dict[int, tuple[int, int]]:
        """Checksums of the samples that an earlier run wrote, if their files are unchanged and the checksums match."""
        path = self.part / _JOURNAL
        if not path.is_file():
            return {}
        data = path.read_bytes()
        records = np.frombuffer(data[: len(data) // _RECORD.itemsize * _RECORD.itemsize], _RECORD)
        cached, done = Cache(self.part, index), dict[int, tuple[int, int]]()
        for i, key, image, mask in records.tolist():
            is_same = i < len(self.samples) and key == self.sample_keys[i]
            if is_same and checksums_of(*cached.view(i)) == (image, mask):
                done[i] = (image, mask)
        write_bytes(path, b"".join(self._record(i, sums) for i, sums in done.items()))
        self.say(f"{self.title}: {len(done)} of {len(self.samples)} images already exist")
        return done

    def _record(self, i: int, sums: tuple[int, int]) -> bytes:
        return np.array([(i, self.sample_keys[i], *sums)], _RECORD).tobytes()

    def _check_disk(self, index: Index, done: dict[int, tuple[int, int]]) -> None:
        needed = index.num_bytes - (index.pixel_bytes + 1) * sum(index.sizes[i][0] * index.sizes[i][1] for i in done)
        free = shutil.disk_usage(self.part).free
        gigabytes = f"{needed / 1e9:.2f} GB for {len(self.samples) - len(done)} images, {free / 1e9:.2f} GB are free"
        self.say(f"{self.title}: the cache needs {gigabytes}: {self.folder.parent}")
        if needed + _SPARE > free:
            raise InputError(f"{self.folder.parent}: the cache needs {gigabytes}; give another cache_dir, or none")

    def _bar(self, what: str, done: int) -> Any:
        return Bar(total=len(self.samples), initial=done, unit="image", desc=f"{what} {self.title}")


def _lengthen(path: Path, length: int) -> None:
    """Create a file or extend it to its full length; unwritten parts take no disk space."""
    with path.open("ab") as file:
        file.truncate(length)


def _write_at(path: Path, start: int, array: BandArray) -> None:
    with path.open("r+b", buffering=0) as file:
        file.seek(start)
        left = np.ascontiguousarray(array).data.cast("B")
        while left:  # an unbuffered write may be partial
            left = left[file.write(left) :]
