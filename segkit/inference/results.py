"""The files that `segkit infer` writes for an image: label map, colours, overlay, areas, and how sure they are."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from segkit.arrays import UInt8Array
from segkit.files import replacing, write_json
from segkit.inference.annotation_files import AnnotationFiles, Packed
from segkit.inference.kinds import DEFAULT
from segkit.inference.stream import Labelled
from segkit.inference.sureness import Sureness
from segkit.io import write_png
from segkit.io.confidence import ENDING, write_confidence
from segkit.visualization import IGNORED, by_area, colorize, overlay, side_by_side, with_legend

if TYPE_CHECKING:  # it imports rasterio, which few images need, and PyTorch
    from segkit.inference.stream import Labeller
    from segkit.inference.tiling.geotiff import LargeFile


GAP = 8  # pixels between an image and its overlay


@dataclass(frozen=True)
class Wanted:
    """What is written.

    Attributes:
        kinds: Of `segkit.inference.kinds.OF_IMAGE`.
        alpha: Weight of the colours in the overlay, 0..1.
        sureness: What is wanted of the confidence.
        annotations: What the labels are handed to besides.
    """

    kinds: Collection[str] = DEFAULT
    alpha: float = 0.5
    sureness: Sureness = field(default_factory=Sureness)
    annotations: AnnotationFiles | None = None


def write_results(segmenter: Labeller, done: Labelled, stem: Path, wanted: Wanted) -> None:
    """Write the files of one image, each in one step, and its confidence if wanted.

    Args:
        segmenter: The segmenter that labelled it.
        done: Image and labels.
        stem: The files' path up to `_labels.png`, `_color.png`, `_overlay.png`, `_side_by_side.png`, `_area.json` and
            `_confidence.png`.
        wanted: Which of them.

    Raises:
        InputError: A file cannot be written.
    """
    image, sureness = done.image, wanted.sureness
    labels = sureness.labels(done)
    is_mixed = bool({"overlay", "side_by_side"} & set(wanted.kinds))
    mixed = overlay(image, labels, segmenter.palette, wanted.alpha) if is_mixed else image
    make: dict[str, Callable[[], UInt8Array]] = {
        "labels": lambda: labels,
        "color": lambda: colorize(labels, segmenter.palette),
        "overlay": lambda: _with_legend(segmenter, mixed, labels),
        "side_by_side": lambda: _with_legend(segmenter, side_by_side([image, mixed], GAP), labels),
    }
    for kind, array in make.items():
        if kind in wanted.kinds:
            write_png(_suffixed(stem, f"_{kind}.png"), array())
    if sureness.confidence and done.confidence is not None:
        write_confidence(_suffixed(stem, ENDING), done.confidence)
    if "area" in wanted.kinds:
        counts = np.bincount(labels.ravel(), minlength=IGNORED + 1)
        _write_areas(segmenter, done.path, stem, counts, labels.shape, sureness.threshold)
    if wanted.annotations is not None:
        mean = None if done.confidence is None else float(done.confidence.mean())
        wanted.annotations.add(done.path, stem, Packed(labels), mean)


def write_large_results(
    segmenter: Labeller, large: LargeFile, stem: Path, wanted: Wanted, seen: Callable[[], object]
) -> None:
    """Segment one image in tiles and write its labels, whatever is wanted, a preview of them and their areas.

    Args:
        segmenter: The network.
        large: The image, as `open_large` gives it.
        stem: The files' path up to `_labels.tif`, `_overlay.png` and `_area.json`.
        wanted: Which files.
        seen: Called after each of `large.image.forwards` forwards.

    Raises:
        InputError: The image is damaged, or a file cannot be written.
        OSError: The labels cannot be written.
    """
    packed = Packed()
    with replacing(_suffixed(stem, "_labels.tif")) as temporary:
        counts, few = large.write_labels(temporary, seen, packed.take if wanted.annotations else None)
    if "overlay" in wanted.kinds:
        image = large.preview((few.shape[0], few.shape[1]))
        mixed = overlay(image, few, segmenter.palette, wanted.alpha)
        write_png(_suffixed(stem, "_overlay.png"), _with_legend(segmenter, mixed, few))
    if "area" in wanted.kinds:
        _write_areas(segmenter, large.path, stem, counts, large.image.size)
    if wanted.annotations is not None:
        wanted.annotations.add(large.path, stem, packed)


def _with_legend(segmenter: Labeller, mixed: np.ndarray, labels: np.ndarray) -> UInt8Array:
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
