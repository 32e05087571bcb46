"""Label maps as datumaro reads and writes them, where it is installed: it wants an older Pillow than segkit's.

`uv run --no-project --with datumaro==1.13.12 ...` makes an environment that has it.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from segkit.arrays import UInt8Array
from segkit.metadata.label_space import LabelSpace


def maps_in(folder: Path, kind: str, space: LabelSpace) -> dict[str, UInt8Array]:
    """The label maps of a data set in one of datumaro's formats, by the names of its items; skips without datumaro."""
    datumaro = pytest.importorskip("datumaro", reason="datumaro wants an older Pillow: an environment of its own")
    read = datumaro.Dataset.import_from(str(folder), kind)
    names = [label.name for label in read.categories()[datumaro.AnnotationType.label]]
    found = {}
    for item in read:
        found[item.id] = np.full(item.media.size, 255, np.uint8)
        for one in item.annotations:
            if one.type == datumaro.AnnotationType.mask:
                found[item.id][one.image.astype(bool)] = space.class_names.index(names[one.label])
    return found


def export(maps: Mapping[str, UInt8Array], folder: Path, kind: str, space: LabelSpace) -> None:
    """Write label maps by datumaro, each class of an image as a mask; skips without datumaro."""
    datumaro = pytest.importorskip("datumaro", reason="datumaro wants an older Pillow: an environment of its own")
    from datumaro.components.media import Image

    items = []
    for name, labels in maps.items():
        masks = [
            datumaro.Mask(image=labels == label, label=int(label), id=int(label) + 1, group=int(label) + 1)
            for label in np.unique(labels)
            if label != 255
        ]
        image = Image.from_numpy(data=np.zeros((*labels.shape, 3), np.uint8))
        items.append(datumaro.DatasetItem(name, subset="val", media=image, annotations=masks))
    datumaro.Dataset.from_iterable(items, categories=list(space.class_names)).export(str(folder), kind, save_media=True)
