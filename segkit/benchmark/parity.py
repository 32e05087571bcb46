"""The parity report of an exported file: its labels, logits, cost and mIoU beside those of the network in PyTorch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from segkit.bars import Bar
from segkit.benchmark.cost import PeakMemory, Stopwatch
from segkit.data.datamodule import SegmentationDataModule
from segkit.data.samplers import EvalSampler
from segkit.evaluation.comparison import Comparison, paired_comparison
from segkit.evaluation.confusion import confusion_counts
from segkit.evaluation.results import number_or_null, versions
from segkit.evaluation.statistics import ImageAreas
from segkit.inference.exported.files import ExportedFile
from segkit.inference.exported.network import open_network
from segkit.inference.segmenter import Segmenter
from segkit.metadata.label_space import check_same_classes
from segkit.ops.normalize import normalize, restore
from segkit.ops.upsample_argmax import upsample_argmax
from segkit.text import RULE, aligned, percent, points

SIZES = ((97, 129), (65, 199), (131, 75))  # height and width of the compared images: odd, as padding goes wrong there
TIMED_SIZE = (480, 480)
ROUNDS = 3  # of timing, after one that measures memory
LISTED = 5  # images that differ most


@dataclass(frozen=True)
class Limit:
    """What a file may differ by: least share of equal labels, largest difference as a share of the largest logit."""

    labels: float
    logits: float


# A planted fault, such as ImageNet's mean in place of another, changes logits by 0.1 and more of the largest one.
LIMITS = {
    "fp32": Limit(
        0.999, 1e-3
    ),  # sums in another order: 1e-6 of the largest logit, 1e-4 in 100 layers of large features
    "fp16": Limit(0.98, 0.03),  # 11 bits: 5e-4 of each feature
    "bf16": Limit(0.9, 0.15),  # 8 bits: 4e-3 of each feature, which random weights do not average out
    "int8": Limit(
        0.7, 0.6
    ),  # 256 steps over the range of a layer: clipped outliers move single logits far; mIoU judges
}


class PairedScores:
    """Scores a network as it was trained on the test split, and exported files on the same images.

    Args:
        segmenter: The network as it was trained, with the protocol "whole".
        data: After `setup("test")`.
        limit: Images at most.

    Raises:
        InputError: The classes are not those of the data.
    """

    def __init__(self, segmenter: Segmenter, data: SegmentationDataModule, limit: int | None = None) -> None:
        check_same_classes(segmenter.class_names, data.class_names, "the checkpoint", f"--data ({data.root})")
        self.segmenter, self.data = segmenter, data
        total = len(data.datasets["test"])
        self.count = min(limit or total, total)
        self._exact: ImageAreas | None = None
        self._compared: dict[tuple[Path, int], Comparison] = {}
        self._areas: dict[Path, ImageAreas] = {}

    def image(self, index: int) -> Tensor:
        """A stored image of the split, (1, C, H, W)."""
        return self.data.datasets["test"][index]["image"][None]

    def compare(self, path: Path) -> Comparison:
        """The mIoU of PyTorch (A) and of a file (B) on the same images."""
        key = (path, path.stat().st_mtime_ns)
        if key not in self._compared:
            if self._exact is None:
                self._exact = self._score(partial(_exact_labels, self.segmenter), "PyTorch, exact")
            file = open_network(path, None, "labels")
            self._areas[path] = self._score(partial(_file_labels, file, self.segmenter), path.name)
            self._compared[key] = paired_comparison(self._exact, self._areas[path], num_permutations=1000)
        return self._compared[key]

    def differing(self, path: Path) -> list[tuple[str, float]]:
        """Images whose share of right pixels differs most, that first, with the change from PyTorch to the file."""
        assert self._exact is not None
        right, truth = self._exact.areas[:, 0].sum(1), self._exact.areas[:, 1].sum(1)  # (N, K) -> (N,)
        change = (self._areas[path].areas[:, 0].sum(1) - right) / np.maximum(truth, 1)
        order = np.argsort(-np.abs(change), kind="stable")[:LISTED]
        return [(self._exact.names[i], float(change[i])) for i in order if change[i]]

    def _score(self, label: Callable[[Tensor], Tensor], title: str) -> ImageAreas:
        loader = self.data.test_dataloader()
        assert isinstance(loader.sampler, EvalSampler)
        loader.sampler.indices = range(self.count)
        counted: list[tuple[str, Tensor]] = []
        batch: Any
        with Bar(loader, title, self.count, unit="image", leave=False) as batches:
            for batch in batches:
                counts = confusion_counts(batch["mask"], label(batch["image"]), self.data.num_classes)
                counted.append((batch["name"][0], counts))
        return ImageAreas.from_counts(counted)


@dataclass
class Parity:
    """What was found.

    Attributes:
        path, precision: Of the file.
        sizes: Size, share of equal labels, and the largest difference as a share of the largest logit (None where the
            file has no logits).
        cost: Name -> seconds for an image of `TIMED_SIZE`, and peak bytes above those in use before it.
        max_drop: The largest loss of mIoU that is accepted, 0..1.
        comparison: Of the mIoU, PyTorch A and the file B; None without data.
        differing: See `PairedScores.differing`.
    """

    path: Path
    precision: str
    max_drop: float
    sizes: list[tuple[tuple[int, int], float, float | None]] = field(default_factory=list)
    cost: dict[str, tuple[float, int | None]] = field(default_factory=dict)
    comparison: Comparison | None = None
    differing: list[tuple[str, float]] = field(default_factory=list)

    @property
    def over(self) -> list[str]:
        """What is over its limit; nothing: the file is proven."""
        limit, found = LIMITS[self.precision], []
        least = min(labels for _, labels, _ in self.sizes)
        most = max((logits for _, _, logits in self.sizes if logits is not None), default=0.0)
        if least < limit.labels:
            found.append(f"only {percent(least)} % of the labels are equal, at least {percent(limit.labels, 1)} needed")
        if not most <= limit.logits:
            found.append(f"logits differ by {most:.2g} of the largest one, at most {limit.logits:g} allowed")
        drop = 0.0 if self.comparison is None else -self.comparison.miou.difference.value
        if not drop <= self.max_drop and not math.isnan(drop):
            found.append(f"loses {100 * drop:.2f} points of mIoU, at most {100 * self.max_drop:g} allowed")
        return found

    def table(self) -> str:
        """All of it, for the screen."""
        rows: list[tuple[str, ...]] = [("size", "equal labels, %", "largest difference, of the largest logit"), RULE]
        for (height, width), labels, logits in self.sizes:
            differs = "-" if logits is None else f"{logits:.2g}"
            rows.append((f"{height} x {width}", percent(labels, 4), differs))
        size = f"{TIMED_SIZE[0]} x {TIMED_SIZE[1]}"
        costs: list[tuple[str, ...]] = [(f"one image of {size}", "ms", "relative", "peak MB"), RULE]
        first = next(iter(self.cost.values()))[0]
        for name, (seconds, peak) in self.cost.items():
            megabytes = "-" if peak is None else f"{peak / 1e6:.0f}"
            costs.append((name, f"{1e3 * seconds:.1f}", f"{seconds / first:.2f}", megabytes))
        parts = [aligned(rows), "", aligned(costs)]
        if self.comparison is not None:
            parts += ["", f"{self.comparison.sentence('PyTorch', 'the file')}; PyTorch "
                      f"{percent(self.comparison.miou.a)}, file {percent(self.comparison.miou.b)}"]  # fmt: skip
            shown = ", ".join(f"{name} {points(change)}" for name, change in self.differing)
            parts += [f"right pixels differ most, in points: {shown}"] if shown else []
        return "\n".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        limit = LIMITS[self.precision]
        return {
            "precision": self.precision,
            "proven": not self.over,
            "over": self.over,
            "limits": {"equal labels": limit.labels, "logits": limit.logits, "mIoU drop": self.max_drop},
            "sizes": [
                {"size": list(size), "equal labels": labels,
                 "logits": None if logits is None else number_or_null(logits)}
                for size, labels, logits in self.sizes
            ],
            "cost": {
                "size": list(TIMED_SIZE),
                "threads": torch.get_num_threads(),
                "rows": [{"name": n, "seconds": s, "peak bytes": peak} for n, (s, peak) in self.cost.items()],
            },
            "mIoU": None if self.comparison is None else self.comparison.to_dict(),
            "differing": [{"image": name, "right pixels": change} for name, change in self.differing],
            "versions": versions(),
        }  # fmt: skip


def prove(
    path: Path, precision: str, segmenter: Segmenter, max_drop: float, scores: PairedScores | None = None
) -> Parity:
    """Compare an exported file with its network in PyTorch.

    Args:
        path: The file.
        precision: Of the file: fp32, fp16, bf16 or int8.
        segmenter: The network as it was trained, on the CPU.
        max_drop: See `Parity`.
        scores: With data, whose first images are then compared; without, drawn ones are.

    Raises:
        InputError: The file does not run, or its data cannot be read.
    """
    parity = Parity(path, precision, max_drop)
    labelling, logit_giving = open_network(path, None, "labels"), open_network(path, None, "logits")
    for number, size in enumerate(SIZES):
        image = _cut(scores.image(number % scores.count), size) if scores else drawn(segmenter, size)
        parity.sizes.append((_size(image), *_compare(labelling, logit_giving, segmenter, image)))
    fast = segmenter.optimize("auto")
    parity.cost = _cost(
        {
            "PyTorch, exact": partial(_exact_labels, segmenter),
            f"segkit by default, {fast.precision}": partial(_exact_labels, fast),
            f"{path.suffix.lower()} {precision}": partial(_file_labels, labelling, segmenter),
        },
        drawn(segmenter, TIMED_SIZE),
    )
    if scores is not None:
        parity.comparison, parity.differing = scores.compare(path), scores.differing(path)
    return parity


def drawn(segmenter: Segmenter, size: tuple[int, int]) -> Tensor:
    """A stored image (1, C, H, W) of smooth areas with noise over them, about the mean that the network expects."""
    generator = torch.Generator().manual_seed(0)
    channels = len(segmenter.normalization.mean)
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


def _compare(
    labelling: ExportedFile, logit_giving: ExportedFile, segmenter: Segmenter, image: Tensor
) -> tuple[float, float | None]:
    """Share of equal labels, and the largest difference as a share of the largest logit."""
    equal = (_file_labels(labelling, segmenter, image) == _exact_labels(segmenter, image)).float().mean().item()
    if "logits" not in logit_giving.outputs:
        return equal, None
    expected, found = _exact_logits(segmenter, image), _run(logit_giving, image, "logits").float()
    difference = float((found - expected).abs().max() / expected.abs().max())
    return equal, math.inf if math.isnan(difference) else difference


def _exact_logits(segmenter: Segmenter, image: Tensor) -> Tensor:
    with torch.inference_mode():
        logits: Tensor = segmenter.network(normalize(image, segmenter.normalization))["out"]
    return logits.float()


def _exact_labels(segmenter: Segmenter, image: Tensor) -> Tensor:
    return upsample_argmax(_exact_logits(segmenter, image), _size(image), _align(segmenter))


def _file_labels(file: ExportedFile, segmenter: Segmenter, image: Tensor) -> Tensor:
    if "labels" in file.outputs:
        return _run(file, image, "labels")
    return upsample_argmax(_run(file, image, "logits").float(), _size(image), _align(segmenter))


def _run(file: ExportedFile, image: Tensor, output: str) -> Tensor:
    return torch.from_numpy(file.run(np.ascontiguousarray(image.numpy(), file.input_dtype), output))


def _size(image: Tensor) -> tuple[int, int]:
    return image.shape[2], image.shape[3]


def _align(segmenter: Segmenter) -> bool:
    return bool(segmenter.network.align_corners)


def _cost(runs: Mapping[str, Callable[[Tensor], Tensor]], image: Tensor) -> dict[str, tuple[float, int | None]]:
    """Seconds and peak bytes of each, in alternating rounds, so that what else the machine does hits all alike."""
    watches, memory = {name: Stopwatch("cpu") for name in runs}, {name: PeakMemory("cpu") for name in runs}
    for name, run in runs.items():
        with memory[name], watches[name].image():
            run(image)
    for _ in range(ROUNDS):
        for name, run in runs.items():
            with watches[name].image():
                run(image)
    return {name: (watches[name].seconds / watches[name].images, memory[name].bytes) for name in runs}
