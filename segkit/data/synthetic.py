"""Procedural street scenes on disk in the Cityscapes layout: train and test without any download.

Images are drawn once by `prepare_data` and then read through the code that reads Cityscapes.
"""

import os
import shutil
import uuid
from pathlib import Path
from typing import Any

import numpy as np

from segkit.data.datamodule import SegmentationDataModule
from segkit.data.layouts.base import SPLITS
from segkit.data.layouts.synthetic import SyntheticLayout
from segkit.data.street.scene import draw_scene
from segkit.errors import InputError
from segkit.files import parse_json, write_json
from segkit.io import write_png

VERSION = 1  # raise it when the drawing changes: folders written before are then not mistaken for these
MANIFEST = "synthetic.json"


class SyntheticDataModule(SegmentationDataModule):
    """Drawn street scenes of nine classes, with Cityscapes' label ids, names, colours and folders.

    `prepare_data` writes them under `root` unless a set with the same seed, sizes and counts is there already.

    Args:
        root: Folder to write to; absent or empty, or one that this class wrote before.
        base_size: Pixels of the long side at scale 1.
        crop_size: Pixels, height and width of a training crop.
        seed: Of the scenes, the shuffling and the transforms.
        num_train: Scenes in the training split.
        num_val: Scenes in the validation split.
        num_test: Scenes in the test split.
        height: Pixels of a scene.
        width: Pixels of a scene.
        **options: As in the base class.

    Raises:
        InputError: A number is out of range, or `root` holds something else: nothing is ever overwritten.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        base_size: int | tuple[int, int] = 256,
        crop_size: int | tuple[int, int] = 128,
        seed: int = 0,
        num_train: int = 160,
        num_val: int = 24,
        num_test: int = 24,
        height: int = 128,
        width: int = 256,
        **options: Any,
    ) -> None:
        super().__init__(SyntheticLayout(root), base_size=base_size, crop_size=crop_size, seed=seed, **options)
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

    def prepare_data(self) -> None:
        """Draw the scenes unless they are there, then as in the base class.

        Raises:
            InputError: `root` holds other scenes or other files.
        """
        self._draw_all()
        super().prepare_data()

    def setup(self, stage: str) -> None:
        """As in the base class."""
        self._draw_all()  # free when the scenes are there, so that the loaders work without a Trainer too
        super().setup(stage)

    def _draw_all(self) -> None:
        """Into a temporary folder, which is then renamed."""
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
                f"{self.root}: holds something else than synthetic scenes and is left alone; choose another --data.root"
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
            if not self._is_there():  # another process was faster with the same scenes
                raise
