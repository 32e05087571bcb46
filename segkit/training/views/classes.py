"""Which classes a training sees: of one that never occurs nothing is learned, and that is said."""

import logging
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor

from segkit.training.callbacks import is_whole
from segkit.training.module import SegmentationModule

EARLY = 10  # steps after which masks that hold one class at most are told

_log = logging.getLogger(__name__)


class SeenClasses(Callback):
    """Warns, once, of classes that no crop has: after `EARLY` steps if there is one class at most, else after an epoch.

    It looks at the crops that are trained on, until the first epoch that this process sees from its beginning is over:
    no file is read for it, and a GPU is waited for twice in all.
    """

    def __init__(self) -> None:
        self._seen: Tensor | None = None  # bool (256), which train ids have occurred; None: not to be counted any more
        self._steps = self._crops = 0
        self._warned = False

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Count from here."""
        self._seen = torch.zeros(256, dtype=torch.bool, device=pl_module.device)
        self._warned = False

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Count the steps of the epoch."""
        self._steps = self._crops = 0

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note which ids the masks have."""
        if self._seen is None:
            return
        _mark(self._seen, batch["mask"])
        self._steps += 1
        self._crops += len(batch["mask"])
        if self._steps == EARLY and trainer.is_global_zero:
            self._warn_of_one_class(pl_module, self._seen, f"the first {self._crops} crops of this process")

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say which classes did not occur, if the epoch was seen from its beginning."""
        if self._seen is None or self._steps < trainer.num_training_batches:
            return
        seen = trainer.strategy.reduce(self._seen.int(), reduce_op="sum")  # over all processes
        self._seen = None
        if trainer.is_global_zero and isinstance(seen, Tensor):
            crops = f"the {self._crops * trainer.world_size} crops of epoch {trainer.current_epoch}"
            self._warn_of_one_class(pl_module, seen, crops)
            if not self._warned and is_whole(trainer.limit_train_batches):
                _warn_of_absent_classes(pl_module, seen, crops)

    def _warn_of_one_class(self, module: pl.LightningModule, seen: Tensor, where: str) -> None:
        assert isinstance(module, SegmentationModule)
        note = module.classes.note_of_absence(seen.nonzero().flatten().tolist())
        if note is not None and not self._warned:
            self._warned = True
            _log.warning("nothing can be learned here: in %s %s", where, note)


def _warn_of_absent_classes(module: pl.LightningModule, seen: Tensor, where: str) -> None:
    assert isinstance(module, SegmentationModule)
    names = [name for name, times in zip(module.classes.class_names, seen.tolist(), strict=False) if not times]
    if names:
        _log.warning("nothing is learned of %s: none of %s has a pixel of it", ", ".join(names), where)


def _mark(seen: Tensor, mask: Tensor) -> None:
    """Set the ids of a mask, uint8 (B, H, W), in `seen`, bool (256); a GPU is not waited for."""
    if mask.device.type == "cpu":
        seen |= torch.bincount(mask.flatten(), minlength=256) > 0
    else:
        seen.index_fill_(0, mask.flatten().long(), True)
