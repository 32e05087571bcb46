"""Official Cityscapes scores: cityscapesScripts' own evaluation, run on label-id PNGs.

It scores classes, categories, and instances weighted by size (iIoU). Only this file patches it, while it runs; the
module is restored afterwards, and its global `args` are never changed.
"""

import copy
import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from segkit.bars import Bar
from segkit.errors import InputError
from segkit.evaluation.results import number_or_null
from segkit.io import image_size
from segkit.metadata.cityscapes import CITYSCAPES
from segkit.paths import walk_files
from segkit.predictions.label_files import SERVERS, Ids, find_predictions, write_raw
from segkit.predictions.pairs import LabelPair
from segkit.predictions.submission import in_threads
from segkit.text import RULE, aligned, percent

try:
    from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as official  # noqa: N813  (a module, not a class)
except ValueError as error:  # it reads CITYSCAPES_EXPORT_DIR when imported
    raise InputError(f"cityscapesScripts: {error}; unset that variable") from error

TRUTH_ENDING = "_gtFine_labelIds.png"

_SERVER = SERVERS["cityscapes"]

_LOCK = threading.Lock()  # the patch is visible to the whole process


def official_scores(pairs: Sequence[LabelPair], instances: bool = True) -> dict[str, Any]:
    """Run cityscapesScripts' evaluation, with a progress bar.

    Args:
        pairs: 8-bit PNGs of label ids 0..33; the truth is `*_gtFine_labelIds.png`.
        instances: Also score instances, for which `*_gtFine_instanceIds.png` must lie beside the truth.

    Returns:
        Plain data; None where cityscapesScripts has NaN (absent classes; iIoU of classes without instances):
        "classes" (19), "categories" (7): name -> {"IoU", "iIoU"}; "averages": {"classes", "categories"} -> the same
        two; "num_images"; "cityscapesscripts": its version.

    Raises:
        InputError: Sizes differ, a file cannot be read, or the instances are missing.
    """
    if instances:
        check_instances([pair.truth for pair in pairs])
    args = copy.copy(official.args)
    args.evalInstLevelScore, args.evalPixelAccuracy = instances, False
    args.quiet, args.JSONOutput, args.colorized = True, False, False
    predictions, truths = ([str(path) for path in column] for column in zip(*map(_files, pairs), strict=True))
    with _LOCK, _repaired(), Bar(total=len(pairs), desc="cityscapesScripts", unit="image") as bar:
        found = official.evaluateImgLists(_Watched(predictions, bar), truths, args)
    if math.isnan(found["averageScoreClasses"]):
        raise InputError(
            f"{truths[0]}: no truth has an evaluated pixel, as in the test split, whose labels are not public; give "
            "gtFine/val"
        )
    if not instances:  # the script reports 0
        for key in ("classInstScores", "categoryInstScores"):
            found[key] = dict.fromkeys(found[key], math.nan)
        found["averageScoreInstClasses"] = found["averageScoreInstCategories"] = math.nan
    kept = [label for label in official.labels if not label.ignoreInEval]
    names, categories = [label.name for label in kept], list(dict.fromkeys(label.category for label in kept))
    return {
        "classes": _columns(found["classScores"], found["classInstScores"], names),
        "categories": _columns(found["categoryScores"], found["categoryInstScores"], categories),
        "averages": {
            "classes": _scores(found["averageScoreClasses"], found["averageScoreInstClasses"]),
            "categories": _scores(found["averageScoreCategories"], found["averageScoreInstCategories"]),
        },
        "num_images": len(pairs),
        "cityscapesscripts": version("cityscapesscripts"),
    }


def official_pairs(predictions: Path, truth: Path) -> list[LabelPair]:
    """Pair every truth below `truth` with its prediction; predictions of other images are left out.

    Raises:
        InputError: There is no truth, or an image has no prediction, or more than one.
    """
    masks = [path for path in walk_files(truth, (".png",)) if path.name.endswith(TRUTH_ENDING)]
    if not masks:
        raise InputError(f"{truth}: no *{TRUTH_ENDING} below this folder; give gtFine/val of Cityscapes")
    found = find_predictions(predictions, _SERVER)
    keys = [mask.name.removesuffix(TRUTH_ENDING) for mask in masks]
    missing = [key for key in keys if key not in found]
    if missing:
        raise InputError(
            f"{predictions}: {len(missing)} of {len(keys)} images have no prediction, the first is {missing[0]}; "
            "predict them all: official scores are of a whole split"
        )
    for key in keys:
        if len(found[key]) > 1:
            raise InputError(f"{predictions}: two predictions of {key}: {found[key][0]} and {found[key][1]}; leave one")
    return [LabelPair(key, mask, found[key][0]) for key, mask in zip(keys, masks, strict=True)]


def label_id_copies(pairs: Sequence[LabelPair], folder: Path, ids: Ids) -> list[LabelPair]:
    """Write the predictions as label ids into `folder`, with a progress bar, and pair them with the truth.

    Args:
        pairs: Pairs from `official_pairs`.
        folder: An empty folder.
        ids: The kind of ids in the predictions: "train" ids, as `segkit predict` writes them, or "raw" label ids.

    Raises:
        InputError: A value is not such an id, or prediction and truth differ in size.
    """
    copies = [LabelPair(pair.name, pair.truth, folder / f"{pair.name}{_SERVER.ending}") for pair in pairs]
    jobs = [(pair, copy_.prediction) for pair, copy_ in zip(pairs, copies, strict=True)]
    values = in_threads(lambda job: _copy(*job, ids), jobs, "label ids")
    if ids == "raw" and _SERVER.holds_train_ids(set().union(*values)):
        raise InputError(
            f"{pairs[0].prediction}: this prediction and all others hold train ids; leave out --prediction_ids raw"
        )
    return copies


def check_instances(truths: Sequence[Path]) -> None:
    """Refuse truth without its instances.

    Raises:
        InputError: Files are missing; the message has the first one and their number.
    """
    files = [Path(str(path).replace("labelIds", "instanceIds")) for path in truths]  # as cityscapesScripts looks for it
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise InputError(
            f"{missing[0]}: no such file ({len(missing)} of {len(files)} are missing); the iIoU needs them: add them, "
            "or score without it by `segkit submission score cityscapes ... --no-instances`"
        )


def differences(found: Mapping[str, Any], class_iou: npt.NDArray[np.float64]) -> list[str]:
    """Lines on official class scores that are not, to the last digit, segkit's `class_iou` (19,).

    The mean is compared after adding in cityscapesScripts' order, which is not NumPy's.
    """
    theirs = [_nan(found["classes"][name]["IoU"]) for name in CITYSCAPES.class_names]
    ours = [float(value) for value in class_iou]
    wrong = [
        f"{name}: cityscapesScripts {a!r}, segkit {b!r}"
        for name, a, b in zip(CITYSCAPES.class_names, theirs, ours, strict=True)
        if not _same(a, b)
    ]
    mean = official.getScoreAverage(dict(enumerate(ours)), official.args)
    their_mean = _nan(found["averages"]["classes"]["IoU"])
    return wrong if _same(mean, their_mean) else [*wrong, f"mean: cityscapesScripts {their_mean!r}, segkit {mean!r}"]


def format_official(found: Mapping[str, Any], class_iou: npt.NDArray[np.float64] | None = None) -> str:
    """An aligned table in percent: classes, categories and means; segkit's `class_iou` (19,) beside them if given."""
    ours: dict[str, float] = {}
    if class_iou is not None:
        ours = dict(zip(CITYSCAPES.class_names, map(float, class_iou), strict=True))
        ours["mean of classes"] = float(np.nanmean(class_iou))
    rows = [(f"cityscapesScripts {found['cityscapesscripts']}", "IoU", "iIoU", *(["segkit"] if ours else []))]
    for part, beside in (("classes", ours), ("categories", {})):
        rows.append(RULE)
        for name, row in (found[part] | {f"mean of {part}": found["averages"][part]}).items():
            more = [percent(beside[name])] if name in beside else []
            rows.append((name, percent(row["IoU"]), percent(row["iIoU"]), *more))
    return aligned(rows)


class _NumPyWithIn1d:
    """NumPy together with the `in1d` that NumPy 2.4 removed."""

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)

    @staticmethod
    def in1d(values: npt.NDArray[Any], among: Sequence[int], invert: bool = False) -> npt.NDArray[np.bool_]:
        return np.isin(np.ravel(values), among, invert=invert)


class _Watched(list[str]):
    """File names that advance a progress bar when they are accessed, which the evaluation does once for each."""

    def __init__(self, names: Sequence[str], bar: "Bar") -> None:
        super().__init__(names)
        self._bar = bar

    def __getitem__(self, index: Any) -> Any:
        self._bar.update()
        return super().__getitem__(index)


def _files(pair: LabelPair) -> tuple[Path, Path]:
    return pair.prediction, pair.truth


def _copy(pair: LabelPair, target: Path, ids: Ids) -> set[int]:
    prediction, truth = _files(pair)
    sizes = [image_size(path) for path in (prediction, truth)]
    if sizes[0] != sizes[1]:
        (width, height), (true_width, true_height) = sizes
        raise InputError(
            f"{prediction} is {width}x{height}, its truth {truth} {true_width}x{true_height}; predict at the image's "
            "own size"
        )
    return write_raw(prediction, target, _SERVER, ids)


@contextmanager
def _repaired() -> Iterator[None]:
    """Patch cityscapesScripts' module within this context only.

    - `np.in1d`, which it calls for iIoU, is gone from NumPy 2.4
      (https://github.com/mcordts/cityscapesScripts/pull/196): its name `np` gets one that has it.
    - `printError` prints and leaves Python by `sys.exit`: it raises `InputError`.
    """
    before = {"np": official.np, "printError": official.printError}
    official.printError = _raise
    if not hasattr(np, "in1d"):
        official.np = _NumPyWithIn1d()
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(official, name, value)


def _raise(message: str) -> NoReturn:
    raise InputError(f"cityscapesScripts: {' '.join(str(message).split())}")


def _columns(iou: Mapping[str, float], iiou: Mapping[str, float], names: Sequence[str]) -> dict[str, Any]:
    return {name: _scores(iou[name], iiou[name]) for name in names}


def _scores(iou: float, iiou: float) -> dict[str, float | None]:
    return {"IoU": number_or_null(iou), "iIoU": number_or_null(iiou)}


def _nan(value: float | None) -> float:
    return float("nan") if value is None else value


def _same(a: float, b: float) -> bool:
    return a == b or (math.isnan(a) and math.isnan(b))
