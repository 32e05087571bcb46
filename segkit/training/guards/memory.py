"""How much memory was used, and when a batch does not fit: what would."""

import sys

import torch

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on a GPU or on the CPU."""
    words = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(word in str(error) for word in words)


def smaller_batch(batch_size: int, accumulated: int, crop_size: tuple[int, int]) -> str:
    """One line: what did not fit, and the largest smaller batch that trains on as many images a step.

    Args:
        batch_size: Crops a process, of the batch that did not fit.
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
    """Bytes: of tensors on a GPU since the last reset; else of the whole process since it began, 0 where unknown."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if resource is None:
        return 0
    unit = 1 if sys.platform == "darwin" else 1024  # bytes; macOS counts these, Linux KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
