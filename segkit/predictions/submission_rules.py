"""What the test servers of Cityscapes and ADE20K want: names, ids and sizes of the label maps that one uploads.

Cityscapes (cityscapesScripts, evalPixelLevelSemanticLabeling.getPrediction): 8-bit PNGs of label ids, found anywhere in
the archive by `<city>_<6 digits>_<6 digits>*.png`. ADE20K (development kit of the scene parsing challenge 2016): PNGs
of 1..150 with the name of the image.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from segkit.metadata.ade20k import ADE20K
from segkit.metadata.cityscapes import CITYSCAPES, LABELS
from segkit.metadata.label_space import LabelSpace

Size = tuple[int, int]  # width, height


@dataclass(frozen=True)
class Benchmark:
    """What one test server wants.

    Attributes:
        space: classes; `space.unmap_labels` makes the uploaded ids of train ids.
        ids: the values a pixel may have.
        image: finds the image's name at the start of a file's name.
        file: what a file's name must be.
        ending: of the names that segkit gives.
        flat: whether files must lie at the top of the archive.
        size: width and height of every image, or None where they differ.
        counts: images of each split.
    """

    name: str
    space: LabelSpace
    ids: range
    image: re.Pattern[str]
    file: re.Pattern[str]
    ending: str
    flat: bool
    size: Size | None
    counts: Mapping[str, int]

    def key(self, file_name: str) -> str | None:
        """Name of the image that a file (name or path) belongs to, None where it has no such name."""
        match = self.image.match(file_name.rsplit("/", 1)[-1])
        return match.group(0) if match else None

    def holds_train_ids(self, values: set[int]) -> bool:
        """Whether a label map of these values was written in train ids: all are some, and not all are uploaded ids."""
        classes = self.space.num_classes
        evaluated = {raw for raw, train_id in enumerate(self.space.table) if 0 <= train_id < classes}
        return values <= {*range(classes), 255} and not values <= evaluated


_CITYSCAPES_NAME = r"[^_/]+_\d{6}_\d{6}(?!\d)"
_ADE20K_NAME = r"ADE_(?:test|val|train)_\d{8}(?!\d)"

BENCHMARKS = {
    "cityscapes": Benchmark(
        name="cityscapes",
        space=CITYSCAPES,
        ids=range(len(LABELS)),
        image=re.compile(_CITYSCAPES_NAME),
        file=re.compile(_CITYSCAPES_NAME + r"[^/]*\.png"),
        ending="_pred_labelIds.png",
        flat=False,
        size=(2048, 1024),
        counts={"val": 500, "test": 1525},
    ),
    "ade20k": Benchmark(
        name="ade20k",
        space=ADE20K,
        ids=range(1, 151),
        image=re.compile(_ADE20K_NAME),
        file=re.compile(_ADE20K_NAME + r"\.png"),
        ending=".png",
        flat=True,
        size=None,
        counts={"val": 2000, "test": 3352},  # test: release_test.zip, as the field counts it
    ),
}
