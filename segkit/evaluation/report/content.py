"""What a report shows, as plain data: gathered from result files, run folders and predictions, and drawn by `page.py`.

Every part may be absent: a report of what is there is still made, and `Subject.missing` says what is not and why.

Letters: N images, K classes, V logged values, h w pixels of a reduced image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from segkit.arrays import Int64Array, UInt8Array
from segkit.evaluation.comparison import Comparison
from segkit.evaluation.statistics import Bootstrap
from segkit.metadata.label_space import LabelSpace

LONGEST = 512  # pixels of an example's longer side; larger images are reduced, labels by nearest neighbour

CLASS_IOU = "val/IoU/"  # and the name of a class: a column of a run's `metrics.csv`

Reason = Literal["worst", "uncertain", "random", "mislabelled"]


@dataclass(frozen=True)
class Example:
    """One image, reduced to at most `LONGEST` pixels a side.

    Attributes:
        name: Name of the image in its data set.
        reasons: Why it is shown.
        words: What is wrong, in words: "road taken for sidewalk: 31 % of its pixels"; "" without truth.
        miou: Mean IoU of the image's own classes, 0..1; None without truth.
        confidence_mean: Mean confidence of its pixels, 0..1; None without confidence.
        image: uint8 (h, w, 3) RGB; None if the image file is gone.
        truth: Train ids, uint8 (h, w), 255 = ignored; None without truth.
        labels: Train ids, uint8 (h, w), 255 = no class.
        confidence: uint8 (h, w), confidence times 255; None where it is not known.
        box: (top, left, bottom, right) in pixels of `labels`, of what looks mislabelled; None otherwise.
    """

    name: str
    reasons: tuple[Reason, ...]
    words: str
    miou: float | None
    confidence_mean: float | None
    image: UInt8Array | None
    truth: UInt8Array | None
    labels: UInt8Array
    confidence: UInt8Array | None
    box: tuple[int, int, int, int] | None = None


@dataclass(frozen=True)
class Group:
    """The mIoU over some of the pixels, in rows: by the size of their object, or by their distance to a boundary.

    Attributes:
        title: "IoU by object size".
        rule: How pixels are assigned to rows, in a sentence.
        rows: (label, mIoU 0..1 or None, pixels), in their natural order.
    """

    title: str
    rule: str
    rows: tuple[tuple[str, float | None, int], ...]


@dataclass(frozen=True)
class Subject:
    """One evaluation: a run, a result file, or a folder of predictions.

    Attributes:
        name: Short name, unique in the report.
        space: Classes and colours.
        result: Plain data as of `segkit.evaluation.results.result_dict`: scores, classes, protocol, versions, command,
            and where they were measured "calibration" and "speed".
        confusion: int64 (K, K), rows are true classes; None without truth.
        interval: mIoU and classes with intervals; None without areas of images, or for one image.
        comparison: With the baseline as A and this as B; None without baseline.
        baseline: Name of the baseline.
        curves: Logged values of the run by their names in `metrics.csv`: (steps, values).
        config: The run's `config.yaml`; "" if there is none.
        groups: IoU by object size and by distance to the boundary.
        image_miou: (name, mIoU) of each image, N; () without truth.
        examples: The images to show; one that has several reasons occurs once.
        missing: What is not in the report and why, a sentence each.
    """

    name: str
    space: LabelSpace
    result: Mapping[str, Any]
    confusion: Int64Array | None = None
    interval: Bootstrap | None = None
    comparison: Comparison | None = None
    baseline: str = ""
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]] | None = None
    config: str = ""
    groups: tuple[Group, ...] = ()
    image_miou: tuple[tuple[str, float], ...] = ()
    examples: tuple[Example, ...] = ()
    missing: tuple[str, ...] = ()


def is_loss(column: str) -> bool:
    """Whether a column of `metrics.csv` is a loss."""
    return "loss" in column.lower()


def is_rate(column: str) -> bool:
    """Whether a column of `metrics.csv` is a learning rate: `lr`, or `lr/` and a group of parameters."""
    return column.split("/")[0].lower().startswith("lr")
