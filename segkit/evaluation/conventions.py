"""Metrics by convention: each toolkit's rule that turns one count matrix into mIoU, and how far the results differ.

The toolkits agree on the pixels: counts are summed over the data set, and pixels of ignored truth do not count (except
under `void-class`, which some published CamVid numbers use). They differ in classes that are absent, in pixels
predicted as no class, and in what they average. All rules were read in the files that `Convention.source` names; the
arithmetic is in `segkit.evaluation.scores`.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from segkit.errors import InputError, did_you_mean
from segkit.evaluation import scores
from segkit.evaluation.scores import Areas, Scores, areas_of
from segkit.text import RULE, aligned, percent, points

if TYPE_CHECKING:  # it takes seconds to import, and the names of the conventions do not need it
    from torch import Tensor

DEFAULT = "segkit"
ALL_METRICS = "all"  # the value of an option for the table of all conventions


@dataclass(frozen=True)
class Convention:
    """One toolkit's rule, in words and as a function.

    Attributes:
        name: The value of `--metric`.
        source: The project, and the file in which the rule was read.
        rule: The whole rule in one line.
        score: The arithmetic.
        heading: The name of a class's score in a table.
    """

    name: str
    source: str
    rule: str
    score: Callable[[Areas], Scores] = field(repr=False)
    heading: str = "IoU"


_ROWS = (
    Convention(
        name="segkit",
        source="segkit, segkit/evaluation/scores.py",
        rule="mIoU: mean over classes present in truth or prediction; mean_accuracy: mean over classes present in "
        "truth; pixels summed over all images; ignored pixels not counted",
        score=scores.segkit,
    ),
    Convention(
        name="encoding",
        source="PyTorch-Encoding, encoding/utils/metrics.py",
        rule="mIoU: mean of I / (U + 2^-52) over all K classes, 0 for a class absent from truth and prediction; "
        "pixel accuracy: right / true; no mean accuracy",
        score=scores.encoding,
    ),
    Convention(
        name="mmseg",
        source="mmsegmentation 1.2.2, mmseg/evaluation/metrics/iou_metric.py",
        rule="segkit's rule; mmseg counts and divides in float32 and rounds percents to 2 decimals, these are float64 "
        "and unrounded",
        score=scores.mmseg,
    ),
    Convention(
        name="csail",
        source="CSAILVision semantic-segmentation-pytorch, eval.py and mit_semseg/utils.py",
        rule="mIoU: mean of I / (U + 1e-10) over all K classes, 0 for a class absent from truth and prediction; "
        "pixel accuracy: right / true, which is that of each image weighted by its valid pixels; no mean accuracy",
        score=scores.csail,
    ),
    Convention(
        name="cityscapes",
        source="cityscapesScripts 2.3.0, cityscapesscripts/evaluation/evalPixelLevelSemanticLabeling.py",
        rule="mIoU: mean over classes present in truth or prediction; no accuracy (the script's optional one counts "
        "the wrong pixels of ignored truth)",
        score=scores.cityscapes,
    ),
    Convention(
        name="paddleseg",
        source="PaddleSeg revision d7975e7, paddleseg/utils/metrics.py",
        rule="mIoU: mean over all K classes, 1 for a class absent from truth and prediction (release 2.8.0: 0, see "
        "paddleseg-2.8); accuracies are right / predicted; no mean accuracy",
        score=scores.paddleseg,
    ),
    Convention(
        name="paddleseg-2.8",
        source="PaddleSeg release 2.8.0, paddleseg/utils/metrics.py",
        rule="mIoU: mean over all K classes, 0 for a class absent from truth and prediction; accuracies are right / "
        "predicted; no mean accuracy",
        score=scores.paddleseg_2_8,
    ),
    Convention(
        name="detectron2",
        source="detectron2, detectron2/evaluation/sem_seg_evaluation.py",
        rule="mIoU and mean_accuracy: mean over classes present in truth, so one that is predicted only is left out; "
        "pixels predicted as no class not counted",
        score=scores.detectron2,
    ),
    Convention(
        name="torchmetrics",
        source="torchmetrics 1.9.0, MulticlassJaccardIndex(average='macro') and MulticlassAccuracy",
        rule="mIoU and mean_accuracy: mean over classes present in truth or prediction (segkit's accuracy: in truth); "
        "torchmetrics divides in float32, these are float64",
        score=scores.torchmetrics,
    ),
    Convention(
        name="void-class",
        source="ESPNet, train/IOUEval.py, as trained on CamVid's 12 values, the last of which is void",
        rule="void (ignored truth) is one more class, predicted by no class (255), and wrong to predict on; mIoU: "
        "mean of I / (U + 1e-8) over K + 1 classes, 0 for an absent one (ESPNet averages over batches; this is summed)",
        score=scores.void_class,
    ),
)

CONVENTIONS: dict[str, Convention] = {row.name: row for row in _ROWS}


def convention(name: str, others: tuple[str, ...] = ()) -> Convention:
    """The convention of that name.

    Args:
        name: A key of `CONVENTIONS`, or the import path of your own `Convention`, which becomes its name.
        others: Other values that the option accepts, listed in the message.

    Raises:
        InputError: There is no such convention.
    """
    found = CONVENTIONS.get(name) or _own(name)
    if found is None:
        allowed = [*CONVENTIONS, *others]
        hint = did_you_mean(name, allowed)
        raise InputError(
            f"metric: no such convention {name!r}; {hint}allowed: {', '.join(allowed)}, or my_module.MY_CONVENTION"
        )
    return found


def _own(path: str) -> Convention | None:
    module, _, name = path.rpartition(".")
    if not all(part.isidentifier() for part in path.split(".")) or not module:
        return None
    try:
        found = getattr(import_module(module), name, None)
    except ModuleNotFoundError as error:
        raise InputError(
            f"metric: {path}: there is no module {error.name!r}, neither in the folder of this command nor installed"
        ) from error
    if not isinstance(found, Convention):
        raise InputError(f'metric: {path} is no Convention; see docs/extending.md, "A new metric"')
    return replace(found, name=path, heading=found.name)


def convention_scores(counts: Tensor | NDArray[Any], name: str = DEFAULT, without: Sequence[int] = ()) -> Scores:
    """Scores of one count matrix by a named convention.

    Args:
        counts: Integer (K + 2, K + 1) of `segkit.evaluation.confusion.confusion_counts`, of the whole data set.
        name: See `convention`.
        without: Classes that the means leave out.

    Raises:
        InputError: There is no such convention, the counts have another shape, or true ids were not declared.
    """
    return scores.without(convention(name).score(areas_of(counts)), without)


def comparison_table(counts: Tensor | NDArray[Any], without: Sequence[int] = (), heading: str = "mIoU") -> str:
    """An aligned table of all conventions' scores for the same counts (see `convention_scores`), then their rules.

    Scores are in percent, differences from segkit's mIoU in points; `classes` is the number of classes in the mean. The
    means leave out the classes `without`, which `heading` then says.
    """
    found = {name: convention_scores(counts, name, without) for name in CONVENTIONS}
    rows: list[tuple[str, ...]] = [("metric", heading, "vs segkit", "pixel acc.", "mean acc.", "classes"), RULE]
    for name, score in found.items():
        apart, classes = (
            score.miou - found[DEFAULT].miou,
            np.count_nonzero(~np.isnan(np.delete(score.class_iou, without))),
        )
        accuracies = percent(score.pixel_accuracy, 3), percent(score.mean_accuracy, 3)
        rows.append((name, percent(score.miou, 3), points(apart, 3), *accuracies, str(classes)))
    lines = [aligned(rows), ""]
    for row in _ROWS:
        lines += textwrap.wrap(f"{row.name}: {row.rule}", 100, subsequent_indent="    ", break_on_hyphens=False)
    return "\n".join(lines)
