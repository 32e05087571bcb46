"""Is model B really better than model A? A paired comparison on the same images, for each class and for the mIoU.

- How large: B - A with a bootstrap interval; both models are scored on the same resampled images, so that what is
  hard for both cancels.
- Whether real: a two-sided permutation test. If the models were alike, each image's two predictions could be swapped; p
  is the share of random swaps, by a coin for each image, with a difference at least as large: (1 + their number) /
  (1 + swaps), or exact over all 2^N if that is fewer (Noreen 1989; Phipson and Smyth 2010, arXiv 1603.05766).
- Many classes: 1 of 20 equal classes has p < 0.05, so p is corrected by Holm's step-down rule (1979) over the classes.

A class without truth has no difference of its own; false predictions of it count in the mIoU, as segkit's rule says.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from segkit.arrays import Float64Array
from segkit.errors import InputError
from segkit.evaluation.results import number_or_null, without_words
from segkit.evaluation.statistics import (
    ImageAreas,
    Interval,
    bootstrap_weights,
    check_resampling,
    chunks,
    class_iou,
    interval,
    mean_iou,
    weighted_sums,
)
from segkit.text import RULE, aligned, percent, points

SIGNIFICANCE = 0.05

_EQUAL = 1e-12  # differences this close count as equal, since their last digits depend on the order of summation


@dataclass(frozen=True)
class Difference:
    """B - A of one score.

    Attributes:
        a, b: The two scores, 0..1.
        difference: b - a with its interval; NaN for a class without truth.
        p: The p value of the two-sided permutation test, corrected by Holm over the classes.
    """

    a: float
    b: float
    difference: Interval
    p: float

    @property
    def verdict(self) -> str:
        """`A` or `B` if that model is better, `=` if they are not distinguishable; empty for a class without truth."""
        if np.isnan(self.p):
            return ""
        return "=" if self.p >= SIGNIFICANCE else ("B" if self.difference.value > 0 else "A")

    def to_dict(self) -> dict[str, Any]:
        """Plain data; NaN is None."""
        numbers = {name: number_or_null(getattr(self, name)) for name in ("a", "b", "p")}
        return numbers | {"difference": self.difference.to_dict(), "verdict": self.verdict}


@dataclass(frozen=True)
class Comparison:
    """The differences of mIoU and of K classes, the settings of the comparison, and the classes left out."""

    miou: Difference
    classes: tuple[Difference, ...]
    level: float
    num_samples: int
    num_permutations: int
    seed: int
    num_images: int
    without: tuple[str, ...] = ()

    @property
    def mean(self) -> str:
        """The name of the mean: "mIoU without background"."""
        return f"mIoU{without_words(self.without, range(len(self.without)))}"

    def sentence(self, a: str = "A", b: str = "B") -> str:
        """The conclusion in words, in points of mIoU, with the names of the models."""
        d = self.miou.difference
        if np.isnan(d.value):
            return f"{a} and {b} cannot be compared: no pixel of the truth or of the predictions is of a class"
        better, worse, sign = (b, a, 1) if d.value >= 0 else (a, b, -1)
        low, high = map(percent, sorted((sign * d.low, sign * d.high)))
        proof = f"({100 * self.level:g} % CI {low} to {high}, {p_value(self.miou.p)}, {self.num_images} images)"
        apart = points(abs(d.value))
        if self.miou.verdict == "=":
            return f"{a} and {b} are not distinguishable: {better} - {worse} = {apart} {self.mean} {proof}"
        return f"{better} is better than {worse} by {apart} {self.mean} {proof}"

    def table(self, class_names: Sequence[str], a: str = "A", b: str = "B") -> str:
        """Each class and the mIoU in points, aligned; the last column names which model is really better."""
        head = ("class", a, b, "difference", f"{100 * self.level:g} % CI", "p", "better")
        classes = [_cells(name, row, a, b) for name, row in zip(class_names, self.classes, strict=True)]
        note = f"better: p < {SIGNIFICANCE}, over the classes corrected by Holm; points of IoU"
        rows = [head, RULE, *classes, RULE, _cells(self.mean, self.miou, a, b)]
        return f"{aligned(rows, left=(0, len(head) - 1))}\n{note}"

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a result file."""
        return {
            "rule": "B - A; percentile bootstrap over images; permutation test by swapping the predictions of an "
            f"image, two-sided, Holm-corrected over classes; real if p < {SIGNIFICANCE}",
            "level": self.level,
            "samples": self.num_samples,
            "permutations": self.num_permutations,
            "seed": self.seed,
            "images": self.num_images,
            "without": list(self.without),
            "mIoU": self.miou.to_dict(),
            "classes": [difference.to_dict() for difference in self.classes],
        }


def paired_comparison(
    a: ImageAreas,
    b: ImageAreas,
    num_samples: int = 1000,
    num_permutations: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
) -> Comparison:
    """Compare two models on the same images.

    Args:
        a: Areas of the first model.
        b: Areas of the second, of the same images and truth, in any order.
        num_samples: Number of resampled data sets of the bootstrap.
        num_permutations: Number of swaps of the test. The least p is 1 / (1 + this), times the classes by Holm: 10,000
            are enough for 150 classes; all 2^N are taken if that is fewer.
        seed: Seed of bootstrap and test.
        level: Nominal coverage of the intervals.

    Raises:
        InputError: Images or truth differ, there are fewer than 2 images, or a number is out of range.
    """
    a, b = a.by_name(), b.by_name()
    _check_paired(a, b)
    check_resampling(len(a.names), min(num_samples, num_permutations), level)
    samples = [
        _differences(weighted_sums(weights, a.areas), weighted_sums(weights, b.areas))
        for weights in bootstrap_weights(len(a.names), num_samples, seed)
    ]
    p, total = _permutation_test(a, b, num_permutations, seed)
    p[1:] = holm(p[1:])
    rows = zip(_scores(_total(a)), _scores(_total(b)), np.concatenate(samples).T, p, strict=True)
    mean, *classes = (_difference(float(x), float(y), drawn, float(q), level) for x, y, drawn, q in rows)
    return Comparison(mean, tuple(classes), level, num_samples, total, seed, len(a.names))


def holm(p: Float64Array) -> Float64Array:
    """Correct p-values (K,) for their number by Holm's step-down rule; NaN stays NaN and does not count."""
    corrected = np.full(p.shape, np.nan)
    order = np.argsort(p)[: int((~np.isnan(p)).sum())]  # NaN sort last
    factors = np.arange(len(order), 0, -1)
    corrected[order] = np.minimum(np.maximum.accumulate(p[order] * factors), 1)
    return corrected


def p_value(p: float) -> str:
    """`p = 0.004`, `p < 0.001`."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"


def _cells(name: str, row: Difference, a: str, b: str) -> tuple[str, ...]:
    scores = percent(row.a), percent(row.b)
    if not row.verdict:
        return name, *scores, "-", "-", "-", "no truth"
    d, better = row.difference, {"A": a, "B": b, "=": ""}[row.verdict]
    return name, *scores, points(d.value), f"{points(d.low)} to {points(d.high)}", f"{row.p:.4f}", better


def _check_paired(a: ImageAreas, b: ImageAreas) -> None:
    if a.num_classes != b.num_classes:
        raise InputError(f"comparison: A has {a.num_classes} classes, B has {b.num_classes}; score both alike")
    other = sorted(set(a.names) ^ set(b.names))
    if other:
        raise InputError(
            f"comparison: {len(other)} images are in only one of A ({len(a.names)}) and B ({len(b.names)}), first "
            f"{other[0]}; compare on the same images"
        )
    different = np.flatnonzero((a.areas[:, 1] != b.areas[:, 1]).any(axis=1))
    if len(different):
        raise InputError(f"comparison: {a.names[different[0]]} has two truths; score A and B on one truth")


def _total(areas: ImageAreas) -> Float64Array:
    """Areas (3, K) of all images."""
    total: Float64Array = areas.areas.sum(axis=0).astype(np.float64)
    return total


def _scores(areas: Float64Array) -> Float64Array:
    """Mean IoU, then that of each class, (..., 1 + K), of areas (..., 3, K)."""
    iou = class_iou(areas)
    return np.concatenate([mean_iou(iou)[..., None], iou], axis=-1)


def _differences(a: Float64Array, b: Float64Array) -> Float64Array:
    """B - A (..., 1 + K) of areas (..., 3, K); NaN for classes without truth."""
    difference: Float64Array = _scores(b) - _scores(a)
    difference[..., 1:][a[..., 1, :] == 0] = np.nan
    return difference


def _difference(a: float, b: float, samples: Float64Array, p: float, level: float) -> Difference:
    value = float("nan") if np.isnan(p) else b - a
    return Difference(a, b, interval(value, samples, level), p)


def _permutation_test(a: ImageAreas, b: ImageAreas, num_permutations: int, seed: int) -> tuple[Float64Array, int]:
    """p (1 + K) of mean and classes, and the number of swaps; NaN where there is no difference to test."""
    sum_a, sum_b = _total(a), _total(b)
    observed = _differences(sum_a, sum_b)
    as_large, total = np.zeros(observed.shape), 0
    for swapped in _swaps(len(a.names), num_permutations, seed):
        moved = weighted_sums(swapped, b.areas - a.areas)  # (s, 3, K)
        drawn = _differences(sum_a + moved, sum_b - moved)
        as_large += (abs(drawn) >= abs(observed) - _EQUAL).sum(axis=0)
        total += len(swapped)
    exact = total == 2 ** len(a.names)  # the unswapped images are among them
    p = as_large / total if exact else (1 + as_large) / (1 + total)
    return np.where(np.isnan(observed), np.nan, p), total


def _swaps(num_images: int, num_permutations: int, seed: int) -> Iterator[Float64Array]:
    """Which images are swapped, (s, N) of 0 and 1: all 2^N subsets if there are not more than requested."""
    if 2**num_images <= num_permutations:
        numbers = np.arange(2**num_images)[:, None]
        yield ((numbers >> np.arange(num_images)) & 1).astype(np.float64)
        return
    generator = np.random.default_rng([seed, 1])  # another stream than the bootstrap's
    for size in chunks(num_permutations, num_images):
        yield generator.integers(0, 2, (size, num_images)).astype(np.float64)
