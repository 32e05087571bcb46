"""`segkit fit --probe`: the largest batch that fits, and the time that the run would take; nothing is trained."""

import time
from itertools import islice
from typing import Any

import pytorch_lightning as pl
import torch

from segkit.cli.words import say
from segkit.data.datamodule import SegmentationDataModule
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


def probe(trainer: pl.Trainer, module: SegmentationModule, data: SegmentationDataModule) -> None:
    """Print the table and the estimate.

    Raises:
        InputError: Not even the smallest batch fits.
    """
    device = trainer.strategy.root_device
    data.prepare_data()
    data.setup("fit")
    module.to(device)
    height, width = data.crop_size
    say(f"probe on {device}, precision {trainer.precision}, crops {height}x{width}: three steps a batch size\n")
    say("batch  s/step  images/s  peak memory")
    limit = int(SHARE * available_memory(device, trainer.num_devices if device.type == "cpu" else 1))
    prober = Prober(module, data.crop_size, trainer.precision_plugin.train_step_context)
    rows = []
    for row in (search_gpu if device.type == "cuda" else search_cpu)(prober, limit):
        say(_row(row))
        rows.append(row)
    if not rows:
        raise InputError(
            f"--probe: not even 2 crops of {height}x{width} fit; lower --data.crop_size, or set "
            "--model.checkpoint_stages '[1, 2, 3, 4]'"
        )
    _print_largest(rows, limit, data.batch_size, on_gpu=device.type == "cuda")
    own = next((row for row in rows if row.batch_size == data.batch_size), None)
    own = own or _nearest(rows, data.batch_size)
    _print_times(trainer, module, data, own.seconds * data.batch_size / own.batch_size)


def _row(row: Probed) -> str:
    rate = rate_text(row.batch_size / row.seconds)
    return f"{row.batch_size:5}  {row.seconds:6.3f}  {rate:>10}  {row.memory / 2**30:8.2f} GB"


def _nearest(rows: list[Probed], batch_size: int) -> Probed:
    return min(rows, key=lambda row: abs(row.batch_size - batch_size))


def _print_largest(rows: list[Probed], limit: int, configured: int, on_gpu: bool) -> None:
    if on_gpu or len(rows) < 2:
        largest, how = max(row.batch_size for row in rows), "tried"
    else:
        largest, how = largest_on_line(rows, limit), "on the line through the last two"
    say(f"\nlargest batch within {limit / 2**30:.1f} GB: {largest} ({how}); configured: {configured}")
    if configured > largest > 0:
        fits = max(n for n in range(1, largest + 1) if configured % n == 0)
        say(f"set --data.batch_size {fits} --trainer.accumulate_grad_batches {configured // fits}")


def _print_times(
    trainer: pl.Trainer, module: SegmentationModule, data: SegmentationDataModule, computing: float
) -> None:
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
    say(f"a batch of {data.batch_size}: {computing:.3f} s to compute, {loading:.3f} s to load; {bound}")
    say(f"training     {clock(training)}  {in_all} batches, {trainer.world_size} process(es)")
    say(f"validation   {clock(validating)}  {validations} times {images} images a process")
    say(f"in all about {clock(training + validating)}")


def _seconds_a_batch(data: SegmentationDataModule) -> float:
    loader = data.train_dataloader()
    batches = iter(loader)
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


def _seconds_an_image(trainer: pl.Trainer, module: SegmentationModule, data: SegmentationDataModule) -> float:
    batch: Any = next(iter(data.val_dataloader()))
    image = normalize(batch["image"].to(module.device), module.normalization)
    module.eval()
    times = []
    for _ in range(2):
        start = time.perf_counter()
        with torch.inference_mode(), trainer.precision_plugin.val_step_context():
            predict(module.network, image, module.validation_protocol, normalization=module.normalization).cpu()
        times.append(time.perf_counter() - start)
    return times[-1]
