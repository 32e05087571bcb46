"""Drawn street scenes, as `SyntheticDataModule` writes them: nine classes in the Cityscapes layout."""

import os
from collections.abc import Sequence
from types import MappingProxyType
from typing import ClassVar

from segkit.data.layouts.cityscapes import CityscapesLayout
from segkit.metadata.cityscapes import LABELS
from segkit.metadata.label_space import IGNORE_INDEX, UNDECLARED, LabelSpace

_CLASSES = ("road", "sidewalk", "building", "pole", "traffic sign", "vegetation", "sky", "person", "car")
_MERGED = {"traffic light": "traffic sign"}  # too rare to learn alone


def _label_space() -> LabelSpace:
    colours = {name: colour for _, _, name, colour in LABELS}
    table = [UNDECLARED] * 256
    for raw, _, name, _ in LABELS:
        name = _MERGED.get(name, name)
        table[raw] = _CLASSES.index(name) if name in _CLASSES else IGNORE_INDEX
    return LabelSpace(_CLASSES, tuple(colours[name] for name in _CLASSES), tuple(table))


STREET = _label_space()


class SyntheticLayout(CityscapesLayout):
    """The scenes on disk: Cityscapes' folders and label ids, other classes, labels of the test images too."""

    title = "synthetic"
    archives: ClassVar[Sequence[str]] = ()
    scored_as = MappingProxyType({})

    def __init__(self, root: str | os.PathLike[str]) -> None:
        super().__init__(root, label_space=STREET)
        self.counts = {}
