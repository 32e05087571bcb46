"""Procedural street scenes on disk in the Cityscapes layout: train and test without any download.

Images are drawn once by `prepare_data` and then read through the code that reads Cityscapes.
"""

import os
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from segkit.data.datamodule import SegmentationDataModule
from segkit.data.layout.base import SPLITS, Part, Split
from segkit.data.sets.cityscapes import fine_part
from segkit.data.street.scene import draw_scene
from segkit.errors import InputError
from segkit.files import parse_json, write_json
from segkit.io import write_png
from segkit.metadata.cityscapes import LABELS
from segkit.metadata.label_space import IGNORE_INDEX, UNDECLARED, LabelSpace

VERSION = 1  # raise it when the drawing changes, so that folders drawn before are not taken for current ones
MANIFEST = "synthetic.json"


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


class SyntheticDataModule(SegmentationDataModule):
    """Drawn street scenes of nine classes, with Cityscapes' label ids, names, colours and folders.

    `prepare_data` writes them under `root` unless a set with the same seed, sizes and counts is there already.

    Args:
        root: Folder to write to; absent or empty, or one that this class wrote before.
        seed: Seed of the scenes, the shuffling and the transforms.
        num_train: Scenes in the training split.
        num_val: Scenes in the validation split.
        num_test: Scenes in the test split.
        height: Height of a scene in pixels.
        width: Width of a scene in pixels.
        **options: The arguments of `SegmentationDataModule`.

    Raises:
        InputError: A number is out of range, or `root` holds other files, which are never overwritten.
    """

    title = "synthetic"
    label_space = STREET
    own_base_size = 256
    own_crop_size = 128

    def __init__(
        self,
        root: str | os.PathLike[str],
        seed: int = 0,
        num_train: int = 160,
        num_val: int = 24,
        num_test: int = 24,
        height: int = 128,
        width: int = 256,
        **options: Any,
    ) -> None:
        super().__init__(root, seed=seed, **options)
        if min(num_train, num_val, num_test) < 1:
            raise InputError(f"scenes are {num_train}, {num_val} and {num_test}; each split needs 1 or more")
        if height < 64 or width < height:
            raise InputError(f"scenes of {width}x{height} cannot be drawn; height must be 64 or more, width not less")
        self.manifest = {
            "version": VERSION,
            "seed": seed,
            "train": num_train,
            "val": num_val,
            "test": num_test,
            "height": height,
            "width": width,
        }

    def parts(self, split: Split) -> Sequence[Part]:
        """See base class; the folders are those of Cityscapes, and the test images have labels, too."""
        return (fine_part(split),)

    def prepare_data(self) -> None:
        """Draw the scenes unless they exist, then do as the base class does.

        Raises:
            InputError: `root` holds other scenes or other files.
        """
        self._draw_all()
        super().prepare_data()

    def setup(self, stage: str) -> None:
        """See base class."""
        self._draw_all()  # free if the scenes exist; the loaders then also work without a Trainer
        super().setup(stage)

    def _draw_all(self) -> None:
        """Draw all scenes into a temporary folder, then rename it."""
        if self._is_there():
            return
        self.root.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.root.with_name(f".{self.root.name}.{uuid.uuid4().hex[:8]}.tmp")
        try:
            for split in SPLITS:
                self._draw(temporary, split)
            write_json(temporary / MANIFEST, self.manifest)
            self._move_in_place(temporary)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def _is_there(self) -> bool:
        if not self.root.exists() or (self.root.is_dir() and not any(self.root.iterdir())):
            return False
        try:
            found = parse_json((self.root / MANIFEST).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise InputError(
                f"{self.root}: holds files other than synthetic scenes; choose another --data.root"
            ) from None
        if found != self.manifest:
            raise InputError(
                f"{self.root}: holds other synthetic scenes ({found}, wanted {self.manifest}); "
                "choose another --data.root or remove that folder"
            )
        return True

    def _draw(self, folder: Path, split: str) -> None:
        for index in range(self.manifest[split]):
            rng = np.random.default_rng((self.seed, SPLITS.index(split), index))
            image, labels = draw_scene(rng, self.manifest["height"], self.manifest["width"])
            stem = f"{split}/street/street_{index:06d}_000000"
            write_png(folder / "leftImg8bit" / f"{stem}_leftImg8bit.png", image)
            write_png(folder / "gtFine" / f"{stem}_gtFine_labelIds.png", labels)

    def _move_in_place(self, temporary: Path) -> None:
        try:
            temporary.rename(self.root)  # replaces an empty folder, fails on any other
        except OSError:
            if not self._is_there():  # another process drew the same scenes first
                raise
