"""Label maps for a report: read and measured in threads, and those that are shown read once more with their images."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from segkit.arrays import UInt8Array
from segkit.bars import Bar
from segkit.errors import InputError, printable
from segkit.evaluation.report.content import Example
from segkit.evaluation.report.gather import SHOWN, Gatherer, ReadImage, example
from segkit.evaluation.report.measure import Measured, measure
from segkit.io import read_label
from segkit.io.confidence import confidence_path, is_confidence, read_confidence
from segkit.metadata.label_space import LabelSpace
from segkit.predictions.pairs import Problem
from segkit.predictions.scoring import in_order


@dataclass(frozen=True)
class ReportImage:
    """An image and its label map.

    Attributes:
        name: Name of the image.
        labels: The label map; a confidence map is read where it lies beside it.
        truth: Returns train ids, uint8 (H, W); None if there is no truth.
        image: Returns RGB, uint8 (H, W, 3); None if there is no image.
    """

    name: str
    labels: Path
    truth: Callable[[], UInt8Array] | None
    image: Callable[[], UInt8Array] | None


@dataclass(frozen=True)
class Gathered:
    """What the label maps say.

    Attributes:
        sums: Of all images that could be read.
        examples: The images to show.
        problems: Of images that are left out, as a label map or a truth cannot be read.
        gone: Why images of `examples` are not there, a line each.
    """

    sums: Gatherer
    examples: tuple[Example, ...]
    problems: list[Problem]
    gone: list[str]


def gather_files(
    images: Sequence[ReportImage], space: LabelSpace, title: str, most: int = SHOWN, workers: int | None = None
) -> Gathered:
    """Measure label maps image by image, with a progress bar; an image that cannot be read does not stop the others.

    Args:
        images: The images.
        space: The classes, and what the values of the label maps mean.
        title: Name of the evaluation, for the bar.
        most: Images to show for each reason.
        workers: Threads; None = one for each core.
    """

    def measured(image: ReportImage) -> Measured:
        read = _read(image, space)
        return measure(image.name, read.truth, read.labels, read.confidence, space.class_names)

    sums, problems, gone = Gatherer(space.num_classes), list[Problem](), list[str]()
    bar = Bar(in_order(measured, images, workers), total=len(images), unit="image", desc=printable(title))
    for image, future in bar:
        try:
            sums.add(future.result())
        except InputError as error:
            problems.append(Problem(image.name, "unreadable image", str(error)))
    chosen = sums.chosen(most)
    facts = {found.name: found for found in sums.facts if found.name in chosen}

    def shown(image: ReportImage) -> tuple[Example, str]:
        read = _read(image, space)
        try:
            read = replace(read, image=_of_size(image.image and image.image(), "image", image, read.labels))
            why = ""
        except InputError as error:
            why = str(error)
        return example(facts[image.name], chosen[image.name], read), why

    examples = []
    for _, future in in_order(shown, [image for image in images if image.name in chosen], workers):
        drawn, why = future.result()
        examples.append(drawn)
        gone += [why] if why else []
    return Gathered(sums, tuple(examples), problems, gone)


def _read(image: ReportImage, space: LabelSpace) -> ReadImage:
    """All but the image.

    Raises:
        InputError: A file cannot be read, a value is undeclared, or sizes differ.
    """
    labels = space.map_labels(read_label(image.labels), str(image.labels))
    sure = confidence_path(image.labels)
    truth = _of_size(image.truth and image.truth(), "truth", image, labels)
    confidence = read_confidence(sure) if is_confidence(sure) else None
    return ReadImage(None, truth, labels, _of_size(confidence, "confidence map", image, labels))


def _of_size(array: UInt8Array | None, what: str, image: ReportImage, labels: UInt8Array) -> UInt8Array | None:
    """`array`, if it has the size of the label map.

    Raises:
        InputError: It has another size.
    """
    if array is not None and array.shape[:2] != labels.shape:
        own, other = (f"{size[1]}x{size[0]}" for size in (labels.shape, array.shape))
        raise InputError(f"{image.labels}: {own}, its {what} is {other}; predict at the image's own size")
    return array
