"""Pascal VOC's folders: masks whose values are the classes in SegmentationClass, beside JPEGImages.

After the devkit of VOC2012: value 0 is background and 255 the void between objects. Folders like VOC's have their own
classes in classes.txt; without it they are the 20 of VOC. (CVAT's folders look alike, and have labelmap.txt.)
"""

from functools import partial
from pathlib import Path

import numpy as np

from segkit.errors import InputError
from segkit.formats.base import BACKGROUND, AnnotatedImage, Annotations, Lazy, Region, check_names
from segkit.io import read_label
from segkit.metadata.class_files import read_classes
from segkit.metadata.label_space import IGNORE_INDEX
from segkit.paths import walk_files

CLASSES = (
    *(BACKGROUND, "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)


def read(path: Path) -> Annotations:
    """Read the masks of a folder; each when its image is asked for.

    Raises:
        InputError: There are none, or classes.txt is wrong.
    """
    folder, classes = path / "SegmentationClass", path / "classes.txt"
    masks = walk_files(folder, (".png",)) if folder.is_dir() else []
    if not masks:
        raise InputError(f"{path}: no masks in SegmentationClass; give the folder that has it, such as VOC2012")
    check_names([mask.relative_to(folder).as_posix() for mask in masks], str(path))
    names = read_classes(classes) if classes.is_file() else CLASSES
    return Annotations(Lazy(partial(_image, folder, names), masks), names)


def _image(folder: Path, names: tuple[str, ...], mask: Path) -> AnnotatedImage:
    labels = read_label(mask)
    known = dict(enumerate(names)) | {IGNORE_INDEX: "void"}
    values = np.unique(labels).tolist()
    if not known.keys() >= set(values):
        raise InputError(
            f"{mask}: value {min(set(values) - known.keys())} is of no class; there are {len(names)}: list all of them "
            f"in {folder.parent / 'classes.txt'}"
        )
    regions = [
        Region(known[value], mask=labels == value, crowd=value == IGNORE_INDEX)
        for value in values
        if known[value] != BACKGROUND
    ]
    return AnnotatedImage(mask.relative_to(folder).as_posix(), labels.shape, regions, str(mask))
