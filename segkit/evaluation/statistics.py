"""Confidence intervals of a mIoU by resampling images.

The image is the unit: the pixels of one image are not independent observations. Everything is computed from three areas
per image and class, and each resampled data set is scored by segkit's own rule: areas summed over its images, mean
over the classes that occur in its truth or prediction. (A rare class may be missing from a resampled set; it then does
not count there.) The images of the split are taken as independent draws, so frames of one video make the interval too
narrow. It does not cover the variation between training runs either.

The intervals are those of the percentile bootstrap (Efron and Tibshirani 1993, chapter 13). Two models are compared in
`comparison.py`.
"""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segkit.arrays import Float64Array, Int64Array
from segkit.errors import InputError
from segkit.evaluation.results import number_or_null
from segkit.evaluation.scores import ratio
from segkit.files import write_bytes

Number = TypeVar("Number", np.int64, np.float64)

_CHUNK = 2**22  # numbers in one array of weights, so that memory does not grow with the number of samples


@dataclass(frozen=True)
class ImageAreas:
    """Areas of each class in each image, from which intervals and comparisons are computed.

    Attributes:
        areas: int64 (N, 3, K), pixels in the intersection of truth and prediction, in the truth, in the prediction.
        names: N names of images, no name twice.

    Raises:
        InputError: The sizes disagree, there is no image, or a name occurs twice.
    """

    areas: Int64Array
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        """Refuse arrays whose sizes disagree."""
        if self.areas.ndim != 3 or self.areas.shape[1] != 3 or self.areas.dtype != np.int64 or not self.areas.size:
            raise InputError(f"areas: {self.areas.dtype} {self.areas.shape}; int64 (N, 3, K), N and K above 0, needed")
        if len(self.names) != len(self.areas) or len(set(self.names)) != len(self.names):
            raise InputError(f"areas: {len(set(self.names))} different names for {len(self.areas)} images; one each")

    @property
    def num_classes(self) -> int:
        """The number of classes, K."""
        return int(self.areas.shape[2])

    def by_name(self) -> ImageAreas:
        """The same areas sorted by name, so that random draws do not depend on the order of the files."""
        return self._picked(sorted(range(len(self.names)), key=self.names.__getitem__))

    def only(self, names: Iterable[str]) -> ImageAreas:
        """The images with these names; names without an image are skipped.

        Raises:
            InputError: No image has one of these names.
        """
        wanted = set(names)
        return self._picked([i for i, name in enumerate(self.names) if name in wanted])

    def without(self, classes: Sequence[int]) -> ImageAreas:
        """The areas of all but these classes."""
        return ImageAreas(np.delete(self.areas, list(classes), axis=2), self.names)

    def _picked(self, indices: list[int]) -> ImageAreas:
        return ImageAreas(self.areas[indices], tuple(self.names[i] for i in indices))

    @classmethod
    def from_counts(cls, images: Iterable[tuple[str, Tensor]]) -> ImageAreas:
        """From name and `segkit.evaluation.confusion.confusion_counts`, int64 (K + 2, K + 1), of each image.

        Raises:
            InputError: There are no images, or a mask held ids that are neither classes nor ignored.
        """
        return cls.from_areas((name, image_areas(counts, name)) for name, counts in images)

    @classmethod
    def from_areas(cls, images: Iterable[tuple[str, Int64Array]]) -> ImageAreas:
        """From name and areas, int64 (3, K), of each image.

        Raises:
            InputError: There are no images.
        """
        rows = list(images)
        areas = np.stack([area for _, area in rows]) if rows else np.zeros((0, 3, 0), np.int64)
        return cls(areas, tuple(name for name, _ in rows))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write an .npz file, atomically."""
        data = io.BytesIO()
        np.savez_compressed(data, areas=self.areas, names=np.array(self.names))
        write_bytes(path, data.getvalue())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ImageAreas:
        """Read what `save` wrote; nothing is unpickled.

        Raises:
            InputError: The file is absent or not of this kind.
        """
        try:
            with np.load(path, allow_pickle=False) as data:
                return cls(data["areas"], tuple(str(name) for name in data["names"]))
        except FileNotFoundError:
            raise InputError(f"{path}: no such file of image areas; check the path") from None
        except (OSError, ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise InputError(f"{path}: not a file of image areas; ImageAreas.save writes them") from error


def image_areas(counts: Tensor, name: str) -> Int64Array:
    """Areas (3, K) of one image's counts; predictions on ignored truth do not count, those of no class are misses."""
    table = torch.as_tensor(counts).cpu().numpy().astype(np.int64)
    undeclared = int(table[-1].sum())
    if undeclared:
        raise InputError(f"{name}: {undeclared} pixels of the mask are neither a class nor ignored; map them first")
    return areas_of_counts(table)


def areas_of_counts(counts: NDArray[Number]) -> NDArray[Number]:
    """Areas (..., 3, K), as `ImageAreas` has them, of counts (..., K + 2, K + 1), as `confusion_counts` makes them."""
    true = counts[..., :-2, :]  # (..., K, K + 1)
    return np.stack([true.diagonal(axis1=-2, axis2=-1), true.sum(axis=-1), true[..., :-1].sum(axis=-2)], axis=-2)


@dataclass(frozen=True)
class Interval:
    """A score with its confidence interval, as fractions 0..1 (differences: -1..1); NaN for a class without one."""

    value: float
    low: float
    high: float

    def to_dict(self) -> dict[str, float | None]:
        """Plain data; NaN is None."""
        return {name: number_or_null(getattr(self, name)) for name in ("value", "low", "high")}


@dataclass(frozen=True)
class Bootstrap:
    """Confidence intervals of one model's mIoU and K classes, with the settings of the bootstrap."""

    miou: Interval
    classes: tuple[Interval, ...]
    level: float
    num_samples: int
    seed: int
    num_images: int

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a result file."""
        return {
            "rule": "percentile bootstrap over images",
            "level": self.level,
            "samples": self.num_samples,
            "seed": self.seed,
            "images": self.num_images,
            "mIoU": self.miou.to_dict(),
            "classes": [interval.to_dict() for interval in self.classes],
        }


def bootstrap_miou(areas: ImageAreas, num_samples: int = 1000, seed: int = 0, level: float = 0.95) -> Bootstrap:
    """Confidence intervals of the mIoU and of each class's IoU, by drawing N of the N images with replacement.

    Args:
        areas: Areas of the whole split.
        num_samples: Resampled data sets; 1000 fix the second digit of the interval's ends.
        seed: Seed of the draws; equal seeds give equal intervals.
        level: Nominal coverage of the interval, 0..1.

    Raises:
        InputError: There are fewer than 2 images or 1 sample, or the level is not between 0 and 1.
    """
    check_resampling(len(areas.names), num_samples, level)
    areas = areas.by_name()
    means, classes = [], []
    for weights in bootstrap_weights(len(areas.names), num_samples, seed):
        iou = class_iou(weighted_sums(weights, areas.areas))  # (s, K)
        means.append(mean_iou(iou))
        classes.append(iou)
    exact = class_iou(areas.areas.sum(axis=0).astype(np.float64))
    return Bootstrap(
        miou=interval(float(mean_iou(exact)), np.concatenate(means), level),
        classes=tuple(interval(float(v), s, level) for v, s in zip(exact, np.concatenate(classes).T, strict=True)),
        level=level,
        num_samples=num_samples,
        seed=seed,
        num_images=len(areas.names),
    )


def class_iou(areas: Float64Array) -> Float64Array:
    """IoU (..., K) of areas (..., 3, K); NaN for classes absent from truth and prediction."""
    intersection, truth, predicted = np.moveaxis(areas, -2, 0)
    return ratio(intersection, truth + predicted - intersection)


def mean_iou(iou: Float64Array) -> Float64Array:
    """Mean (...) over the classes that have an IoU (..., K): segkit's rule; NaN where no class has one."""
    present = ~np.isnan(iou)
    return ratio(np.where(present, iou, 0).sum(axis=-1), present.sum(axis=-1))


def weighted_sums(weights: Float64Array, areas: Int64Array) -> Float64Array:
    """Areas (s, 3, K) of s data sets in which image n occurs `weights[s, n]` times.

    A product of float64 matrices: exact, because the sums of pixels are integers far below 2**53.
    """
    return (weights @ areas.reshape(len(areas), -1).astype(np.float64)).reshape(-1, *areas.shape[1:])


def bootstrap_weights(num_images: int, num_samples: int, seed: int) -> Iterator[Float64Array]:
    """How often each image is drawn, (s, N) with rows that sum to N; in chunks of samples."""
    generator = np.random.default_rng(seed)
    shares = np.full(num_images, 1 / num_images)
    for size in chunks(num_samples, num_images):
        yield generator.multinomial(num_images, shares, size).astype(np.float64)


def chunks(num_samples: int, num_images: int) -> Iterator[int]:
    """Sizes of the chunks in which samples are drawn."""
    step = max(1, _CHUNK // num_images)
    for start in range(0, num_samples, step):
        yield min(step, num_samples - start)


def interval(value: float, samples: Float64Array, level: float) -> Interval:
    """Percentile interval of samples (S,), in which NaN stands for a data set without this class."""
    kept = samples[~np.isnan(samples)]
    if np.isnan(value) or not len(kept):
        return Interval(value, float("nan"), float("nan"))
    low, high = np.quantile(kept, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high))


def check_resampling(num_images: int, num_samples: int, level: float) -> None:
    """Refuse numbers with which nothing can be resampled."""
    if num_images < 2:
        raise InputError(f"bootstrap: {num_images} image; an interval needs 2 or more to draw from")
    if num_samples < 1:
        raise InputError(f"bootstrap: {num_samples} samples; give 1 or more, 1000 are usual")
    if not 0 < level < 1:
        raise InputError(f"bootstrap: the level is {level}; give a share between 0 and 1, such as 0.95")
