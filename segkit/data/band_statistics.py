"""Range, mean and standard deviation of each band over the training images: computed once, kept beside the data."""

import functools
import hashlib
import json
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from segkit.arrays import Float64Array, Int64Array
from segkit.bands import BandArray, Bands, bands_of
from segkit.bars import Bar
from segkit.data.layout.base import Layout, Sample
from segkit.data.layout.files import fingerprint
from segkit.data.statistics import statistics_path
from segkit.errors import InputError
from segkit.files import parse_json, write_json
from segkit.io import read_image
from segkit.io.bands import read_bands
from segkit.machine import cores
from segkit.text import aligned, percent

VERSION = 1  # version of the file; raise it when its contents change
PERCENTILES = (2, 98)

_SAMPLE = 2**16  # pixels of a float image that its percentiles are taken from, evenly spread
_LEVELS = {"uint8": 2**8, "uint16": 2**16}

Counted = tuple[Bands, tuple[float, ...], tuple[float, ...], float]


def band_statistics(
    layout: Layout,
    bands: Bands | None,
    ends: Bands | None,
    workers: int | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Counted:
    """The bands with their range, mean and standard deviation on its 0..1 scale, and the share of values outside it.

    Means and deviations are taken over all pixels, summed in float64. So are percentiles, except that float images
    contribute at most 65,536 pixels each.

    Args:
        layout: The data set, whose training images are read.
        bands: Names and type; None: uint8 RGB.
        ends: The bands with the declared range; None: their percentiles are the range.
        workers: Threads that decode; None: one for each core.
        say: Called with a line that says where the result is kept.

    Raises:
        InputError: An image is wrong, or a band has only one value.
    """
    samples = layout.find_samples("train", with_masks=False)
    key = _key(bands, ends, samples)
    path = statistics_path(layout, f"{'range' if ends is None else 'bands'}-train")
    found = _read(path, key)
    if found is None:
        kind = bands or bands_of(3, "uint8", None)
        ends = kind if bands is None else ends

        def read(sample: Sample) -> BandArray:
            return read_image(sample.image) if bands is None else read_bands(sample.image, kind)

        with ThreadPoolExecutor(workers or cores()) as pool:
            ranged = _with_percentiles(pool, samples, kind, read) if ends is None else ends
            found = (ranged, *_moments(pool, samples, ranged, read))
        _keep(path, key, found, say)
    return found


def band_table(found: Counted) -> str:
    """Range, mean and deviation of each band, in aligned rows."""
    bands, means, deviations, outside = found
    rows: list[tuple[str, ...]] = [("band", "low", "high", "mean", "std")]
    for name, *values in zip(bands.names, bands.low, bands.high, means, deviations, strict=True):
        rows.append((name, *(f"{value:.6g}" for value in values)))
    return (
        f"{aligned(rows, left=(0,))}\nmean and std on the 0..1 scale of the range; {percent(outside, 3)}% outside of it"
    )


def _key(bands: Bands | None, ends: Bands | None, samples: Sequence[Sample]) -> str:
    plain = [None if one is None else one.to_dict() for one in (bands, ends)]
    files = [fingerprint(sample.image) for sample in samples]
    return hashlib.sha256(json.dumps([VERSION, plain, files]).encode()).hexdigest()


def _with_percentiles(
    pool: ThreadPoolExecutor, samples: Sequence[Sample], bands: Bands, read: Callable[[Sample], BandArray]
) -> Bands:
    levels = _LEVELS.get(bands.dtype)

    def count(sample: Sample) -> Any:
        pixels = read(sample).reshape(-1, len(bands.names))  # (H, W, C) -> (H W, C)
        if levels is None:
            return pixels[:: -(-len(pixels) // _SAMPLE)]
        return np.stack([np.bincount(band, minlength=levels) for band in pixels.T])  # (C, levels)

    found = Bar(pool.map(count, samples), "percentiles", len(samples), unit="image")
    if levels is None:
        ends = np.percentile(np.concatenate(list(found)), PERCENTILES, axis=0)  # (2, C)
    else:
        ends = np.stack([_percentiles(counts) for counts in functools.reduce(np.add, found)], axis=1)
    for name, low, high in zip(bands.names, *ends.tolist(), strict=True):
        if low >= high:
            raise InputError(
                f"range: percentile: the 2nd and the 98th percentile of {name} are both {low:g}; declare its range: "
                "set --data.range to two numbers for each band"
            )
    return replace(bands, low=tuple(ends[0].tolist()), high=tuple(ends[1].tolist()))


def _percentiles(counts: Int64Array) -> Float64Array:
    """NumPy's interpolated percentiles of values that are given by their counts."""
    above = np.cumsum(counts)
    rank = np.asarray(PERCENTILES) / 100 * (above[-1] - 1)
    low, high = (np.searchsorted(above, side(rank), "right") for side in (np.floor, np.ceil))
    return np.asarray(low + (rank - np.floor(rank)) * (high - low), np.float64)


def _moments(
    pool: ThreadPoolExecutor, samples: Sequence[Sample], bands: Bands, read: Callable[[Sample], BandArray]
) -> tuple[tuple[float, ...], tuple[float, ...], float]:
    def add(sample: Sample) -> tuple[list[float], list[float], int, int]:
        image = read(sample)
        scaled = bands.scaled(image)
        sums = [(scaled**power).sum(axis=(0, 1)).tolist() for power in (1, 2)]
        return sums[0], sums[1], image.shape[0] * image.shape[1], bands.clipped(image)

    rows = list(Bar(pool.map(add, samples), "mean and std", len(samples), unit="image"))
    pixels = sum(row[2] for row in rows)
    means, squares = (
        [math.fsum(values) / pixels for values in zip(*(r[i] for r in rows), strict=True)] for i in (0, 1)
    )
    deviations = tuple(math.sqrt(max(0.0, s - m * m)) for m, s in zip(means, squares, strict=True))
    return tuple(means), deviations, sum(row[3] for row in rows) / (pixels * len(means))


def _read(path: Path, key: str) -> Counted | None:
    try:
        plain = parse_json(path.read_text(encoding="utf-8"))
        if plain["key"] != key:
            return None
        return Bands.from_dict(plain["bands"]), tuple(plain["mean"]), tuple(plain["std"]), float(plain["outside"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _keep(path: Path, key: str, found: Counted, say: Callable[[str], None]) -> None:
    bands, mean, std, outside = found
    plain = {"key": key, "bands": bands.to_dict(), "mean": mean, "std": std, "outside": outside}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, plain)
        say(f"bands of the training images: {path}")
    except (InputError, OSError) as error:
        say(f"bands of the training images are counted again each time, as they cannot be kept: {error}")
