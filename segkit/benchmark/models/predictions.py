"""A folder of label maps, of any tool, in place of the model that made them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from segkit.arrays import UInt8Array
from segkit.bands import BandArray
from segkit.benchmark.models.base import JudgedModel
from segkit.errors import InputError
from segkit.io import read_label
from segkit.predictions.label_files import SERVERS
from segkit.predictions.manifest import read_manifest
from segkit.predictions.pairs import label_maps_by_name

_ENDINGS = ("", "_labels")  # of `segkit infer`, too, which writes others beside its labels


class PredictionsModel(JudgedModel):
    """Label maps by the names of the images; as `segkit predict` writes them, or of Cityscapes' or any other names.

    Raises:
        InputError: There are none, or `predictions.json` is damaged.
    """

    is_timed = False

    def __init__(self, name: str) -> None:
        super().__init__(name, {"words": "none, label maps are read"})
        self._files: Mapping[str, Sequence[Path]] = label_maps_by_name(Path(name), "", frames=False)
        self._frames = label_maps_by_name(Path(name), "", frames=True)
        manifest = read_manifest(Path(name))
        if manifest is not None:
            self.class_names, self.num_classes = manifest.space.class_names, manifest.space.num_classes

    def expect(self, names: Sequence[str]) -> None:
        """See base class."""
        missing = [name for name in names if not self._of(name)]
        if missing:
            raise InputError(
                f"{self.name}: {len(missing)} of {len(names)} images have no prediction ({missing[0]}, ...); predict "
                "them, or score what is there: segkit benchmark score --allow_missing"
            )

    def prepare(self, image: BandArray, name: str) -> UInt8Array:
        """See base class."""
        found = self._of(name)
        if len(found) != 1:
            listed = " and ".join(map(str, found[:2])) or "none"
            raise InputError(f"{self.name}: {len(found)} predictions for the image {name} ({listed}); leave one")
        return read_label(found[0])

    def label(self, prepared: UInt8Array, size: tuple[int, int]) -> Tensor:
        """See base class."""
        return self.read(torch.from_numpy(prepared), size)

    def _of(self, name: str) -> Sequence[Path]:
        for ending in _ENDINGS:
            for known in (name + ending, name.rpartition("/")[2] + ending):
                if known in self._files:
                    return self._files[known]
        return self._frames.get(SERVERS["cityscapes"].key(name) or "", ())
