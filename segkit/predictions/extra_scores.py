"""Further scores of folders: an interval for every IoU, and the boundary IoU."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from segkit.bars import Bar
from segkit.evaluation.boundary import BOUNDARY_RULE, DILATION_RATIO
from segkit.evaluation.results import number_or_null, without_words
from segkit.evaluation.statistics import (
    Bootstrap,
    ImageAreas,
    Interval,
    bootstrap_miou,
    class_iou,
    mean_iou,
)
from segkit.predictions.folders import FolderScores, Reading
from segkit.predictions.pairs import LabelPair
from segkit.predictions.scoring import boundary_areas_of_pairs
from segkit.text import RULE, aligned, percent


@dataclass(frozen=True)
class ExtraScores:
    """Further scores beside the mIoU: confidence intervals and the boundary IoU.

    Attributes:
        areas: Areas of each image.
        boundary: Areas of the boundaries; None = not requested.
        interval: Interval of the IoU; None = not requested, or there is only one image.
        boundary_interval: Interval of the boundary IoU.
        class_names: Names of the classes that these scores belong to.
        heading: The name of their mean.
    """

    areas: ImageAreas
    boundary: ImageAreas | None
    interval: Bootstrap | None
    boundary_interval: Bootstrap | None
    class_names: tuple[str, ...]
    heading: str

    def to_dict(self) -> dict[str, Any]:
        """Keys for a result file."""
        names = {"class_names": list(self.class_names)}
        found: dict[str, Any] = {} if self.interval is None else {"bootstrap": self.interval.to_dict() | names}
        if self.boundary is not None:
            *iou, mean = map(number_or_null, _iou(self.boundary))
            found["boundary"] = {
                "rule": BOUNDARY_RULE,
                "dilation_ratio": DILATION_RATIO,
                "mIoU": mean,
                "classes": iou,
            } | names
            if self.boundary_interval is not None:
                found["boundary"]["bootstrap"] = self.boundary_interval.to_dict()
        return found

    def table(self) -> str:
        """A table of each class's IoU and boundary IoU with their intervals, in points."""
        columns = [_column("IoU", self.areas, self.interval)]
        if self.boundary is not None:
            columns.append(_column("boundary IoU", self.boundary, self.boundary_interval))
        head, *classes, mean = zip(["class", *self.class_names, self.heading], *columns, strict=True)
        return aligned([head, RULE, *classes, RULE, mean])


def extra_scores(
    scored: FolderScores, boundary: bool = False, bootstrap: int | None = None, without: Sequence[int] = ()
) -> ExtraScores:
    """Compute intervals and boundary IoU of the images that were scored.

    Args:
        scored: What `score_folders` returned.
        boundary: Read the images once more, for their boundary IoU (Cheng et al. 2021).
        bootstrap: Resampled data sets for the 95 % intervals; None = no intervals.
        without: Classes to leave out, of the means and of these scores as a whole.

    Raises:
        InputError: No image was scored, or there are fewer than 1 resampled sets.
    """
    areas, all_names = ImageAreas.from_areas(scored.areas).without(without), scored.reading.space.class_names
    heading = f"mean{without_words(all_names, without)}"
    called = tuple(name for i, name in enumerate(all_names) if i not in without), heading
    names, outlines = set(areas.names), None
    if boundary:
        outlines = _boundaries([pair for pair in scored.pairing.pairs if pair.name in names], scored.reading)
        outlines = outlines.without(without)
    if bootstrap is None or len(names) < 2:
        return ExtraScores(areas, outlines, None, None, *called)
    of_outlines = None if outlines is None else bootstrap_miou(outlines, bootstrap)
    return ExtraScores(areas, outlines, bootstrap_miou(areas, bootstrap), of_outlines, *called)


def _boundaries(pairs: Sequence[LabelPair], reading: Reading) -> ImageAreas:
    spaces = reading.space_of(reading.truth_ids), reading.space_of(reading.prediction_ids)
    areas = boundary_areas_of_pairs(pairs, *spaces, reading.workers)
    return ImageAreas.from_areas(Bar(areas, total=len(pairs), unit="image", desc="boundary"))


def _iou(areas: ImageAreas) -> list[float]:
    """The IoU of each class and, last, their mean."""
    iou = class_iou(areas.areas.sum(axis=0).astype(float))
    return [*iou.tolist(), float(mean_iou(iou))]


def _column(title: str, areas: ImageAreas, found: Bootstrap | None) -> list[str]:
    if found is None:
        return [title, *map(percent, _iou(areas))]
    return [f"{title} ({100 * found.level:g} % CI)", *map(_with_ends, [*found.classes, found.miou])]


def _with_ends(interval: Interval) -> str:
    if math.isnan(interval.value):
        return "-"
    return f"{percent(interval.value)} ({percent(interval.low):>5} to {percent(interval.high):>5})"
