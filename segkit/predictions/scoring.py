"""Counts pairs of label maps, written by any tool, image by image and without a network.

Values stay as stored until they are counted: an image is one 256 x 256 histogram of (truth, prediction), whose rows
and columns the label tables then sort into classes. Mapping every pixel first would take about as long again.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from segkit.arrays import UInt8Array
from segkit.errors import InputError
from segkit.evaluation.boundary import boundary_areas
from segkit.evaluation.confusion import byte_pairs
from segkit.io import read_label
from segkit.machine import cores
from segkit.metadata.label_space import UNDECLARED, LabelSpace, identity_table
from segkit.predictions.label_files import Ids
from segkit.predictions.pairs import LabelPair, Problem

R = TypeVar("R")
Item = TypeVar("Item")


class ImageError(InputError):
    """An InputError about one image; `problem` has its name and kind."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.message)
        self.problem = problem


def train_id_space(space: LabelSpace) -> LabelSpace:
    """The same classes for label maps of train ids: 0..K-1, and 255 = ignore."""
    return replace(space, table=identity_table(space.num_classes))


def read_pair(pair: LabelPair, truth: LabelSpace, predictions: LabelSpace) -> tuple[UInt8Array, UInt8Array]:
    """Truth and prediction as train ids, uint8 (H, W) each; 255 = ignored, in a prediction: no class.

    Args:
        pair: The files.
        truth: What the values of the truth mean.
        predictions: What the values of the predictions mean, for the same classes (often `train_id_space`).

    Raises:
        ImageError: A file is unreadable or no 8-bit label map, sizes differ, or a value is undeclared.
    """
    raw_mask, raw_labels = _read_raw(pair)
    others: dict[Ids, LabelSpace] = {"train": train_id_space(truth), "raw": truth}
    mask = _mapped(raw_mask, truth, pair, "truth", _cure(raw_mask, "truth_ids", truth, others))
    return mask, _mapped(
        raw_labels, predictions, pair, "prediction", _cure(raw_labels, "prediction_ids", predictions, others)
    )


def count_pair(pair: LabelPair, truth: LabelSpace, predictions: LabelSpace) -> Tensor:
    """`confusion_counts` of one image, int64 (K + 2, K + 1); arguments and errors as for `read_pair`."""
    mask, labels = _read_raw(pair)
    raw = byte_pairs(mask, labels)
    true_values, predicted_values = np.flatnonzero(raw.any(axis=1)), np.flatnonzero(raw.any(axis=0))
    rows, columns = np.array(truth.table), np.array(predictions.table)
    if UNDECLARED in rows[true_values] or UNDECLARED in columns[predicted_values]:
        read_pair(pair, truth, predictions)  # raises, with value and place
    classes = truth.num_classes
    by_row = np.zeros((classes + 2, 256), np.int64)
    for value in true_values:
        by_row[min(rows[value], classes)] += raw[value]  # 255 = ignored -> row K
    counts = np.zeros((classes + 2, classes + 1), np.int64)
    for value in predicted_values:
        counts[:, min(columns[value], classes)] += by_row[:, value]
    return torch.from_numpy(counts)


def score_pairs(
    pairs: Iterable[LabelPair],
    truth: LabelSpace,
    predictions: LabelSpace | None = None,
    workers: int | None = None,
    report: Callable[[Problem], None] | None = None,
) -> Iterator[tuple[str, Tensor]]:
    """Count image after image, in order, decoding and counting ahead in threads.

    Args:
        pairs: Pairs from `find_pairs`.
        truth: What the values of the truth mean.
        predictions: What the values of the predictions mean; None = train ids.
        workers: Threads; None = one for each core.
        report: Called for each image that cannot be scored, which is left out; None = raise the first error.

    Yields:
        Name and int64 (K + 2, K + 1), see `segkit.evaluation.confusion.confusion_counts`.

    Raises:
        InputError: The two label spaces have different numbers of classes.
        ImageError: See `read_pair`; only without `report`.
    """
    predictions = train_id_space(truth) if predictions is None else predictions
    if predictions.num_classes != truth.num_classes:
        raise InputError(f"score: {predictions.num_classes} classes predicted, {truth.num_classes} in the truth")
    for pair, future in in_order(lambda pair: count_pair(pair, truth, predictions), pairs, workers):
        try:
            counts = future.result()
        except ImageError as error:
            if report is None:
                raise
            report(error.problem)
            continue
        yield pair.name, counts


def boundary_areas_of_pairs(
    pairs: Iterable[LabelPair], truth: LabelSpace, predictions: LabelSpace, workers: int | None = None
) -> Iterator[tuple[str, npt.NDArray[np.int64]]]:
    """Name and `segkit.evaluation.boundary.boundary_areas` of each image, in order; arguments as for `score_pairs`.

    Raises:
        ImageError: See `read_pair`.
    """

    def areas(pair: LabelPair) -> npt.NDArray[np.int64]:
        return boundary_areas(*read_pair(pair, truth, predictions), truth.num_classes)

    for pair, future in in_order(areas, pairs, workers):
        yield pair.name, future.result()


def suspicion(counts: Tensor) -> str | None:
    """A hint if the numbers look like another numbering; counts as of `confusion_counts`."""
    classes = len(counts) - 2
    inside, counted = counts[:classes, :classes], int(counts[:classes].sum())
    present = inside.sum(dim=1).nonzero().flatten()
    usual = inside.argmax(dim=1)[present]  # the most frequent prediction for each class of the truth
    for step, hint in (
        (1, "one class too high: numbered from 1, as ADE20K's files are? try --prediction_ids raw"),
        (-1, "one class too low: are they train ids? try --prediction_ids train"),
    ):
        if len(present) > 1 and 2 * int((usual == present + step).sum()) > len(present):
            return f"most classes are predicted {hint}"
    missed = int(counts[:classes, classes].sum())
    if 5 * missed > counted:
        return f"{missed / counted:.0%} of the pixels are predicted as no class; wrong --prediction_ids (raw or train)?"
    return None


def _read_raw(pair: LabelPair) -> tuple[UInt8Array, UInt8Array]:
    """Both label maps as stored, which must have one size."""
    arrays = []
    for path in (pair.truth, pair.prediction):
        try:
            arrays.append(read_label(path))
        except InputError as error:
            raise ImageError(Problem(pair.name, "unreadable file", str(error))) from error
    mask, labels = arrays
    if mask.shape != labels.shape:
        message = (
            f"{pair.prediction} is {_size(labels)} but the truth {pair.truth} is {_size(mask)}; "
            "was it predicted at a resized or cropped size? predict at the image's own size"
        )
        raise ImageError(Problem(pair.name, "wrong size", message))
    return mask, labels


def _size(array: UInt8Array) -> str:
    return f"{array.shape[1]}x{array.shape[0]}"


def _mapped(raw: UInt8Array, space: LabelSpace, pair: LabelPair, what: str, cure: str) -> UInt8Array:
    try:
        return space.map_labels(raw, str(pair.truth if what == "truth" else pair.prediction))
    except InputError as error:
        raise ImageError(Problem(pair.name, f"unknown id in the {what}", f"{error}{cure}")) from error


def _cure(raw: UInt8Array, option: str, space: LabelSpace, others: dict[Ids, LabelSpace]) -> str:
    """The option that would read the values that are undeclared in `space`."""
    values = np.unique(raw)
    fits = [ids for ids, other in others.items() if all(other.table[value] != UNDECLARED for value in values)]
    differs = [ids for ids in fits if others[ids].table != space.table]
    return f"; --{option} {differs[0]} reads all values of this file" if differs else ""


def in_order(
    function: Callable[[Item], R], items: Iterable[Item], workers: int | None
) -> Iterator[tuple[Item, "Future[R]"]]:
    """Each item with its future, in order; threads work only a few images ahead, as an interrupt waits for them."""
    workers = workers or cores()
    source, waiting = iter(items), deque[tuple[Item, "Future[R]"]]()
    pool = ThreadPoolExecutor(workers)
    try:
        while True:
            ahead = islice(source, 4 * workers - len(waiting))
            waiting.extend((item, pool.submit(function, item)) for item in ahead)
            if not waiting:
                return
            yield waiting.popleft()
    finally:
        pool.shutdown(cancel_futures=True)
