"""Memory: how much is used, advice when a batch does not fit, and the search for the largest one that does.

The search makes real steps of the real network on noise, before a run.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from segkit.ops.normalize import normalize
from segkit.ops.processor import free_bytes
from segkit.training.losses import segmentation_loss
from segkit.training.module import SegmentationModule
from segkit.training.optim import build_optimizer, parameter_groups

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

SHARE = 0.9  # of the memory that a run may take: images, loaders and fragmentation need the rest
_MOST = 1024  # crops a batch
_CPU_SIZES = (2, 4, 8)  # enough for a straight line; past the memory a CPU does not fail, it swaps, or is killed


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on a GPU or on the CPU."""
    words = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(word in str(error) for word in words)


def smaller_batch(batch_size: int, accumulated: int, crop_size: tuple[int, int]) -> str:
    """Advice in one line: what did not fit, and the largest smaller batch that trains on as many images a step.

    Args:
        batch_size: Crops in the batch that did not fit, of one process.
        accumulated: Batches of an optimiser step.
        crop_size: (H, W) in pixels.
    """
    height, width = crop_size
    what = f"out of memory with data.batch_size {batch_size}, crops of {height}x{width} and {accumulated} accumulated"
    others = "--model.checkpoint_stages '[3, 4]', --trainer.precision bf16-mixed"
    probe = "--probe finds the largest batch that fits"
    if batch_size == 1:
        smaller = max(8, height * 3 // 4 // 8 * 8), max(8, width * 3 // 4 // 8 * 8)
        return f"{what}: take --data.crop_size '[{smaller[0]}, {smaller[1]}]', or {others}"
    fits = max(n for n in range(1, batch_size) if batch_size % n == 0)
    times = accumulated * batch_size // fits
    return (
        f"{what}: take --data.batch_size {fits} --trainer.accumulate_grad_batches {times} (as many images a step), "
        f"or {others}; {probe}"
    )


def peak_memory(device: torch.device) -> int:
    """Largest memory use in bytes: of tensors on a GPU since the last reset, else of the process since it began.

    0 where the system does not tell.
    """
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if resource is None:
        return 0
    unit = 1 if sys.platform == "darwin" else 1024  # bytes; macOS counts these, Linux KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


@dataclass(frozen=True)
class Probed:
    """One batch size that was tried.

    Attributes:
        batch_size: Crops.
        seconds: Time of one optimiser step.
        memory: What `peak_memory` gives.
    """

    batch_size: int
    seconds: float
    memory: int


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
        module.train()
        self.optimizer = build_optimizer(module.optim, parameter_groups(module.network, 1e-6, module.optim))

    @property
    def device(self) -> torch.device:
        """Where the steps run."""
        return self.module.device

    def try_batch(self, batch_size: int) -> Probed | None:
        """Make three steps, of which the faster one of the last two counts; None if memory does not suffice."""
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
        """Seconds."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        start = time.perf_counter()
        self._step(batch_size)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter() - start

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
    """Try small batches only, and each only if by the line through the earlier ones it fits."""
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
