"""The mIoU of a model on the images of the benchmark's tests, by loops and NumPy only."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES, IMAGES = 4, 5  # of tests/cli/conftest.py


def rows_of(folder: Path) -> list[dict]:
    return json.loads((folder / "benchmark.json").read_text())["rows"]


def plain_miou(
    folder: Path, label: Callable[[np.ndarray], np.ndarray], data: str = "data", images: int = IMAGES
) -> float:
    """Mean over the classes that occur.

    Args:
        folder: That of the fixture `benchmark_folder`.
        data: Its folder of data.
        images: Their number.
        label: Labels (H, W) of an image uint8 (H, W, 3); what is no class counts as none.
    """
    areas = np.zeros((CLASSES, 3))
    for i in range(images):
        truth = np.asarray(Image.open(folder / f"{data}/labels/test/{i}.png"))
        labels = label(np.asarray(Image.open(folder / f"{data}/images/test/{i}.png")))
        for k in range(CLASSES):
            mine, theirs = (labels == k) & (truth != 255), truth == k
            areas[k] += (mine & theirs).sum(), mine.sum(), theirs.sum()
    union = areas[:, 1] + areas[:, 2] - areas[:, 0]
    return float(np.mean([areas[k, 0] / union[k] for k in range(CLASSES) if union[k]]))
