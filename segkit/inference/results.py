"""The files that `segkit infer` writes for an image: label map, colours, overlay, areas, and how sure they are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from segkit.arrays import UInt8Array
from segkit.files import replacing, write_json
from segkit.inference.stream import Labelled
from segkit.inference.sureness import Sureness
from segkit.io import write_png
from segkit.io.confidence import ENDING, write_confidence
from segkit.visualization import IGNORED, by_area, colorize, overlay, with_legend

if TYPE_CHECKING:  # it imports rasterio, which few images need, and PyTorch
    from segkit.inference.stream import Labeller
    from segkit.inference.tiling.geotiff import LargeFile


def write_results(
    segmenter: Labeller,
    done: Labelled,
    stem: Path,
    alpha: float = 0.5,
    sureness: Sureness = Sureness(),  # noqa: B008  (frozen)
) -> None:
    """Write label map, colours, overlay and areas of one image, and its confidence if wanted, each in one step.

    Args:
        segmenter: The segmenter that labelled it.
        done: Image and labels.
        stem: The files' path up to `_labels.png`, `_color.png`, `_overlay.png`, `_area.json` and `_confidence.png`.
        alpha: Weight of the colours in the overlay, 0..1.
        sureness: What is wanted of the confidence.

    Raises:
        InputError: A file cannot be written.
    """
    image, labels = done.image, sureness.labels(done)
    write_png(_suffixed(stem, "_labels.png"), labels)
    write_png(_suffixed(stem, "_color.png"), colorize(labels, segmenter.palette))
    write_png(_suffixed(stem, "_overlay.png"), _drawn(segmenter, image, labels, alpha))
    if sureness.confidence and done.confidence is not None:
        write_confidence(_suffixed(stem, ENDING), done.confidence)
    counts = np.bincount(labels.ravel(), minlength=IGNORED + 1)
    _write_areas(segmenter, done.path, stem, counts, labels.shape, sureness.threshold)


def write_large_results(
    segmenter: Labeller, large: LargeFile, stem: Path, alpha: float, seen: Callable[[], object]
) -> None:
    """Segment one image in tiles and write its labels, a preview of them and their areas.

    Args:
        segmenter: The network.
        large: The image, as `open_large` gives it.
        stem: The files' path up to `_labels.tif`, `_overlay.png` and `_area.json`.
        alpha: Weight of the colours in the overlay, 0..1.
        seen: Called after each of `large.image.forwards` forwards.

    Raises:
        InputError: The image is damaged, or a file cannot be written.
        OSError: The labels cannot be written.
    """
    with replacing(_suffixed(stem, "_labels.tif")) as temporary:
        counts, few = large.write_labels(temporary, seen)
    image = large.preview((few.shape[0], few.shape[1]))
    write_png(_suffixed(stem, "_overlay.png"), _drawn(segmenter, image, few, alpha))
    _write_areas(segmenter, large.path, stem, counts, large.image.size)


def _drawn(segmenter: Labeller, image: np.ndarray, labels: np.ndarray, alpha: float) -> UInt8Array:
    mixed = overlay(image, labels, segmenter.palette, alpha)
    return with_legend(mixed, labels, segmenter.class_names, segmenter.palette)


def _write_areas(
    segmenter: Labeller,
    path: Path,
    stem: Path,
    counts: np.ndarray,
    size: tuple[int, ...],
    threshold: float | None = None,
) -> None:
    """Write how many of the pixels of an image of (H, W) each train id has: `counts`."""
    height, width = size
    total = height * width
    classes = [
        {"id": i, "name": segmenter.class_names[i], "pixels": int(counts[i]), "share": int(counts[i]) / total}
        for i in by_area(counts[:IGNORED])
    ]
    how = {"protocol": segmenter.protocol.to_dict(), "precision": segmenter.precision}
    found: dict[str, Any] = {"image": str(path), "height": height, "width": width, **how, "classes": classes}
    if threshold is not None:
        none = int(counts[IGNORED])
        found |= {"threshold": threshold, "no_class": {"pixels": none, "share": none / total}}
    write_json(_suffixed(stem, "_area.json"), found)


def _suffixed(stem: Path, suffix: str) -> Path:
    return stem.with_name(stem.name + suffix)
