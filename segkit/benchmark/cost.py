"""The cost of a network: parameters, floating-point operations, seconds and bytes.

Conventions, which a table of such numbers must state:

- Parameters: those of encoder and head. The auxiliary head is left out: it runs in training only.
- FLOPs: convolutions and matrix products, a multiply-add counted as 2 (papers that write "FLOPs" often count it as 1).
  Norms, activations, pooling and interpolation are not counted.
- Seconds: timing waits for the device before and after; the first image is left out.
- Bytes: the peak above the memory in use at the start.
"""

import ctypes
import gc
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from segkit.inference.exported.network import ExportedNetwork
from segkit.ops.meta import meta_image, on_meta

AUXILIARY = "aux_head."  # names of the parameters that exist for training only begin with it

FLOPS_RULE = "FLOPs: convolutions and matrix products of the network, a multiply-add counted as 2"

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def parameters(network: nn.Module) -> int:
    """Number of parameters without those of the auxiliary head; of an exported file, those it was made from."""
    network = (network.described or network) if isinstance(network, ExportedNetwork) else network
    return sum(p.numel() for name, p in network.named_parameters() if not name.startswith(AUXILIARY))


def flops(network: nn.Module, size: tuple[int, int]) -> int:
    """FLOPs of one forward of one image, by the convention of this file.

    Shapes alone are run through the network (the meta device): a large image costs no more than a small one.

    Args:
        network: Maps float (1, 3, H, W) to anything; neither changed nor moved.
        size: Height and width of the image.
    """
    shapes = on_meta(network)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        shapes(meta_image(shapes, (1, 3, *size)))
    return int(counter.get_total_flops())


def flops_of(network: nn.Module, forwards: Mapping[tuple[int, int], int]) -> int:
    """FLOPs of many forwards, as `recorded_forwards` counts them: (height, width) -> images."""
    return sum(count * flops(network, size) for size, count in forwards.items())


@contextmanager
def recorded_forwards(network: nn.Module | None) -> Iterator[Counter[tuple[int, int]]]:
    """Count what the network really sees inside the block: (height, width) -> images, windows and flips included.

    Nothing where there is no network to look into.
    """
    seen: Counter[tuple[int, int]] = Counter()
    if network is None:
        yield seen
        return

    def record(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        batch, _, height, width = inputs[0].shape
        seen[(int(height), int(width))] += int(batch)

    handle = network.register_forward_pre_hook(record)
    try:
        yield seen
    finally:
        handle.remove()


class Stopwatch:
    """Times images one by one; the first is left out, because caches are filled and kernels chosen during it.

    Args:
        device: Where the work is done; it is waited for at both ends of each image.
        clock: Returns seconds since any fixed time.

    Attributes:
        images: Number of timed images.
        seconds: Their total duration.
    """

    def __init__(self, device: torch.device | str, clock: Callable[[], float] = time.perf_counter) -> None:
        self.device, self.clock = torch.device(device), clock
        self.images, self.seconds, self._warm = 0, 0.0, False

    @contextmanager
    def image(self) -> Iterator[None]:
        """Time the block as one image; one that fails is not counted."""
        self._wait()
        start = self.clock()
        yield
        self._wait()
        if self._warm:
            self.images += 1
            self.seconds += self.clock() - start
        self._warm = True

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


class PeakMemory:
    """Peak of the memory in use inside the block above that at its start.

    CUDA: of PyTorch's tensors on that device. CPU: of this process's resident memory, which only Linux can tell per
    block; what the allocator kept of earlier work is given back first, so that a block does not borrow it unseen.

    Args:
        device: The device whose memory is measured.

    Attributes:
        bytes: The peak above the start, after the block; None where it cannot be measured.
    """

    def __init__(self, device: torch.device | str) -> None:
        self.device = torch.device(device)
        self.bytes: int | None = None
        self._start: int | None = None

    def __enter__(self) -> Self:
        """Begin, and forget the peak so far."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self._start = torch.cuda.memory_allocated(self.device)
        elif self.device.type == "cpu":
            self._start = _reset_resident_peak()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        """Measure, also after an error."""
        if self._start is None:
            return
        if self.device.type == "cuda":
            self.bytes = torch.cuda.max_memory_allocated(self.device) - self._start
        else:
            self.bytes = max(0, _resident("VmHWM") - self._start)


def _reset_resident_peak() -> int | None:
    """Give back what the allocator keeps, set the process's peak to its present memory, and return that in bytes."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
        _RESET.write_text("5")  # Linux, proc(5): resets VmHWM
        return _resident("VmRSS")
    except (OSError, AttributeError, TypeError, StopIteration):  # not Linux, another C library, or not permitted
        return None


def _resident(field: str) -> int:
    lines = _STATUS.read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])
