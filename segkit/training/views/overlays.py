"""Draws the same few validation images after every validation, to show what the network gets right, and when."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor

from segkit.arrays import UInt8Array
from segkit.bands import Bands
from segkit.errors import InputError
from segkit.io import write_png
from segkit.metadata.label_space import LabelSpace
from segkit.training.module import SegmentationModule
from segkit.visualization import (
    IGNORED,
    colorize,
    fit,
    hatch,
    legend,
    magnified,
    occurring,
    padded,
    side_by_side,
    text_line,
)

TAG = "validation"  # tag of the images in TensorBoard, and their folder in the run's

_LONGEST, _SHORTEST = 480, 240  # pixels: larger panels are reduced, smaller ones enlarged by a whole factor
_GAP, _TEXT, _LINE = 6, 14, 24  # pixels: between panels, of the font, of a line of text
_STRIPED = (130, 130, 130)


@dataclass(frozen=True)
class Example:
    """A validation image at the size at which it is drawn.

    Attributes:
        name: Name of the image.
        image: uint8 (H, W, 3) RGB.
        truth: Train ids, uint8 (H, W), 255 = ignored.
        prediction: Train ids, uint8 (H, W).
    """

    name: str
    image: UInt8Array
    truth: UInt8Array
    prediction: UInt8Array


class ValidationOverlays(Callback):
    """Draws image | ground truth | prediction of a few images of the validation split, at each validation.

    They go to `<run>/validation/epoch<e>-step<s>.png` and to every TensorBoard logger. The module's `validation_step`
    must return the labels that it predicted, uint8 (B, H, W). Of several processes the first one draws, from its own
    share of the split, which is the same at each validation.

    Args:
        count: Images to draw; 0 = none.

    Raises:
        InputError: count is negative.
    """

    def __init__(self, count: int = 4) -> None:
        if count < 0:
            raise InputError(f"count of validation images is {count}; allowed is 0 (draw none) or more")
        self.count = count
        self._examples: list[Example] = []

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Discard images of a validation that was interrupted."""
        self._examples = []

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, loader: int = 0
    ) -> None:
        """Keep small copies of evenly spread images in the CPU's memory."""
        fitting = trainer.state.fn == "fit" and not trainer.sanity_checking
        if loader == 0 and fitting and trainer.is_global_zero and isinstance(outputs, Tensor):
            batches = trainer.num_val_batches[0]
            due = self.count if math.isinf(batches) else math.ceil((batch_idx + 1) * self.count / batches)
            if due > len(self._examples):
                bands = pl_module.normalization.bands if isinstance(pl_module, SegmentationModule) else None
                self._examples += _examples(batch, outputs, due - len(self._examples), bands)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the kept images."""
        if not self._examples:
            return
        assert isinstance(pl_module, SegmentationModule)
        sheet = draw_examples(self._examples, pl_module.classes)
        self._examples = []
        step = trainer.global_step
        # Not log_dir, which is broadcast: only one process is here.
        write_png(Path(trainer.default_root_dir) / TAG / f"epoch{trainer.current_epoch:03d}-step{step:06d}.png", sheet)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image(TAG, sheet, step, dataformats="HWC")


def draw_examples(examples: Sequence[Example], space: LabelSpace) -> UInt8Array:
    """Draw one row per example, image | ground truth | prediction under its name, above one legend.

    Args:
        examples: One or more.
        space: Names and colours of the classes.

    Returns:
        uint8 RGB. Labels have exactly the palette's colours; ignored pixels of the truth are hatched.

    Raises:
        InputError: A label has no colour.
    """
    rows = [_row(example, space) for example in examples]
    width = max(row.shape[1] for row in rows)
    found = occurring(np.concatenate([ids.ravel() for e in examples for ids in (e.truth, e.prediction)]))
    found.sort(key=lambda i: i == IGNORED)
    names = ["ignored (hatched)" if i == IGNORED else space.class_names[i] for i in found]
    colours = [_STRIPED if i == IGNORED else space.palette[i] for i in found]
    return np.vstack([*(padded(row, width, len(row) + _GAP) for row in rows), legend(names, colours, width, _TEXT)])


def _examples(batch: Any, labels: Tensor, most: int, bands: Bands | None) -> list[Example]:
    """The first `most` of a batch; `image` (B, C, H, W), `mask` and `labels` (B, H, W)."""
    count = min(most, len(labels))
    names = batch.get("name") or [""] * count
    found = []
    for i in range(count):
        image = batch["image"][i].permute(1, 2, 0).cpu().numpy()  # (C, H, W) -> (H, W, C)
        image = image if bands is None else bands.as_rgb(image)
        truth, prediction = (ids[i].cpu().numpy().astype(np.uint8) for ids in (batch["mask"], labels))
        small, small_truth = fit(image, truth, _LONGEST)
        # Copies, so that no view keeps a batch in memory.
        maps = [np.array(array, np.uint8) for array in (small, small_truth, fit(image, prediction, _LONGEST)[1])]
        found.append(Example(names[i], *maps))
    return found


def _row(example: Example, space: LabelSpace) -> UInt8Array:
    factor = max(1, _SHORTEST // max(example.truth.shape))
    image, truth, prediction = (magnified(a, factor) for a in (example.image, example.truth, example.prediction))
    row = side_by_side([image, hatch(colorize(truth, space.palette), truth), colorize(prediction, space.palette)], _GAP)
    title = f"{example.name}:  image | ground truth | prediction".removeprefix(":  ")
    return np.vstack([text_line(title, row.shape[1], _TEXT, _LINE), row])
