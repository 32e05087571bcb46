"""A table of areas: a row for each image and class that occurs in it, with pixels, share, and m2 where known."""

import csv
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from segkit.files import replacing
from segkit.formats.base import Labelled
from segkit.formats.georeference import pixel_area
from segkit.metadata.label_space import IGNORE_INDEX, LabelSpace


def write(images: Iterable[Labelled], path: Path, space: LabelSpace, tolerance: float = 0.0) -> None:
    """Write the columns image, id, class, pixels, share, m2, by id; 255 has no class.

    Args:
        images: The label maps.
        path: The CSV file.
        space: The classes.
        tolerance: Of no effect, for pixels are counted.

    Raises:
        InputError: The file cannot be written.
    """
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["image", "id", "class", "pixels", "share", "m2"])
        for image in images:
            counts = np.bincount(image.labels.ravel(), minlength=IGNORE_INDEX + 1)
            pixel = pixel_area(image.crs, image.transform)
            for label in np.flatnonzero(counts).tolist():
                name, count = "" if label == IGNORE_INDEX else space.class_names[label], int(counts[label])
                square_metres = "" if pixel is None else count * pixel
                rows.writerow([image.name, label, name, count, count / image.labels.size, square_metres])
