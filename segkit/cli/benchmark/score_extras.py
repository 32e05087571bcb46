"""`segkit benchmark score --boundary --bootstrap N --plot`: outlines, how sure each IoU is, and what is confused."""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from segkit.bars import Bar
from segkit.errors import InputError
from segkit.evaluation.boundary import BOUNDARY_RULE, DILATION_RATIO
from segkit.evaluation.confusion import ConfusionMatrix
from segkit.evaluation.results import ConfusedPair, most_confused_pairs, number_or_null, pairs_table
from segkit.evaluation.statistics import Bootstrap, ImageAreas, Interval, bootstrap_miou, class_iou, mean_iou
from segkit.files import free_path
from segkit.metadata.label_space import LabelSpace
from segkit.predictions.pairs import Pair
from segkit.predictions.scoring import boundary_areas_of_pairs, train_id_space
from segkit.text import RULE, aligned, percent

PAIRS = 10  # most confused, of each order


def check_extras(options: argparse.Namespace) -> None:
    """Refuse wrong values before anything is read."""
    if options.bootstrap is not None and options.bootstrap < 1:
        raise InputError(f"--bootstrap is {options.bootstrap}; allowed is 1 or more, 1000 is usual")


class ExtraScores:
    """What the options ask for, of the images that were scored.

    Args:
        options: of the command.
        space: classes and raw values of the truth.
        areas: of the images that were scored.
        pairs: their files, and maybe others.
        confusion: of those images.
    """

    def __init__(
        self,
        options: argparse.Namespace,
        space: LabelSpace,
        areas: ImageAreas,
        pairs: Sequence[Pair],
        confusion: ConfusionMatrix,
    ) -> None:
        self.options, self.space, self.areas, self.matrix = options, space, areas, confusion.matrix.cpu().numpy()
        scored = set(areas.names)
        self.boundary = self._boundaries([p for p in pairs if p.name in scored]) if options.boundary else None
        sampled = options.bootstrap is not None and len(areas.names) > 1
        self.interval = bootstrap_miou(areas, options.bootstrap) if sampled else None
        self.boundary_interval = bootstrap_miou(self.boundary, options.bootstrap) if sampled and self.boundary else None

    def result(self) -> dict[str, Any]:
        """Keys for the result file."""
        found: dict[str, Any] = {}
        if self.interval is not None:
            found["bootstrap"] = self.interval.to_dict()
        if self.boundary is not None:
            iou, mean = _scores(self.boundary)
            found["boundary"] = {
                "rule": BOUNDARY_RULE,
                "dilation_ratio": DILATION_RATIO,
                "mIoU": number_or_null(mean),
                "classes": [number_or_null(value) for value in iou],
            }
            if self.boundary_interval is not None:
                found["boundary"]["bootstrap"] = self.boundary_interval.to_dict()
        if self.options.plot:
            found["most_confused"] = {by: [vars(pair) for pair in pairs] for by, pairs in self._confused().items()}
        return found

    def text(self) -> str:
        """Tables to print; empty where nothing was asked for."""
        parts = []
        if self.options.bootstrap is not None and self.interval is None:
            parts.append("no interval: one image cannot be resampled")
        if self.interval is not None or self.boundary is not None:
            parts.append(self._iou_table())
        if self.options.plot:
            pixels, share = (pairs_table(pairs) for pairs in self._confused().values())
            parts.append(f"most confused pairs, by pixels\n{pixels}\n\nand by share of the true class\n{share}")
        return "".join(f"\n{part}\n" for part in parts)

    def write(self, result: Path) -> list[Path]:
        """Write the areas that `segkit benchmark compare` takes, and the plot, beside the result file."""
        written = []
        if self.interval is not None:
            written.append(free_path(result.with_suffix(".npz")))
            self.areas.save(written[-1])
        if self.options.plot:
            from segkit.evaluation.plots import confusion_figure, save_figure  # and with it, matplotlib

            written.append(free_path(result.with_name(f"{result.stem}-confusion.png")))
            save_figure(confusion_figure(self.matrix, self.space.class_names), written[-1])
        return written

    def _boundaries(self, pairs: Sequence[Pair]) -> ImageAreas:
        truth, predictions = (
            self.space if ids == "raw" else train_id_space(self.space)
            for ids in (self.options.truth, self.options.predictions)
        )
        areas = boundary_areas_of_pairs(pairs, truth, predictions, self.options.workers)
        return ImageAreas.from_areas(Bar(areas, total=len(pairs), unit="image", desc="boundary"))

    def _confused(self) -> dict[str, list[ConfusedPair]]:
        names = self.space.class_names
        return {
            "pixels": most_confused_pairs(self.matrix, names, PAIRS, "pixels"),
            "share": most_confused_pairs(self.matrix, names, PAIRS, "share"),
        }

    def _iou_table(self) -> str:
        """Class, IoU with its interval, boundary IoU with its own; in points."""
        columns = [_column("IoU", self.areas, self.interval)]
        if self.boundary is not None:
            columns.append(_column("boundary IoU", self.boundary, self.boundary_interval))
        head, *classes, mean = zip(["class", *self.space.class_names, "mean"], *columns, strict=True)
        return aligned([head, RULE, *classes, RULE, mean])


def _scores(areas: ImageAreas) -> tuple[list[float], float]:
    iou = class_iou(areas.areas.sum(axis=0).astype(float))
    return iou.tolist(), float(mean_iou(iou))


def _column(title: str, areas: ImageAreas, found: Bootstrap | None) -> list[str]:
    iou, mean = _scores(areas)
    if found is None:
        return [title, *(percent(value) for value in [*iou, mean])]
    level = f"{title} ({100 * found.level:g} % CI)"
    return [level, *(_with_ends(interval) for interval in [*found.classes, found.miou])]


def _with_ends(interval: Interval) -> str:
    if math.isnan(interval.value):
        return "-"
    low, high = percent(interval.low), percent(interval.high)
    return f"{percent(interval.value)} ({low:>5} to {high:>5})"
