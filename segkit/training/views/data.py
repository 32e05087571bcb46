"""Watches the data that training receives: their speed, the wait for them, and the classes in them."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Callback
from torch import Tensor

from segkit.training.module import SegmentationModule
from segkit.training.preflight import is_whole

WARN_SHARE = 0.2  # share of the time
WARN_STEPS = 50  # measured, before a warning
EARLY = 10  # steps after which masks that hold one class at most are reported
_FEWEST = 10  # measured, before a warning at the end of an epoch
_WARM_UP = 10  # steps of an epoch in which workers are still starting, and queues filling

_log = logging.getLogger(__name__)


class Throughput(Callback):
    """Logs speed, and warns once if training waits long for its data; all values are smoothed over ~10 steps.

    `samples/s` are images of all processes per second since the last batch. `data_wait` is the share of a step's time,
    from the end of the step before, that fetching its batch takes. The first steps of an epoch, validation and the
    writing of checkpoints are left out. A loader that measures the wait itself, as segkit's does (`seconds_waited`), is
    trusted; for others it is the time between two steps. Nothing here waits for the device.

    Args:
        cure: Returns advice on how to make loading faster in this run.
        clock: Returns seconds since any fixed time.
    """

    def __init__(self, cure: Callable[[], str], clock: Callable[[], float] = time.perf_counter) -> None:
        self.cure, self.clock = cure, clock
        self._last: float | None = None  # the end of the last step of this epoch
        self._rate: float | None = None
        self._warned = False
        self._begin = 0.0  # when the batch of this step had arrived
        self._fetched = 0.0  # the loader's `seconds_waited` at the end of the last step
        self._measured = False  # whether the time since the last step is waiting, not validation or a checkpoint
        self._steps = 0  # steps of the epoch
        self._recent, self._unjudged = _Times(), _Times()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave out the time between epochs, and warm up again: workers may just have been started."""
        self._last, self._steps = None, 0

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave out the time of the validation."""
        self._measured = False

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Leave out the time of writing."""
        self._measured = False

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Note when the batch has arrived."""
        self._begin = self.clock()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log speed and wait; from now on the run waits for the next batch."""
        now = self.clock()
        fetched: float | None = getattr(trainer.train_dataloader, "seconds_waited", None)
        self._steps += 1
        if self._last is not None:
            rate = len(batch["image"]) * trainer.world_size / (now - self._last)
            self._rate = rate if self._rate is None else 0.9 * self._rate + 0.1 * rate
            pl_module.log("samples/s", self._rate, prog_bar=True)
            if self._measured and self._steps > _WARM_UP:
                waited = self._begin - self._last if fetched is None else fetched - self._fetched
                for times, keep in ((self._recent, 0.9), (self._unjudged, 1.0)):
                    times.add(waited, now - self._last, keep)
                pl_module.log("data_wait", round(self._recent.share, 2), prog_bar=True)
                if self._unjudged.steps >= WARN_STEPS:
                    self._judge(trainer)
        self._last, self._fetched, self._measured = now, fetched or 0.0, True

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check epochs that are too short for the regular check."""
        if self._unjudged.steps >= _FEWEST:
            self._judge(trainer)

    def _judge(self, trainer: Trainer) -> None:
        """Warn if the share is large; then measure anew, so that a slow start does not affect later checks."""
        share = self._unjudged.share
        if share > WARN_SHARE and not self._warned and trainer.is_global_zero:
            self._warned = True
            _log.warning("training waited %.0f %% of the time for data: %s", 100 * share, self.cure())
        self._unjudged = _Times()


@dataclass
class _Times:
    """Sums over steps, in seconds."""

    waited: float = 0.0
    whole: float = 0.0
    steps: int = 0

    @property
    def share(self) -> float:
        return self.waited / self.whole if self.whole else 0.0

    def add(self, waited: float, whole: float, keep: float) -> None:
        """Count a step; earlier sums decay by the factor `keep`."""
        self.waited, self.whole = keep * self.waited + waited, keep * self.whole + whole
        self.steps += 1


class SeenClasses(Callback):
    """Warns once of classes that are in no crop: after `EARLY` steps if at most one class is seen, else after an epoch.

    It checks the training crops until the end of the first epoch that this process sees from the start. It reads no
    file, and waits for a GPU only twice.
    """

    def __init__(self) -> None:
        self._seen: Tensor | None = None  # bool (256), train ids that have occurred; None: counting is over
        self._steps = self._crops = 0
        self._warned = False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start with no class seen."""
        self._seen = torch.zeros(256, dtype=torch.bool, device=pl_module.device)
        self._warned = False

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start counting the steps of the epoch."""
        self._steps = self._crops = 0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note which ids occur in the masks."""
        if self._seen is None:
            return
        _mark(self._seen, batch["mask"])
        self._steps += 1
        self._crops += len(batch["mask"])
        if self._steps == EARLY and trainer.is_global_zero:
            self._warn_of_one_class(pl_module, self._seen, f"the first {self._crops} crops of this process")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Name the classes that did not occur, if the epoch was seen from the start."""
        if self._seen is None or self._steps < trainer.num_training_batches:
            return
        seen = trainer.strategy.reduce(self._seen.int(), reduce_op="sum")  # over all processes
        self._seen = None
        if trainer.is_global_zero and isinstance(seen, Tensor):
            crops = f"the {self._crops * trainer.world_size} crops of epoch {trainer.current_epoch}"
            self._warn_of_one_class(pl_module, seen, crops)
            if not self._warned and is_whole(trainer.limit_train_batches):
                _warn_of_absent_classes(pl_module, seen, crops)

    def _warn_of_one_class(self, module: LightningModule, seen: Tensor, where: str) -> None:
        assert isinstance(module, SegmentationModule)
        note = module.classes.note_of_absence(seen.nonzero().flatten().tolist())
        if note is not None and not self._warned:
            self._warned = True
            _log.warning("nothing can be learned here: in %s %s", where, note)


def _warn_of_absent_classes(module: LightningModule, seen: Tensor, where: str) -> None:
    assert isinstance(module, SegmentationModule)
    names = [name for name, times in zip(module.classes.class_names, seen.tolist(), strict=False) if not times]
    if names:
        _log.warning("nothing is learned of %s: none of %s has a pixel of it", ", ".join(names), where)


def _mark(seen: Tensor, mask: Tensor) -> None:
    """Set the ids of a mask, uint8 (B, H, W), in `seen`, bool (256), without waiting for a GPU."""
    if mask.device.type == "cpu":
        seen |= torch.bincount(mask.flatten(), minlength=256) > 0
    else:
        seen.index_fill_(0, mask.flatten().long(), True)
