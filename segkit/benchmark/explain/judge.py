"""Scores one model under many settings, on images that are read once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from segkit.arrays import Float64Array
from segkit.bands import BandArray
from segkit.benchmark.explain.setting import Setting
from segkit.benchmark.models.base import Altered, JudgedModel, in_data_ids
from segkit.benchmark.models.segkit_file import SegkitModel
from segkit.evaluation.confusion import confusion_counts
from segkit.evaluation.conventions import DEFAULT, convention_scores
from segkit.evaluation.statistics import Interval, areas_of_counts, bootstrap_weights, class_iou, interval, mean_iou
from segkit.inference.segmenter import Segmenter
from segkit.metadata.class_match import ClassMatch
from segkit.metadata.label_space import IGNORE_INDEX

_SAMPLES, _LEVEL = 200, 0.95  # of the bootstrap over images: the ends of the intervals decide nothing by their digits


class Judge:
    """Scores one model under many settings, on images that are read once.

    Args:
        model: The model.
        match: What its class numbers mean.
        images: Name, image (H, W, C) and mask, integers (H, W) of train ids, of each image.
        num_classes: K of the data.
        tick: Called after each image that a network has seen.
    """

    def __init__(
        self,
        model: JudgedModel,
        match: ClassMatch,
        images: Sequence[tuple[str, BandArray, Tensor]],
        num_classes: int,
        tick: Callable[[], Any] = lambda: None,
    ) -> None:
        self.model, self.match, self.images, self.num_classes, self._tick = model, match, images, num_classes, tick
        self._labels: dict[tuple[Any, ...], list[Tensor]] = {}  # by what they depend on
        self._weights = np.concatenate(list(bootstrap_weights(max(2, len(images)), _SAMPLES, seed=0)))

    def counts(self, setting: Setting) -> Float64Array:
        """Pairs of classes in each image (N, K + 2, K + 1)."""
        if setting.forward not in self._labels:
            self._labels[setting.forward] = self._predicted(setting)
        masks = (mask for _, _, mask in self.images)
        return np.stack(
            [self._count(*pair, setting) for pair in zip(masks, self._labels[setting.forward], strict=True)]
        )

    def forget(self, setting: Setting) -> None:
        """Keep only the labels of one setting; those of all that were tried are held until then."""
        self._labels = {setting.forward: self._labels[setting.forward]}

    def miou(self, counts: Float64Array, metric: str) -> float:
        """The mIoU of all images together."""
        return float(self._mious(counts.sum(axis=0)[None], metric)[0])

    def difference(self, before: tuple[Float64Array, str], after: tuple[Float64Array, str]) -> Interval:
        """The mIoU of `after` less that of `before` (counts, metric), paired over images."""
        weights = self._weights[:, : len(self.images)]
        a, b = (self._mious(np.tensordot(weights, counts, axes=1), metric) for counts, metric in (before, after))
        return interval(self.miou(*after) - self.miou(*before), b - a, _LEVEL)

    def _mious(self, sums: Float64Array, metric: str) -> Float64Array:
        """mIoU (S,) of S data sets' counts (S, K + 2, K + 1)."""
        if metric != DEFAULT:
            return np.array([convention_scores(one.astype(np.int64), metric).miou for one in sums])
        return mean_iou(class_iou(areas_of_counts(sums)))

    def _predicted(self, setting: Setting) -> list[Tensor]:
        model = with_setting(self.model, setting)
        made = []
        for name, image, _ in self.images:
            labels = model.labels(image, name).cpu()
            made.append(labels.to(torch.uint8) if len(self.match.table) <= IGNORE_INDEX else labels)
            self._tick()
        return made

    def _count(self, mask: Tensor, labels: Tensor, setting: Setting) -> Float64Array:
        numbers = labels.long()
        shifted = torch.where(numbers == IGNORE_INDEX, IGNORE_INDEX, numbers + setting.shift)
        shifted[(shifted < 0) | (shifted >= len(self.match.table))] = IGNORE_INDEX
        ids = in_data_ids(shifted, torch.tensor(self.match.table, dtype=torch.uint8), self.model.name, "an image")
        if setting.mask_scale != 1:
            mask, ids = (_resized(one, setting.mask_scale) for one in (mask, ids))
        return confusion_counts(mask.long(), ids.long(), self.num_classes).numpy().astype(np.float64)


def with_setting(model: JudgedModel, setting: Setting) -> JudgedModel:
    """The model as it is under a setting; one that is no segmenter keeps its own way but for the channels."""
    own = model.segmenter
    if own is not None and setting.protocol is not None:
        normalization = setting.normalization or own.normalization
        made = Segmenter(own.network, own.label_space, normalization, setting.protocol, own.device)
        model = SegkitModel(model.name, made.optimize("auto") if setting.optimized else made)
    return Altered(model) if setting.reverse else model


def _resized(labels: Tensor, scale: float) -> Tensor:
    size = [max(1, round(side * scale)) for side in labels.shape]
    return F.interpolate(labels[None, None].float(), size=size, mode="nearest-exact")[0, 0].to(labels.dtype)
