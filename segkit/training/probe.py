"""`segkit fit --probe`: the largest batch that fits, and the time that the run would take; nothing is trained."""

import time
from collections.abc import Iterator, Mapping, Sized
from itertools import islice
from typing import Any, Protocol

import pytorch_lightning as pl
import torch

from segkit.errors import InputError
from segkit.inference.engine import predict
from segkit.ops.normalize import normalize
from segkit.training.guards.memory import (
    SHARE,
    Probed,
    Prober,
    available_memory,
    largest_on_line,
    search_cpu,
    search_gpu,
)
from segkit.training.module import SegmentationModule
from segkit.training.views.summary import clock, rate_text

_BATCHES = 8  # whose loading is timed


class Data(Protocol):
    """What the probe asks of a data module; `crop_size` is (H, W) in pixels."""

    batch_size: int
    crop_size: tuple[int, int]
    datasets: Mapping[Any, Sized]

    def prepare_data(self) -> None: ...  # noqa: D102
    def setup(self, stage: str) -> None: ...  # noqa: D102
    def train_dataloader(self) -> Any: ...  # noqa: D102
    def val_dataloader(self) -> Any: ...  # noqa: D102


def probe(trainer: pl.Trainer, module: SegmentationModule, data: Data) -> Iterator[str]:
    """The lines of a table of batch sizes, each as soon as it is measured, and of an estimate of the run.

    Args:
        trainer: Of the run; its device and precision are those of the probe.
        module: Its weights are changed.
        data: Not set up yet.

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


def _times(trainer: pl.Trainer, module: SegmentationModule, data: Data, computing: float) -> Iterator[str]:
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


def _validations(trainer: pl.Trainer, batches: int, in_all: int) -> int:
    if trainer.check_val_every_n_epoch is None:
        return in_all // int(trainer.val_check_interval)
    epochs = in_all // batches if batches else 0
    a_epoch = round(1 / trainer.val_check_interval) if isinstance(trainer.val_check_interval, float) else 1
    return epochs // trainer.check_val_every_n_epoch * max(1, a_epoch)


def _seconds_an_image(trainer: pl.Trainer, module: SegmentationModule, data: Data) -> float:
    """Of the second of two forwards, in the precision of the run."""
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
