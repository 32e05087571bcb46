"""How fast training goes, and whether it waits for its data."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

WARN_SHARE = 0.2  # of the time
WARN_STEPS = 50  # measured, before a warning
_FEWEST = 10  # measured, before a warning at the end of an epoch
_WARM_UP = 10  # steps of an epoch in which workers are still starting, and queues filling

_log = logging.getLogger(__name__)


class Throughput(Callback):
    """Logs `samples/s` over all processes: images since the last batch by the time, smoothed over ~10 steps.

    Args:
        clock: Gives seconds from any beginning.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.clock = clock
        self._last: float | None = None
        self._rate: float | None = None

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Forget the time that validation took."""
        self._last = None

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the rate."""
        now = self.clock()
        if self._last is not None:
            rate = len(batch["image"]) * trainer.world_size / (now - self._last)
            self._rate = rate if self._rate is None else 0.9 * self._rate + 0.1 * rate
            pl_module.log("samples/s", self._rate, prog_bar=True)
        self._last = now


class DataWait(Callback):
    """Logs `data_wait`, the share of the time in which training waits for batches, and warns once of a large one.

    It is the time that fetching a batch takes, over that from the end of a step to the end of the next one; smoothed
    over ~10 steps. The first steps of an epoch, validation and the writing of checkpoints are left out. A loader that
    counts the time itself, as segkit's `seconds_waited`, is believed; of another one it is what lies between two steps.
    Nothing here waits for the device.

    Args:
        cure: Tells, when it is asked, what would make loading faster in this run.
        clock: Gives seconds from any beginning.
    """

    def __init__(self, cure: Callable[[], str], clock: Callable[[], float] = time.perf_counter) -> None:
        self.cure, self.clock = cure, clock
        self._warned = False
        self._begin = 0.0  # when the batch of this step was there
        self._fetched = 0.0  # what the loader had counted at the end of the last step, in seconds
        self._end: float | None = None  # when the last step ended; None: what follows it is not to be measured
        self._steps = 0  # of the epoch
        self._recent, self._unjudged = _Times(), _Times()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Warm up again: workers may just have been started."""
        self._end, self._steps = None, 0

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave out what validation took."""
        self._end = None

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Leave out what writing takes."""
        self._end = None

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """The batch is here."""
        self._begin = self.clock()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """The next one is waited for from now on."""
        now = self.clock()
        fetched: float | None = getattr(trainer.train_dataloader, "seconds_waited", None)
        self._steps += 1
        if self._end is not None and self._steps > _WARM_UP:
            waited = self._begin - self._end if fetched is None else fetched - self._fetched
            for times, keep in ((self._recent, 0.9), (self._unjudged, 1.0)):
                times.add(waited, now - self._end, keep)
            pl_module.log("data_wait", round(self._recent.share, 2), prog_bar=True)
            if self._unjudged.steps >= WARN_STEPS:
                self._judge(trainer)
        self._end, self._fetched = now, fetched or 0.0

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Judge short epochs, too."""
        if self._unjudged.steps >= _FEWEST:
            self._judge(trainer)

    def _judge(self, trainer: pl.Trainer) -> None:
        """Warn if the share is large; then measure anew, so that a slow start does not weigh on what follows."""
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
        """Count a step; of what was before, `keep` is kept."""
        self.waited, self.whole = keep * self.waited + waited, keep * self.whole + whole
        self.steps += 1
