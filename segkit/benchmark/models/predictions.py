"""A folder of label maps, of any tool, in place of the model that made them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from segkit.arrays import UInt8Array
from segkit.bands import BandArray
from segkit.benchmark.models.base import JudgedModel
from segkit.errors import InputError
from segkit.io import read_label
from segkit.predictions.manifest import read_manifest
from segkit.predictions.pairs import LabelMaps


class PredictionsModel(JudgedModel):
    """Label maps by the names of the images; as `segkit predict` writes them, or of Cityscapes' or any other names.

    Raises:
        InputError: There are none, or `predictions.json` is damaged.
    """

    is_timed = False

    def __init__(self, name: str) -> None:
        super().__init__(name, {"words": "none, label maps are read"})
        self._maps = LabelMaps(Path(name))
        manifest = read_manifest(Path(name))
        if manifest is not None:
            self.class_names, self.num_classes = manifest.space.class_names, manifest.space.num_classes

    def expect(self, names: Sequence[str]) -> None:
        """See base class."""
        missing = [name for name in names if not self._maps.of(name)]
        if missing:
            raise InputError(
                f"{self.name}: {len(missing)} of {len(names)} images have no prediction ({missing[0]}, ...); predict "
                "them, or score what is there: segkit benchmark score --allow_missing"
            )

    def prepare(self, image: BandArray, name: str) -> UInt8Array:
        """See base class."""
        found = self._maps.of(name)
        if len(found) != 1:
            listed = " and ".join(map(str, found[:2])) or "none"
            raise InputError(f"{self.name}: {len(found)} predictions for the image {name} ({listed}); leave one")
        return read_label(found[0])

    def label(self, prepared: UInt8Array, size: tuple[int, int]) -> Tensor:
        """See base class."""
        return self.read(torch.from_numpy(prepared), size)
