"""How fast training goes, and whether it waits for its data."""

import logging
import time
from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

WARN_SHARE = 0.2  # of the time
WARN_STEPS = 50  # measured, before a warning; fewer at the end of an epoch
_FEWEST = 10
_WARM_UP = 10  # steps of an epoch in which workers are still starting, and queues filling

_log = logging.getLogger(__name__)


class Throughput(Callback):
    """Logs `samples/s` over all processes: pictures since the last batch by the time, smoothed over ~10 steps."""

    def __init__(self) -> None:
        self._last: float | None = None
        self._rate: float | None = None

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Forget the time that validation took."""
        self._last = None

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the rate."""
        now = time.perf_counter()
        if self._last is not None:
            rate = len(batch["image"]) * trainer.world_size / (now - self._last)
            self._rate = rate if self._rate is None else 0.9 * self._rate + 0.1 * rate
            pl_module.log("samples/s", self._rate, prog_bar=True)
        self._last = now


class DataWait(Callback):
    """Logs `data_wait`, the share of the time in which training waits for batches, and warns once of a large one.

    It is the time from the end of a step to the beginning of the next one, over that from end to end: what loading
    takes beyond what workers do while the network computes, and the copy to the device. The first steps of an epoch
    and validation are left out.

    Args:
        cure: Tells, when it is asked, what would make loading faster in this run.
    """

    def __init__(self, cure: Callable[[], str]) -> None:
        self.cure = cure
        self._warned = False
        self._begin = 0.0  # when the batch of this step was there
        self._end: float | None = None  # when the last step ended
        self._steps = 0  # of the epoch
        self._waited = self._whole = 0.0  # seconds

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure anew: workers may just have been started."""
        self._end, self._steps = None, 0
        self._waited = self._whole = 0.0

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave out what validation took."""
        self._end = None

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """The batch is here."""
        self._begin = time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """The next one is waited for from now on."""
        now = time.perf_counter()
        self._steps += 1
        if self._end is not None and self._steps > _WARM_UP:
            self._waited += self._begin - self._end
            self._whole += now - self._end
            pl_module.log("data_wait", self._waited / self._whole, prog_bar=True)
            if (self._steps - _WARM_UP) % WARN_STEPS == 0:
                self._judge(trainer)
        self._end = now

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Judge short epochs, too."""
        if self._steps - _WARM_UP >= _FEWEST:
            self._judge(trainer)

    def _judge(self, trainer: pl.Trainer) -> None:
        """Warn if the share is large; then measure anew, so that a slow start does not weigh on what follows."""
        share = self._waited / self._whole if self._whole else 0.0
        if share > WARN_SHARE and not self._warned and trainer.is_global_zero:
            self._warned = True
            _log.warning("training waited %.0f %% of the time for data: %s", 100 * share, self.cure())
        self._waited = self._whole = 0.0
