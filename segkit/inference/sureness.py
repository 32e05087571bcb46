"""What `segkit infer` gives on how sure the network is: confidence, all probabilities, and labels it is sure of."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from segkit.arrays import UInt8Array
from segkit.files import replacing
from segkit.visualization import IGNORED

if TYPE_CHECKING:  # it needs PyTorch
    from segkit.inference.segmenter import Segmenter, Strip
    from segkit.inference.stream import Found, Group, Labelled, Look


@dataclass(frozen=True)
class Sureness:
    """What is wanted besides labels.

    Attributes:
        confidence: A confidence map of each image, `NAME_confidence.png`.
        probabilities: The probabilities of all classes, `NAME_probabilities.npz`.
        threshold: Confidence below which a pixel gets the label 255, no class; None: none does.
        mean: The mean confidence of each image, by which images are chosen.
    """

    confidence: bool = False
    probabilities: bool = False
    threshold: float | None = None
    mean: bool = False

    @property
    def is_wanted(self) -> bool:
        """Whether labels alone do not suffice."""
        return self.confidence or self.probabilities or self.threshold is not None or self.mean

    def labels(self, done: Labelled) -> UInt8Array:
        """The labels of an image (H, W), 255 where the network is not sure enough."""
        if self.threshold is None or done.confidence is None:
            return done.labels
        return np.where(done.confidence < self.threshold, np.uint8(IGNORED), done.labels)

    def look(self, segmenter: Segmenter, stems: Mapping[Path, Path]) -> Look:
        """How images are looked at for this; `stems` has the results' path of each, up to `_probabilities.npz`."""
        if not self.probabilities:
            return lambda group: segmenter.queue_with_confidence([image for _, image in group])

        def look(group: Group) -> Found:
            found = [_written(segmenter, image, stems[path]) for path, image in group]
            return lambda: list(zip(*found, strict=True))

        return look


def _written(segmenter: Segmenter, image: np.ndarray, stem: Path) -> tuple[np.ndarray, np.ndarray]:
    size = (image.shape[0], image.shape[1], len(segmenter.class_names))
    path = stem.with_name(stem.name + "_probabilities.npz")
    return write_probabilities(path, segmenter.strips(image), size)


def write_probabilities(
    path: Path, strips: Iterable[Strip], shape: tuple[int, int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Write float16 "probabilities" (H, W, K) as an uncompressed npz, strip by strip, atomically.

    Args:
        path: The file, which `np.load` reads.
        strips: The rows of an image from top to bottom.
        shape: (H, W, K), the order of the file: all classes of a pixel lie together, as its rows are written in turn.

    Returns:
        The strips' labels and float32 confidence, (H, W) each.

    Raises:
        InputError: The file cannot be written.
    """
    # Whole arrays: parts of them, kept between large ones that come and go, would leave the memory in pieces.
    labels, confidence = np.empty(shape[:2], np.uint8), np.empty(shape[:2], np.float32)
    with (
        replacing(path) as temporary,
        zipfile.ZipFile(temporary, "w") as archive,
        archive.open("probabilities.npy", "w", force_zip64=True) as member,
    ):
        np.lib.format.write_array_header_1_0(member, {"descr": "<f2", "fortran_order": False, "shape": shape})
        for strip in strips:
            # What float16 rounds to 0 is set to it first, as NumPy takes 10 times as long to round it.
            kept = np.where(strip.probabilities > 2.0**-25, strip.probabilities, 0)
            rows = np.ascontiguousarray(kept.transpose(1, 2, 0), "<f2")  # (K, n, W) -> (n, W, K)
            member.write(rows.data)
            labels[strip.start : strip.stop], confidence[strip.start : strip.stop] = strip.labels, strip.confidence
    return labels, confidence
