"""Scores folders of label maps, written by any tool, without a network: `segkit benchmark score` and `compare`.

One wrong image does not stop the others: problems are listed, and the scores of the rest are marked partial.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from segkit.arrays import Int64Array
from segkit.bars import Bar
from segkit.errors import InputError, printable
from segkit.evaluation.confusion import ConfusionMatrix, true_ids
from segkit.evaluation.results import result_dict
from segkit.evaluation.statistics import ImageAreas, image_areas
from segkit.metadata.label_space import LabelSpace
from segkit.predictions.label_files import Ids
from segkit.predictions.manifest import Manifest, read_manifest
from segkit.predictions.pairs import Pairing, Problem, find_pairs
from segkit.predictions.scoring import score_pairs, train_id_space


@dataclass(frozen=True)
class Reading:
    """How two folders of label maps are read: which files are scored, and what their values mean.

    Attributes:
        space: Classes, and what the raw values of the truth mean.
        prediction_ids: Ids in the predictions: train ids, as `segkit predict` writes them, or the truth's raw ids.
        truth_ids: Ids in the truth.
        prediction_ending: Ending of the files to score; it is no part of an image's name.
        truth_ending: The same for the truth.
        allow_missing: Leave out images without a prediction silently.
        workers: Threads; None = one for each core.
    """

    space: LabelSpace
    prediction_ids: Ids = "train"
    truth_ids: Ids = "raw"
    prediction_ending: str = ""
    truth_ending: str = ""
    allow_missing: bool = False
    workers: int | None = None

    def space_of(self, ids: Ids) -> LabelSpace:
        """The classes, for label maps that hold such ids."""
        return self.space if ids == "raw" else train_id_space(self.space)

    def pairs(self, predictions: Path, truth: Path) -> Pairing:
        """The label maps of both folders, paired by name; errors are those of `find_pairs`."""
        found = find_pairs(predictions, truth, self.truth_ids, self.prediction_ending, self.truth_ending)
        kept = [p for p in found.problems if not self.allow_missing or p.kind != "missing prediction"]
        return replace(found, problems=kept)


@dataclass
class FolderScores:
    """The scores of two folders of label maps.

    Attributes:
        reading: How they were read.
        pairing: The pairs of images to score.
        confusion: The matrix of all images that could be scored.
        problems: Why the other images could not be scored.
        areas: Name and int64 (3, K) of each image, for resampling.
        pixels: Number of pixels that were read.
        seconds: Duration in seconds.
        interrupted: Whether the user stopped the scoring.
    """

    reading: Reading
    pairing: Pairing
    confusion: ConfusionMatrix
    problems: list[Problem]
    areas: list[tuple[str, Int64Array]] = field(default_factory=list)
    pixels: int = 0
    seconds: float = 0.0
    interrupted: bool = False

    @property
    def partial(self) -> bool:
        """Whether an image of the truth is missing."""
        return self.interrupted or self.confusion.num_images < self.pairing.expected

    @property
    def note(self) -> str | None:
        """A remark if most classes are absent from the truth."""
        return self.reading.space.note_of_absence(true_ids(self.confusion.counts))

    def result(
        self, manifest: Manifest | None, metric: str, data: str | None, without: Sequence[int] = ()
    ) -> dict[str, Any]:
        """Plain data for a result file, as of `segkit.evaluation.results.result_dict`.

        Args:
            manifest: The manifest of the predictions, where `segkit predict` wrote them.
            metric: The convention of the scores.
            data: Name of the data set where there is no manifest.
            without: Classes that the means leave out.
        """
        result = result_dict(
            self.confusion,
            self.reading.space.class_names,
            {"name": "unknown: label maps of another tool"} if manifest is None else manifest.protocol,
            dataset={**(manifest.dataset if manifest else {"name": data}), "num_images": self.pairing.expected},
            weights=None if manifest is None else manifest.weights,
            partial=self.partial,
            metric=metric,
            note=self.note,
            without=without,
        )
        result["problems"] = [vars(problem) for problem in self.problems]
        return result


def score_folders(predictions: Path, truth: Path, reading: Reading, limit: int | None = None) -> FolderScores:
    """Score the label maps of two folders, with a progress bar; an interrupt keeps the images scored so far.

    Args:
        predictions: Folder of the predicted label maps.
        truth: Folder of the true ones.
        reading: Which files are scored, and what their values mean.
        limit: Maximum number of images.

    Raises:
        InputError: See `find_pairs`.
    """
    pairing = reading.pairs(predictions, truth)
    found = FolderScores(reading, pairing, ConfusionMatrix(reading.space.num_classes), list(pairing.problems))
    pairs = pairing.pairs[:limit]
    spaces = reading.space_of(reading.truth_ids), reading.space_of(reading.prediction_ids)
    start = time.perf_counter()
    with Bar(total=len(pairs), unit="image", desc="score") as bar:

        def report(problem: Problem) -> None:
            found.problems.append(problem)
            bar.update()

        try:
            for name, counts in score_pairs(pairs, *spaces, reading.workers, report):
                found.confusion.add(counts)
                found.areas.append((name, image_areas(counts, name)))
                found.pixels += int(counts.sum())
                found.seconds = time.perf_counter() - start
                bar.set_postfix_str(f"{found.pixels / found.seconds / 1e6:.0f} Mpx/s", refresh=False)
                bar.update()
        except KeyboardInterrupt:
            found.interrupted = True
    return found


def areas_of_folder(predictions: Path, truth: Path | None, reading: Reading, name: str) -> ImageAreas:
    """Areas of one model: scored now, or read from an .npz file (`ImageAreas.save`).

    Args:
        predictions: A folder of label maps, or that file.
        truth: The folder of the true label maps, needed for a folder of predictions.
        reading: Which files are scored, and what their values mean.
        name: Name of the model, for the progress bar.

    Raises:
        InputError: An image cannot be scored, or the file's areas are of other classes.
    """
    if predictions.suffix == ".npz":
        areas = ImageAreas.load(predictions)
        if areas.num_classes != reading.space.num_classes:
            num_classes = reading.space.num_classes
            raise InputError(f"{predictions}: areas of {areas.num_classes} classes, --labels has {num_classes}")
        return areas
    if truth is None:
        raise InputError(f"{predictions}: a folder of label maps needs TRUTH_DIR, the true ones, as third argument")
    found = reading.pairs(predictions, truth)
    if found.problems:
        others = len(found.problems) - 1
        more = f" (and {others} more; --allow_missing compares what both have)" if others else ""
        raise InputError(found.problems[0].message + more)
    # `segkit predict` writes train ids
    ids: Ids = "train" if read_manifest(predictions) is not None else reading.prediction_ids
    counts = score_pairs(found.pairs, reading.space_of(reading.truth_ids), reading.space_of(ids), reading.workers)
    return ImageAreas.from_counts(Bar(counts, total=len(found.pairs), unit="image", desc=printable(name)))
