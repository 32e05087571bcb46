"""How fast `segkit benchmark score` is, against mmsegmentation's and torchmetrics' updates: prints a Markdown table.

    python scripts/benchmark_score.py

Label maps of 1024 x 2048 are drawn, 19 classes with wavy borders, as Cityscapes has; predictions are the truth with
borders moved. Every contestant runs once in each round, one after the other, and a ratio is the median over the rounds
of the ratios within a round: a machine that others use too is then equally slow for all.

Counting: label maps in memory, one thread. mmsegmentation's formula is restated from its IoUMetric (mask, three histc)
and gets int64, as its argmax gives; so does torchmetrics' MulticlassJaccardIndex(ignore_index=255). segkit's counts
are made from the bytes that a PNG holds. Files: PNG pairs to scores, the operating system's file cache being warm.
"""

import argparse
import contextlib
import io
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import cv2
import numpy as np
import torch
from benchmark_common import header, measure, times_table
from PIL import Image
from torch import Tensor
from torchmetrics.classification import MulticlassJaccardIndex

from segkit.arrays import UInt8Array
from segkit.cli import main as segkit
from segkit.evaluation.confusion import confusion_counts
from segkit.io import read_label, write_png
from segkit.machine import cores
from segkit.metadata.label_space import numbered_space
from segkit.predictions.pairs import find_pairs
from segkit.predictions.scoring import score_pairs

PACKAGES = ("segkit", "python", "torch", "numpy", "opencv-python-headless", "pillow")

IGNORED = 255


def main() -> None:
    """Measure and print."""
    options = parse()
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    masks = [draw(rng, options) for _ in range(options.images)]
    labels = [disturbed(rng, mask, options.classes) for mask in masks]
    pixels = sum(mask.size for mask in masks)
    with tempfile.TemporaryDirectory() as folder:
        write_files(Path(folder), masks, labels)
        tables = [
            ("Counting, label maps in memory, one thread", counting(masks, labels, options.classes)),
            ("PNG files to scores", from_files(Path(folder), options.classes)),
        ]
        print(header(PACKAGES))
        for title, contestants in tables:
            print(times_table(title, "Mpx/s", measure(contestants, options.rounds), lambda s: pixels / s / 1e6))


def parse() -> argparse.Namespace:
    """Sizes and rounds."""
    parser = argparse.ArgumentParser(description="Speed of scoring label maps.")
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--height", type=int, default=1024)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--classes", type=int, default=19)
    parser.add_argument("--rounds", type=int, default=7)
    return parser.parse_args()


def draw(rng: np.random.Generator, options: argparse.Namespace) -> UInt8Array:
    """A label map of patches with wavy borders, an eighth of them ignored."""
    height, width = options.height, options.width
    patches = rng.integers(0, options.classes, (height // 64 + 1, width // 64 + 1)).astype(np.uint8)
    patches[rng.random(patches.shape) < 0.125] = IGNORED
    waves = [cv2.GaussianBlur(rng.normal(size=(height, width)).astype(np.float32), (0, 0), 8) * 600 for _ in range(2)]
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    smooth = cv2.resize(patches, (width, height), interpolation=cv2.INTER_NEAREST)
    moved = cv2.remap(smooth, columns + waves[0], rows + waves[1], cv2.INTER_NEAREST, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(moved, np.uint8)


def disturbed(rng: np.random.Generator, mask: UInt8Array, classes: int) -> UInt8Array:
    """A prediction: the truth moved by some pixels, a class everywhere."""
    labels = np.roll(mask, (int(rng.integers(2, 6)), int(rng.integers(2, 6))), (0, 1))
    return np.where(labels == IGNORED, np.uint8(rng.integers(classes)), labels).astype(np.uint8)


def write_files(folder: Path, masks: list[UInt8Array], labels: list[UInt8Array]) -> None:
    """Truth as Pillow writes it (filtered, as Cityscapes' and ADE20K's files are), predictions as segkit does."""
    (folder / "truth").mkdir()
    for i, (mask, predicted) in enumerate(zip(masks, labels, strict=True)):
        Image.fromarray(mask).save(folder / "truth" / f"{i}.png")
        write_png(folder / "found" / f"{i}.png", predicted)


def mmseg_areas(pred: Tensor, mask: Tensor, classes: int) -> tuple[Tensor, ...]:
    """The areas of mmsegmentation 1.2.2, mmseg/evaluation/metrics/iou_metric.py, intersect_and_union."""
    valid = mask != IGNORED
    pred, mask = pred[valid], mask[valid]
    same = pred[pred == mask]
    inter, found, true = (
        torch.histc(values.float(), bins=classes, min=0, max=classes - 1) for values in (same, pred, mask)
    )
    return inter, found + true - inter, found, true


def counting(masks: list[UInt8Array], labels: list[UInt8Array], classes: int) -> dict[str, Callable[[], object]]:
    """Contestants over all images; the first is what the others are compared with."""
    narrow = [(torch.from_numpy(m), torch.from_numpy(p)) for m, p in zip(masks, labels, strict=True)]
    wide = [(m.long(), p.long()) for m, p in narrow]
    checked = MulticlassJaccardIndex(classes, ignore_index=IGNORED)
    unchecked = MulticlassJaccardIndex(classes, ignore_index=IGNORED, validate_args=False)
    return {
        "segkit, confusion_counts": lambda: [confusion_counts(m, p, classes) for m, p in narrow],
        "mmsegmentation's formula": lambda: [mmseg_areas(p, m, classes) for m, p in wide],
        "torchmetrics update": lambda: [checked.update(p, m) for m, p in wide],
        "torchmetrics update, validate_args=False": lambda: [unchecked.update(p, m) for m, p in wide],
    }


def from_files(folder: Path, classes: int) -> dict[str, Callable[[], object]]:
    """Contestants from files to counts or scores."""
    pairs, space = find_pairs(folder / "found", folder / "truth").pairs, numbered_space(classes)
    arguments = ["benchmark", "score", str(folder / "found"), str(folder / "truth"), "--labels", "none"]
    arguments += ["--num_classes", str(classes), "--output", str(folder / "result.json")]

    def command(*more: str) -> None:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            assert segkit([*arguments, *more]) == 0

    def peer() -> None:
        for pair in pairs:
            mask, labels = (torch.from_numpy(np.array(Image.open(p))).long() for p in (pair.truth, pair.prediction))
            mmseg_areas(labels, mask, classes)

    return {
        "segkit benchmark score, 1 thread": lambda: command("--workers", "1"),
        f"segkit benchmark score, {cores()} threads": command,
        "of it: decoding alone, 1 thread": lambda: [(read_label(p.truth), read_label(p.prediction)) for p in pairs],
        "of it: decoding and counting, 1 thread": lambda: list(score_pairs(pairs, space, workers=1)),
        "Pillow, then mmsegmentation's formula": peer,
    }


if __name__ == "__main__":
    main()
