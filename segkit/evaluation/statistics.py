"""How sure a mIoU is: confidence intervals by resampling images.

The image is the unit: pixels of one image are no independent observations. Everything is computed from three areas
per image and class, and each resampled data set is scored by segkit's own rule: areas summed over its images, mean
over the classes that occur in its truth or prediction. (A rare class may be missing from a resampled set; it then does
not count there.) The split itself is taken as drawn at random, image by
image: frames of one video are alike, and make the interval too narrow. Another training run is not in it either.

The intervals are those of the percentile bootstrap (Efron and Tibshirani 1993, chapter 13). Two models are compared in
`comparison.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from segkit.arrays import Float64Array, Int64Array
from segkit.errors import InputError
from segkit.evaluation.image_areas import ImageAreas
from segkit.evaluation.results import number_or_null

_CHUNK = 2**22  # numbers in one array of weights, so that memory does not grow with the number of samples


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
    """Confidence intervals of one model's scores: mIoU and K classes, and what they were computed with."""

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
        areas: of the whole split.
        num_samples: resampled data sets; 1000 settle the second digit of the interval's ends.
        seed: of the drawing; equal seeds give equal intervals.
        level: that the interval is meant to cover, 0..1.

    Raises:
        InputError: there are fewer than 2 images or 1 sample, or the level is not between 0 and 1.
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
    union = truth + predicted - intersection
    iou = np.full(union.shape, np.nan)
    np.divide(intersection, union, out=iou, where=union > 0)
    return iou


def mean_iou(iou: Float64Array) -> Float64Array:
    """Mean (...) over the classes that have an IoU (..., K): segkit's rule; NaN where none has."""
    present = ~np.isnan(iou)
    total, count = np.where(present, iou, 0).sum(axis=-1), present.sum(axis=-1)
    return np.asarray(np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0))


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
    """Sizes of the parts in which samples are drawn."""
    step = max(1, _CHUNK // num_images)
    for start in range(0, num_samples, step):
        yield min(step, num_samples - start)


def interval(value: float, samples: Float64Array, level: float) -> Interval:
    """Percentile interval of samples (S,), in which NaN is a data set without this class."""
    kept = samples[~np.isnan(samples)]
    if np.isnan(value) or not len(kept):
        return Interval(value, float("nan"), float("nan"))
    low, high = np.quantile(kept, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high))


def check_resampling(num_images: int, num_samples: int, level: float) -> None:
    """Refuse what cannot be resampled, in one line."""
    if num_images < 2:
        raise InputError(f"bootstrap: {num_images} image; an interval needs 2 or more to draw from")
    if num_samples < 1:
        raise InputError(f"bootstrap: {num_samples} samples; give 1 or more, 1000 are usual")
    if not 0 < level < 1:
        raise InputError(f"bootstrap: the level is {level}; give a share between 0 and 1, such as 0.95")
