"""The parity report of an exported file: its labels, logits, cost and mIoU beside those of the network in PyTorch."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from segkit.bars import Bar
from segkit.benchmark.cost import PeakMemory, Stopwatch
from segkit.data.dataset import SegmentationDataset
from segkit.evaluation.comparison import Comparison, paired_comparison
from segkit.evaluation.confusion import confusion_counts
from segkit.evaluation.results import versions
from segkit.evaluation.statistics import ImageAreas
from segkit.inference.exported.network import open_network
from segkit.inference.segmenter import Segmenter
from segkit.ops.normalize import normalize, restore
from segkit.ops.upsample_argmax import upsample_argmax
from segkit.text import RULE, aligned, percent, points

SIZES = ((97, 129), (65, 199), (131, 75))  # height and width of the compared images: odd, as padding goes wrong there
TIMED_SIZE = (480, 480)
ROUNDS = 3  # of timing, after one that measures memory
LISTED = 5  # images that differ most

Label = Callable[[Tensor], Tensor]  # stored image (1, C, H, W) -> labels (1, H, W)


class Limit(NamedTuple):
    """What a file may differ by: least share of equal labels, largest difference as a share of the largest logit."""

    labels: float
    logits: float


# A planted fault, such as another mean, changes logits by 0.01 and more of the largest one.
LIMITS = {
    # Sums in another order: 1e-6 of the largest logit, 1e-4 in 100 layers of large features.
    "fp32": Limit(0.999, 1e-3),
    "fp16": Limit(0.98, 0.03),  # 11 bits: 5e-4 of each feature
    "bf16": Limit(0.9, 0.15),  # 8 bits: 4e-3 of each feature, which random weights do not average out
    # 256 steps over the range of a layer: clipped outliers move single logits far; the mIoU judges.
    "int8": Limit(0.7, 0.6),
}


class PairedScores:
    """Scores a network as it was trained, and exported files on the same images.

    Args:
        segmenter: The network as it was trained, with the protocol "whole".
        images: Whole images with masks.
        limit: Images at most.
    """

    def __init__(self, segmenter: Segmenter, images: SegmentationDataset, limit: int | None = None) -> None:
        self.segmenter, self.images = segmenter, images
        self.count = min(limit or len(images), len(images))
        self._exact: ImageAreas | None = None
        self._known: dict[tuple[Path, int], tuple[Comparison, list[tuple[str, float]]]] = {}

    def image(self, index: int) -> Tensor:
        """A stored image, (1, C, H, W)."""
        return self.images[index]["image"][None]

    def compare(self, path: Path) -> tuple[Comparison, list[tuple[str, float]]]:
        """The mIoU of PyTorch (A) and a file (B), and images whose share of right pixels changed most, by how much."""
        key = path, path.stat().st_mtime_ns
        if key not in self._known:
            if self._exact is None:
                self._exact = self._score(partial(_exact_labels, self.segmenter), "PyTorch, exact")
            a, b = self._exact, self._score(_labeller(path, self.segmenter), path.name)
            change = (b.areas - a.areas)[:, 0].sum(1) / np.maximum(a.areas[:, 1].sum(1), 1)  # (N, K) -> (N,)
            most = np.argsort(-np.abs(change), kind="stable")[:LISTED]
            listed = [(a.names[i], float(change[i])) for i in most if abs(change[i]) >= 1e-4]
            self._known[key] = paired_comparison(a, b, num_permutations=1000), listed
        return self._known[key]

    def _score(self, label: Label, title: str) -> ImageAreas:
        counts, classes = list[tuple[str, Tensor]](), len(self.segmenter.class_names)
        with Bar(range(self.count), title, self.count, unit="image", leave=False) as indices:
            for index in indices:
                item = self.images[index]
                one = confusion_counts(item["mask"][None], label(item["image"][None]), classes)
                counts.append((item["name"], one))
        return ImageAreas.from_counts(counts)


@dataclass
class Parity:
    """What was found.

    Attributes:
        precision: Of the file.
        max_drop: The largest loss of mIoU that is accepted, 0..1.
        sizes: Size, share of equal labels, and the largest difference as a share of the largest logit (None where the
            file has no logits).
        cost: Name -> seconds for an image of `TIMED_SIZE`, and peak bytes above those in use before it.
        comparison: Of the mIoU, PyTorch A and the file B; None without data.
        differing: Images whose share of right pixels changed most, and by how much.
        chosen_on: Number of training images by which int8's layers in float were chosen; `comparison` has others.
    """

    precision: str
    max_drop: float
    sizes: list[tuple[tuple[int, int], float, float | None]] = field(default_factory=list)
    cost: dict[str, tuple[float, int | None]] = field(default_factory=dict)
    comparison: Comparison | None = None
    differing: list[tuple[str, float]] = field(default_factory=list)
    chosen_on: int | None = None

    @property
    def over(self) -> list[str]:
        """What is over its limit; nothing: the file is proven."""
        limit, found = LIMITS[self.precision], []
        least = min(labels for _, labels, _ in self.sizes)
        most = max((logits for _, _, logits in self.sizes if logits is not None), default=0.0)
        drop = 0.0 if self.comparison is None else -self.comparison.miou.difference.value
        if least < limit.labels:
            found.append(f"only {percent(least)} % of the labels are equal, at least {percent(limit.labels, 1)} needed")
        if not most <= limit.logits:
            found.append(f"logits differ by {most:.2g} of the largest one, at most {limit.logits:g} allowed")
        if drop > self.max_drop:
            found.append(f"loses {100 * drop:.2f} points of mIoU, at most {100 * self.max_drop:g} allowed")
        return found

    def table(self) -> str:
        """All of it, for the screen."""
        rows: list[tuple[str, ...]] = [("size", "equal labels, %", "largest difference, of the largest logit"), RULE]
        for (height, width), labels, logits in self.sizes:
            rows.append((f"{height} x {width}", percent(labels, 4), "-" if logits is None else f"{logits:.2g}"))
        costs: list[tuple[str, ...]] = [("one image of {} x {}".format(*TIMED_SIZE), "ms", "relative", "peak MB"), RULE]
        first = next(iter(self.cost.values()))[0]
        for name, (seconds, peak) in self.cost.items():
            megabytes = "-" if peak is None else f"{peak / 1e6:.0f}"
            costs.append((name, f"{1e3 * seconds:.1f}", f"{seconds / first:.2f}", megabytes))
        parts = [aligned(rows), "", aligned(costs)]
        if self.comparison is not None:
            scores = f"PyTorch {percent(self.comparison.miou.a)}, file {percent(self.comparison.miou.b)}"
            parts += ["", f"{self.comparison.sentence('PyTorch', 'the file')}; {scores}"]
        if self.chosen_on is not None:
            parts.append(f"the layers in float were chosen by {self.chosen_on} training images, not by these")
        if self.differing:
            shown = ", ".join(f"{name} {points(change)}" for name, change in self.differing)
            parts.append(f"right pixels differ most, in points: {shown}")
        return "\n".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data, as FILE.parity.json has it."""
        limit = LIMITS[self.precision]
        return {
            "precision": self.precision,
            "proven": not self.over,
            "over": self.over,
            "limits": {"labels": limit.labels, "logits": limit.logits, "mIoU drop": self.max_drop},
            "sizes": [{"size": size, "labels": labels, "logits": logits} for size, labels, logits in self.sizes],
            "cost": [{"of": name, "seconds": s, "peak bytes": peak} for name, (s, peak) in self.cost.items()],
            "cost of": {"size": TIMED_SIZE, "threads": torch.get_num_threads()},
            "mIoU": None if self.comparison is None else self.comparison.to_dict(),
            "float layers chosen by": None if self.chosen_on is None else {"split": "train", "images": self.chosen_on},
            "differing": [{"image": name, "right pixels": change} for name, change in self.differing],
            "versions": versions(),
        }


def prove(path: Path, segmenter: Segmenter, parity: Parity, scores: PairedScores | None = None) -> Parity:
    """Compare an exported file with its network in PyTorch.

    Args:
        path: The file.
        segmenter: The network as it was trained, on the CPU.
        parity: With precision and limit; filled here.
        scores: With data, whose first images are then compared; without, drawn ones are.

    Raises:
        InputError: The file does not run, or its data cannot be read.
    """
    label, file = _labeller(path, segmenter), open_network(path, None, "logits")
    for number, wanted in enumerate(SIZES):
        image = _cut(scores.image(number % scores.count), wanted) if scores else drawn(segmenter, wanted)
        exact = _exact_logits(segmenter, image)
        equal = (label(image) == _upsampled(exact, segmenter, image)).float().mean().item()
        difference = None
        if "logits" in file.outputs:
            found = torch.from_numpy(file.run(_values(image, file.input_dtype), "logits"))
            difference = float(((found - exact).abs().max() / exact.abs().max()).nan_to_num(math.inf))
        parity.sizes.append(((image.shape[2], image.shape[3]), equal, difference))
    fast = segmenter.optimize("auto")
    runs: dict[str, Label] = {
        "PyTorch, exact": partial(_exact_labels, segmenter),
        f"segkit by default, {fast.precision}": partial(_exact_labels, fast),
        f"{path.suffix.lower()} {parity.precision}": label,
    }
    parity.cost = _cost(runs, drawn(segmenter, TIMED_SIZE))
    if scores is not None:
        parity.comparison, parity.differing = scores.compare(path)
    return parity


def drawn(segmenter: Segmenter, size: tuple[int, int]) -> Tensor:
    """A stored image (1, C, H, W) of smooth areas with noise over them, about the mean that the network expects."""
    generator, channels = torch.Generator().manual_seed(0), len(segmenter.normalization.mean)
    coarse = torch.randn(1, channels, size[0] // 16 + 2, size[1] // 16 + 2, generator=generator)
    fine = torch.randn(1, channels, *size, generator=generator)
    values = restore(F.interpolate(coarse, size, mode="bilinear") + 0.1 * fine, segmenter.normalization)
    bands = segmenter.normalization.bands
    return values if bands is not None and bands.dtype != "uint8" else values.round().clamp(0, 255).to(torch.uint8)


def _cut(image: Tensor, size: tuple[int, int]) -> Tensor:
    """The middle of an image, of at most `size` and with odd sides."""
    height, width = (min(most, side - (side + 1) % 2) for most, side in zip(size, image.shape[2:], strict=True))
    top, left = (image.shape[2] - height) // 2, (image.shape[3] - width) // 2
    return image[:, :, top : top + height, left : left + width]


def _values(image: Tensor, dtype: str) -> np.ndarray:
    return np.ascontiguousarray(image.numpy(), dtype)


def _exact_logits(segmenter: Segmenter, image: Tensor) -> Tensor:
    with torch.inference_mode():
        logits: Tensor = segmenter.network(normalize(image, segmenter.normalization))["out"]
    return logits.float()


def _exact_labels(segmenter: Segmenter, image: Tensor) -> Tensor:
    return _upsampled(_exact_logits(segmenter, image), segmenter, image)


def _upsampled(logits: Tensor, segmenter: Segmenter, image: Tensor) -> Tensor:
    return upsample_argmax(logits, (image.shape[2], image.shape[3]), bool(segmenter.network.align_corners))


def _labeller(path: Path, segmenter: Segmenter) -> Label:
    """The labels of a file, as it gives them, or of its logits where it gives nothing else."""
    file = open_network(path, None, "labels")
    output = "labels" if "labels" in file.outputs else "logits"

    def label(image: Tensor) -> Tensor:
        found = torch.from_numpy(file.run(_values(image, file.input_dtype), output))
        return found if output == "labels" else _upsampled(found.float(), segmenter, image)

    return label


def _cost(runs: dict[str, Label], image: Tensor) -> dict[str, tuple[float, int | None]]:
    """Seconds and peak bytes of each, in alternating rounds, so that what else the machine does hits all alike."""
    watches, memory = {name: Stopwatch("cpu") for name in runs}, {name: PeakMemory("cpu") for name in runs}
    for number in range(ROUNDS + 1):
        for name, run in runs.items():
            with nullcontext() if number else memory[name], watches[name].image():
                run(image)
    return {name: (watches[name].seconds / watches[name].images, memory[name].bytes) for name in runs}
