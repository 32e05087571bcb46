"""`segkit fit --probe`: the largest batch that fits, and the time that a run would take; nothing is trained.

It makes real steps of the real network on noise.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sized
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

import torch
from pytorch_lightning import Trainer

from segkit.errors import InputError
from segkit.inference.engine import predict
from segkit.ops.normalize import normalize
from segkit.ops.processor import free_bytes, is_out_of_memory, peak_memory
from segkit.training.losses import segmentation_loss
from segkit.training.module import SegmentationModule
from segkit.training.optim import build_optimizer, parameter_groups
from segkit.training.views.summary import clock, rate_text

SHARE = 0.9  # share of the memory that a run may take; images, loaders and fragmentation need the rest
_MOST = 1024  # crops a batch
_CPU_SIZES = (2, 4, 8)  # enough for a straight line; past the memory a CPU does not fail, it swaps, or is killed
_BATCHES = 8  # batches whose loading is timed


@dataclass(frozen=True)
class Probed:
    """One batch size that was tried.

    Attributes:
        batch_size: Crops in the batch.
        seconds: Time of one optimiser step.
        memory: Bytes, from `peak_memory`.
    """

    batch_size: int
    seconds: float
    memory: int


class Data(Protocol):
    """What the probe needs of a data module; `crop_size` is (H, W) in pixels."""

    batch_size: int
    crop_size: tuple[int, int]
    datasets: Mapping[Any, Sized]

    def prepare_data(self) -> None: ...  # noqa: D102
    def setup(self, stage: str) -> None: ...  # noqa: D102
    def train_dataloader(self) -> Any: ...  # noqa: D102
    def val_dataloader(self) -> Any: ...  # noqa: D102


def probe(trainer: Trainer, module: SegmentationModule, data: Data) -> Iterator[str]:
    """The lines of a table of batch sizes, each as soon as it is measured, and of an estimate of the run.

    Args:
        trainer: The run's trainer, whose device and precision the probe uses.
        module: The module, whose weights are changed.
        data: The data, not set up yet.

    Raises:
        InputError: Not even the smallest batch fits.
    """
    device = trainer.strategy.root_device
    data.prepare_data()
    data.setup("fit")
    module.to(device)
    height, width = data.crop_size
    yield f"probe on {device}, precision {trainer.precision}, crops {height}x{width}: three steps a batch size\n"
    yield "batch  s/step  images/s  peak memory"
    limit = int(SHARE * available_memory(device, trainer.num_devices if device.type == "cpu" else 1))
    prober = Prober(module, data.crop_size, trainer.precision_plugin.train_step_context)
    rows = []
    for row in (search_gpu if device.type == "cuda" else search_cpu)(prober, limit):
        rate = rate_text(row.batch_size / row.seconds)
        yield f"{row.batch_size:5}  {row.seconds:6.3f}  {rate:>10}  {row.memory / 2**30:8.2f} GB"
        rows.append(row)
    if not rows:
        raise InputError(
            f"--probe: not even 2 crops of {height}x{width} fit; lower --data.crop_size, or set "
            "--model.checkpoint_stages '[1, 2, 3, 4]'"
        )
    yield from _largest(rows, limit, data.batch_size, on_gpu=device.type == "cuda")
    nearest = min(rows, key=lambda row: abs(row.batch_size - data.batch_size))
    yield from _times(trainer, module, data, nearest.seconds * data.batch_size / nearest.batch_size)


def _largest(rows: list[Probed], limit: int, configured: int, on_gpu: bool) -> Iterator[str]:
    if on_gpu or len(rows) < 2:
        largest, how = max(row.batch_size for row in rows), "tried"
    else:
        largest, how = largest_on_line(rows, limit), "on the line through the last two"
    yield f"\nlargest batch within {limit / 2**30:.1f} GB: {largest} ({how}); configured: {configured}"
    if configured > largest > 0:
        fits = max(n for n in range(1, largest + 1) if configured % n == 0)
        yield f"set --data.batch_size {fits} --trainer.accumulate_grad_batches {configured // fits}"


def _times(trainer: Trainer, module: SegmentationModule, data: Data, computing: float) -> Iterator[str]:
    loading = _seconds_a_batch(data)
    batches = len(data.datasets["train"]) // (data.batch_size * trainer.world_size)
    in_all = batches * max(0, trainer.max_epochs or 0)
    if trainer.max_steps > 0:
        steps = trainer.max_steps * trainer.accumulate_grad_batches
        in_all = min(in_all, steps) if in_all else steps
    training = in_all * max(computing, loading)
    validations = _validations(trainer, batches, in_all)
    images = -(-len(data.datasets["val"]) // trainer.world_size)
    validating = validations * images * _seconds_an_image(trainer, module, data)
    bound = "loading is the limit" if loading > computing else "computing is the limit"
    yield f"a batch of {data.batch_size}: {computing:.3f} s to compute, {loading:.3f} s to load; {bound}"
    yield f"training     {clock(training)}  {in_all} batches, {trainer.world_size} process(es)"
    yield f"validation   {clock(validating)}  {validations} times {images} images a process"
    yield f"in all about {clock(training + validating)}"


def _seconds_a_batch(data: Data) -> float:
    batches = iter(data.train_dataloader())
    next(batches)  # workers start
    start = time.perf_counter()
    loaded = sum(1 for _ in islice(batches, _BATCHES))
    return (time.perf_counter() - start) / loaded if loaded else 0.0


def _validations(trainer: Trainer, batches: int, in_all: int) -> int:
    if trainer.check_val_every_n_epoch is None:
        return in_all // int(trainer.val_check_interval)
    epochs = in_all // batches if batches else 0
    a_epoch = round(1 / trainer.val_check_interval) if isinstance(trainer.val_check_interval, float) else 1
    return epochs // trainer.check_val_every_n_epoch * max(1, a_epoch)


def _seconds_an_image(trainer: Trainer, module: SegmentationModule, data: Data) -> float:
    """Seconds per image of the second of two forwards, in the precision of the run."""
    batch = next(iter(data.val_dataloader()))
    image = normalize(batch["image"].to(module.device), module.normalization)
    module.eval()
    seconds = 0.0
    for _ in range(2):
        start = time.perf_counter()
        with torch.inference_mode(), trainer.precision_plugin.val_step_context():
            predict(module.network, image, module.validation_protocol, normalization=module.normalization).cpu()
        seconds = time.perf_counter() - start
    return seconds


class Prober:
    """Tries optimiser steps of a module, which change its weights, on the module's device.

    Args:
        module: Network, loss and optimiser.
        crop_size: (H, W) in pixels.
        autocast: Makes the context of the run's precision.
    """

    def __init__(
        self,
        module: SegmentationModule,
        crop_size: tuple[int, int],
        autocast: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self.module, self.crop_size, self.autocast = module, crop_size, autocast
        self.device = module.device
        module.train()
        self.optimizer = build_optimizer(module.optim, parameter_groups(module.network, 1e-6, module.optim))

    def try_batch(self, batch_size: int) -> Probed | None:
        """Make three steps, and report the faster one of the last two; None if memory does not suffice."""
        try:
            self._step(batch_size)
            if self.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(self.device)
            seconds = min(self._timed_step(batch_size) for _ in range(2))
            return Probed(batch_size, seconds, peak_memory(self.device))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            self.optimizer.zero_grad(set_to_none=True)
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            return None

    def _timed_step(self, batch_size: int) -> float:
        """Make one optimiser step, and return its seconds."""
        self._wait()
        start = time.perf_counter()
        self._step(batch_size)
        self._wait()
        return time.perf_counter() - start

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _step(self, batch_size: int) -> None:
        module, classes = self.module, self.module.network.num_classes
        image = torch.randint(0, 256, (batch_size, len(module.normalization.mean), *self.crop_size), dtype=torch.uint8)
        mask = torch.randint(0, classes, (batch_size, *self.crop_size), dtype=torch.uint8).to(self.device)
        x = normalize(image.to(self.device), module.normalization).contiguous(memory_format=torch.channels_last)
        with self.autocast():
            loss = segmentation_loss(module(x), mask, module.loss, module.network.align_corners)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def search_gpu(prober: Prober, limit: int) -> Iterator[Probed]:
    """Double the batch until it does not fit, then halve the gap; yields the sizes that fit, in the order of trial."""
    fits, too_large, size = 0, _MOST + 1, 2
    while too_large - fits > 1:
        tried = prober.try_batch(size)
        if tried is not None and tried.memory <= limit:
            fits = size
            yield tried
        else:
            too_large = size
        size = fits * 2 if too_large > _MOST and fits else (fits + too_large) // 2
        if size in (fits, 0) or size > _MOST:
            return


def search_cpu(prober: Prober, limit: int) -> Iterator[Probed]:
    """Try small batches only, and each only if the line through the earlier ones predicts that it fits."""
    done: list[Probed] = []
    for size in _CPU_SIZES:
        if len(done) >= 2 and line(done)(size) > limit:
            return
        tried = prober.try_batch(size)
        if tried is None:
            return
        done.append(tried)
        yield tried


def line(probed: list[Probed]) -> Callable[[int], float]:
    """Bytes as a function of the batch size: the straight line through the last two that were tried."""
    one, two = probed[-2:]
    slope = max(1.0, (two.memory - one.memory) / (two.batch_size - one.batch_size))
    return lambda size: two.memory + slope * (size - two.batch_size)


def largest_on_line(probed: list[Probed], limit: int) -> int:
    """The largest batch size whose memory on the line is within the limit."""
    memory = line(probed)
    return max((size for size in range(1, _MOST + 1) if memory(size) <= limit), default=0)


def available_memory(device: torch.device, processes: int = 1) -> int:
    """Bytes that each of `processes` on this machine can use at most, including what it uses already."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return (free_bytes(device) + peak_memory(device)) // processes
