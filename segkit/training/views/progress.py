"""The progress of a run: how much there is to do, how fast, and how good so far.

`test`, `validate` and `predict` begin with a line (images, forwards per image, about how long); then a bar counts
images and shows forwards per second and the running score. Nothing here touches the result or the random numbers.
"""

import math
import time
from collections.abc import Sequence, Sized
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import ProgressBar
from pytorch_lightning.utilities import rank_zero_info

from segkit.bars import Bar
from segkit.errors import InputError
from segkit.evaluation.conventions import DEFAULT
from segkit.inference.engine import default_pixels, forwards
from segkit.inference.protocols import Protocol
from segkit.inference.views import network_inputs
from segkit.models.norms import eval_mode
from segkit.text import counted
from segkit.training.base import NetworkModule
from segkit.training.module import SegmentationModule
from segkit.training.results import ResultWriter
from segkit.training.views.summary import rate_text

PEEKED = 5  # images that are read to learn their sizes
FEW = 20  # forwards: for fewer, timing one would take as long as the job
SLOW = 2.0  # seconds of a first forward, above which a second, warm one tells little more
REFRESH = 1.0  # seconds between two readings of the matrix, each of which waits for the GPU


class RunProgress(ProgressBar):
    """The progress bar of a run; `fit` has one for each epoch, which counts steps.

    Only the first process shows a bar, of its own share. On a terminal `fit` has Lightning's bar instead of this one.
    """

    def __init__(self) -> None:
        super().__init__()
        self._bar: Bar | None = None
        self._silent = False
        self._forwards: dict[tuple[int, int], int] = {}
        self._done = 0
        self._started = self._looked = 0.0

    def disable(self) -> None:
        """Show nothing from now on."""
        self._silent = True

    def enable(self) -> None:
        """Show the progress bar again."""
        self._silent = False

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print a line above the bar."""
        if not self._silent:
            Bar.write(kwargs.get("sep", " ").join(map(str, args)), end=kwargs.get("end", "\n"))

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the bar of an epoch."""
        if not self._silent:
            steps = trainer.num_training_batches
            total = None if math.isinf(steps) else int(steps)
            self._bar = Bar(total=total, desc=f"epoch {trainer.current_epoch}", unit="step", dynamic_ncols=True)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the step; a resumed run begins in the middle of an epoch."""
        if self._bar is not None:
            self._bar.update(batch_idx + 1 - self._bar.n)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave a line with the values that were logged in the epoch."""
        if self._bar is not None:
            self._bar.set_postfix(self.get_metrics(trainer, pl_module), refresh=False)
        self._close()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say how much there is to do, and start the bar."""
        if self._silent or trainer.state.fn == "fit":
            return
        loader, batches = _stage(trainer)
        share, images = _share(loader, batches), len(loader.dataset)
        if isinstance(pl_module, SegmentationModule):
            job = Job(pl_module.protocol, min(share * trainer.world_size, images), image_sizes(loader.dataset))
            seconds = None if job.forwards < FEW else job.seconds(seconds_per_pixel(trainer, pl_module, job))
            if job.sizes:
                rank_zero_info(job.describe(None if seconds is None else seconds / trainer.world_size))
        assert trainer.state.fn is not None
        process = f", process 1 of {trainer.world_size}" if trainer.world_size > 1 else ""
        self._bar = Bar(total=share, desc=trainer.state.fn.value + process, unit="image", dynamic_ncols=True)
        self._started = self._looked = time.perf_counter()
        self._done = 0

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count the batch's images on the bar."""
        assert isinstance(pl_module, NetworkModule)
        if self._bar is None or trainer.state.fn == "fit":
            return
        count, _, height, width = batch["image"].shape
        if (height, width) not in self._forwards:
            once = 1  # a classifier's
            if isinstance(pl_module, SegmentationModule):
                once = forwards(pl_module.protocol, (height, width))
            self._forwards[height, width] = once
        self._done += count * self._forwards[height, width]
        if time.perf_counter() - self._looked > REFRESH:
            self._look(self._bar, trainer, pl_module)
        self._bar.update(count)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the last line of the bar."""
        assert isinstance(pl_module, NetworkModule)
        if self._bar is not None and trainer.state.fn != "fit":
            self._look(self._bar, trainer, pl_module)
            self._close()

    on_validation_start = on_predict_start = on_test_start
    on_validation_batch_end = on_predict_batch_end = on_test_batch_end
    on_validation_epoch_end = on_predict_epoch_end = on_test_epoch_end

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the bar where it stopped."""
        self._close()

    def _look(self, bar: Bar, trainer: Trainer, module: NetworkModule) -> None:
        """Show the speed and this process's score so far, by the requested metric, after the bar."""
        self._looked = time.perf_counter()
        rate = f"{rate_text(self._done / (self._looked - self._started))} forwards/s"
        bar.set_postfix_str(", ".join([rate, *_running_score(module, _metric(trainer))]), refresh=False)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


@dataclass(frozen=True)
class Job:
    """The work of an evaluation: a protocol, a number of images, and the (height, width) of some of them."""

    protocol: Protocol
    images: int
    sizes: list[tuple[int, int]]

    @property
    def forwards(self) -> int:
        """The approximate number of inputs of the network in all, flips and windows counted one by one."""
        return round(self.images * _mean([forwards(self.protocol, size) for size in self.sizes]))

    def seconds(self, per_pixel: float | None) -> float | None:
        """The approximate time that one process takes for all images."""
        if per_pixel is None:
            return None
        inputs = [network_inputs(self.protocol, size) for size in self.sizes]
        pixels = [sum(count * height * width for count, (height, width) in seen) for seen in inputs]
        return self.images * _mean(pixels) * per_pixel

    def heaviest(self, device: torch.device) -> tuple[int, tuple[int, int]]:
        """The number and shape of inputs that the network takes at once at the scale with most of the work."""
        inputs = [seen for size in self.sizes for seen in network_inputs(self.protocol, size)]
        count, shape = max(inputs, key=lambda seen: seen[0] * seen[1][0] * seen[1][1])
        return min(count, max(1, default_pixels(device) // (shape[0] * shape[1]))), shape

    def describe(self, seconds: float | None) -> str:
        """The line that is printed first, with or without a time."""
        each = sorted({forwards(self.protocol, size) for size in self.sizes})
        span = f"{each[0]}" if len(each) == 1 else f"{each[0]} to {each[-1]}"
        about = "" if len(each) == 1 else "about "
        line = f"{counted(self.images, 'image')}, protocol {self.protocol.name}: "
        line += f"{span} forward{'s' * (each[-1] > 1)} each, {about}{self.forwards} in all"
        return line if seconds is None else f"{line}; the network needs about {duration(seconds)}"


def image_sizes(dataset: Any, most: int = PEEKED) -> list[tuple[int, int]]:
    """(height, width) of evenly spread images; none if one cannot be read, which the run itself reports.

    Args:
        dataset: Map-style, of items with "image" (3, H, W).
        most: How many images to read.
    """
    count = min(most, len(dataset))
    found = []
    with suppress(InputError):
        for i in range(count):
            height, width = dataset[i * len(dataset) // count]["image"].shape[-2:]
            found.append((int(height), int(width)))
    return found


@torch.inference_mode()
def seconds_per_pixel(trainer: Trainer, module: SegmentationModule, job: Job) -> float | None:
    """Time per pixel of one warm forward pass at the job's heaviest shape; None if memory does not suffice."""
    count, shape = job.heaviest(module.device)
    image = torch.zeros(count, 3, *shape, device=module.device).contiguous(memory_format=torch.channels_last)
    taken = 0.0
    precision = trainer.precision_plugin
    try:
        with eval_mode(module.network), precision.forward_context():
            for _ in range(2):
                started = time.perf_counter()
                module.network(precision.convert_input(image))
                if module.device.type == "cuda":
                    torch.cuda.synchronize(module.device)
                taken = time.perf_counter() - started
                if taken > SLOW:
                    break
    except torch.OutOfMemoryError:
        return None
    return taken / (count * shape[0] * shape[1])


def duration(seconds: float) -> str:
    """Format a time for people: 40 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


def _stage(trainer: Trainer) -> tuple[Any, Sequence[int | float]]:
    """The loader of the running command, and the number of its batches that are used."""
    if trainer.state.fn == "test":
        return trainer.test_dataloaders, trainer.num_test_batches
    if trainer.state.fn == "predict":
        return trainer.predict_dataloaders, trainer.num_predict_batches
    return trainer.val_dataloaders, trainer.num_val_batches


def _share(loader: Any, batches: Sequence[int | float]) -> int:
    """The number of images that this process sees."""
    mine = len(loader.sampler) if isinstance(loader.sampler, Sized) else len(loader.dataset)
    return int(min(mine, sum(batches) * (loader.batch_size or 1)))


def _metric(trainer: Trainer) -> str:
    """The convention of the table after the bar."""
    writers = [callback for callback in trainer.callbacks if isinstance(callback, ResultWriter)]  # type: ignore[attr-defined]
    return writers[0].convention.name if writers else DEFAULT


def _running_score(module: NetworkModule, metric: str) -> list[str]:
    """The score so far; None while predicting, before the first image, or if the matrix has undeclared ids."""
    with suppress(Exception):  # a user's own rule may need all images, and the bar must not end the run
        if module.num_scored:
            return [module.running(metric)]
    return []


def _mean(values: Sequence[int]) -> float:
    return sum(values) / len(values) if values else 0.0
