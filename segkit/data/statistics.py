"""How often each class occurs in a split: counted once, kept beside the data, read by losses and samplers."""

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from filelock import FileLock

from segkit.arrays import Int64Array
from segkit.bars import Bar
from segkit.data.layout.base import Layout, Sample, Split, samples_key
from segkit.errors import InputError
from segkit.files import check_writable, parse_json, write_text
from segkit.machine import cores
from segkit.metadata.label_space import IGNORE_INDEX
from segkit.paths import cache_folder
from segkit.text import aligned, percent

VERSION = 1  # version of the file; raise it when its contents change

KINDS = ("enet", "median")  # kinds of class weights


@dataclass(frozen=True)
class Statistics:
    """Pixels of each class in each image.

    Attributes:
        split: The split that was counted.
        class_names: Names of the K classes.
        by_image: Pixel counts int64 (K + 1) of each image by name; the last one is the number of ignored pixels.
    """

    split: str
    class_names: tuple[str, ...]
    by_image: Mapping[str, Int64Array]

    @property
    def pixels(self) -> Int64Array:
        """Pixels of each class, int64 (K)."""
        return self._total[:-1]

    @property
    def ignored(self) -> int:
        """The number of pixels that belong to no class."""
        return int(self._total[-1])

    @property
    def images(self) -> Int64Array:
        """The number of images in which each class occurs, int64 (K)."""
        return np.asarray(np.count_nonzero(self._matrix[:, :-1], axis=0), np.int64)

    @property
    def ids(self) -> list[int]:
        """Train ids that occur, including 255 = ignored."""
        return [*np.flatnonzero(self.pixels).tolist(), *([IGNORE_INDEX] if self.ignored else [])]

    def areas(self, names: Sequence[str]) -> Int64Array:
        """Pixels of each class in these images, int64 (N, K)."""
        return np.stack([self.by_image[name][:-1] for name in names])

    @cached_property
    def _total(self) -> Int64Array:
        return np.asarray(self._matrix.sum(axis=0), np.int64)

    @cached_property
    def _matrix(self) -> Int64Array:
        return np.stack(list(self.by_image.values()))


def class_weights(found: Statistics, kind: str) -> tuple[float, ...]:
    """A weight for each class, larger for rarer ones.

    Args:
        found: Statistics of the training split.
        kind: "enet": 1 / ln(1.02 + f), f being the class's share of all valid pixels (Paszke et al. 2016, section 5.2).
            "median": median of all g, divided by g, g being the class's share of the valid pixels of the images that
            have it (median frequency balancing, Eigen and Fergus 2015, section 4.3.2); 0 for a class that never occurs.

    Raises:
        InputError: There is no such kind, or no valid pixel.
    """
    pixels = found.pixels.astype(np.float64)
    if kind not in KINDS:
        raise InputError(f"class weights {kind!r}: allowed are {' and '.join(KINDS)}")
    if not pixels.any():
        raise InputError(f"class weights {kind}: the masks of the {found.split} split have no valid pixel")
    if kind == "enet":
        weights = 1 / np.log(1.02 + pixels / pixels.sum())
    else:
        areas = found.areas(list(found.by_image))
        valid = areas.sum(axis=1)
        having = np.array([valid[areas[:, k] > 0].sum() for k in range(len(pixels))], np.float64)
        shares = np.divide(pixels, having, out=np.zeros_like(pixels), where=having > 0)
        median = np.median(shares[shares > 0])
        weights = np.divide(median, shares, out=np.zeros_like(pixels), where=shares > 0)
    return tuple(float(weight) for weight in weights)


def statistics_table(found: Statistics) -> str:
    """A table with the pixels, share, images and weights of each class."""
    total = int(found.pixels.sum())
    weights = [class_weights(found, kind) if total else (np.nan,) * len(found.class_names) for kind in KINDS]
    rows: list[tuple[str, ...]] = [("id", "class", "pixels", "share", "images", *KINDS)]
    for label, name in enumerate(found.class_names):
        pixels = int(found.pixels[label])
        share, own = f"{percent(pixels / max(1, total), 3)}%", (f"{kind[label]:.4g}" for kind in weights)
        rows.append((str(label), name, str(pixels), share, str(found.images[label]), *own))
    ignored = f"{percent(found.ignored / max(1, total + found.ignored), 3)}%"
    rows.append(("", "ignored", str(found.ignored), ignored))
    return f"{aligned(rows, left=(1,))} of all pixels"


def statistics_path(layout: Layout, split: str) -> Path:
    """The file that keeps the statistics of a split.

    It is in the data set's folder, or beside its zip file with its name; if that is read-only, in segkit's cache.
    """
    name = f"segkit-statistics-{split}.json"
    is_zip = layout.root.suffix.lower() == ".zip"
    beside = layout.root.with_name(f"{layout.root.stem}-{name}") if is_zip else layout.root / name
    if beside.is_file() or os.access(beside.absolute().parent, os.W_OK | os.X_OK):
        return beside
    place = hashlib.sha256(str(layout.root.absolute()).encode()).hexdigest()[:16]
    return cache_folder() / "statistics" / f"{layout.root.stem}-{place}-{name}"


def statistics(
    layout: Layout,
    split: Split,
    path: Path | None = None,
    workers: int | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Statistics:
    """The statistics of a split: the stored ones if the data are unchanged, otherwise counted and stored.

    Args:
        layout: The data set.
        split: Which of its splits.
        path: The file that keeps them; None: beside the data, or in segkit's cache if nobody may write there.
        workers: Threads that decode; None: one for each core.
        say: Called with a line that says where they are kept, or that they are not.

    Raises:
        InputError: A mask is wrong, or `path` cannot be written.
    """
    samples = layout.find_samples(split)
    key = samples_key(layout, samples, VERSION)
    target = statistics_path(layout, split) if path is None else path
    found = _read(target, key)
    if found is not None:
        return found
    try:
        check_writable(target.absolute().parent)
    except InputError as error:
        if path is not None:
            raise
        say(f"statistics of {layout.title} {split} are counted again each time, as they cannot be kept: {error}")
        return _count(layout, split, samples, workers)
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.with_name(f".{target.name}.lock")):  # only one of several processes counts
        found = _read(target, key)
        if found is not None:
            return found
        found = _count(layout, split, samples, workers)
        try:
            _write(target, key, found)
        except InputError as error:
            if path is not None:
                raise
            say(f"statistics of {layout.title} {split} are not kept: {error}")
        else:
            say(f"statistics of {layout.title} {split}: {target}")
    return found


def _count(layout: Layout, split: str, samples: Sequence[Sample], workers: int | None) -> Statistics:
    classes = layout.label_space.num_classes

    def count(sample: Sample) -> Int64Array:
        assert sample.mask is not None
        mask = layout.label_space.map_labels(layout.read_mask(sample.mask), str(sample.mask))
        counts = np.bincount(mask.ravel(), minlength=IGNORE_INDEX + 1)
        return np.append(counts[:classes], counts[IGNORE_INDEX]).astype(np.int64)

    with ThreadPoolExecutor(workers or cores()) as pool:
        counted = Bar(pool.map(count, samples), f"count {layout.title} {split}", len(samples), unit="mask")
        by_image = {sample.name: counts for sample, counts in zip(samples, counted, strict=True)}
    return Statistics(split, layout.label_space.class_names, by_image)


def _write(path: Path, key: str, found: Statistics) -> None:
    """Write a summary for people, then the sparse counts behind it: {class: pixels} of each image."""
    total, classes = int(found.pixels.sum()), len(found.class_names)
    weights = {kind: class_weights(found, kind) for kind in KINDS} if total else {}
    summary = [
        {
            "class": name,
            "pixels": int(found.pixels[k]),
            "share": float(found.pixels[k] / max(total, 1)),
            "images": int(found.images[k]),
            **{kind: values[k] for kind, values in weights.items()},
        }
        for k, name in enumerate(found.class_names)
    ]
    sparse = {
        name: {str(k if k < classes else IGNORE_INDEX): int(counts[k]) for k in np.flatnonzero(counts)}
        for name, counts in found.by_image.items()
    }
    head = {"key": key, "split": found.split, "class_names": found.class_names, "ignored": found.ignored}
    lines = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in head.items()]
    lines.append('"classes": [\n' + ",\n".join(json.dumps(row, ensure_ascii=False) for row in summary) + "\n]")
    rows = (f"{json.dumps(name)}: {json.dumps(row)}" for name, row in sparse.items())
    lines.append('"images": {\n' + ",\n".join(rows) + "\n}")
    write_text(path, "{\n" + ",\n".join(lines) + "\n}\n")


def _read(path: Path, key: str) -> Statistics | None:
    """Read the statistics; None if there is no such file, or it belongs to other data."""
    try:
        plain = parse_json(path.read_text(encoding="utf-8"))
        if plain["key"] != key:
            return None
        classes = len(plain["class_names"])
        by_image = {}
        for name, row in plain["images"].items():
            counts = np.zeros(classes + 1, np.int64)
            for label, pixels in row.items():
                counts[min(int(label), classes)] = pixels
            by_image[name] = counts
        return Statistics(str(plain["split"]), tuple(plain["class_names"]), by_image)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
