"""Checks whether PyTorch sees the GPUs, and whether each Triton kernel agrees with PyTorch's operations there."""

import shutil
import subprocess
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from segkit.doctor.finding import Finding
from segkit.machine import format_bytes

if TYPE_CHECKING:  # it may be what is broken
    import torch


def gpus() -> Iterator[Finding]:
    """Driver, CUDA, cuDNN, and each GPU with what `auto` precision takes there."""
    import torch

    from segkit.models.inference_form import convolution_dtype
    from segkit.ops.processor import free_bytes

    driver, built = driver_version(), torch.version.cuda
    versions = f"CUDA {built}, cuDNN {torch.backends.cudnn.version()}, driver {driver or 'unknown'}"
    if not torch.cuda.is_available():
        yield _without_gpu(driver, built)
        return
    yield Finding("cuda", "ok", versions)
    for index in range(torch.cuda.device_count()):
        device = torch.device("cuda", index)
        major, minor = torch.cuda.get_device_capability(device)
        precision = str(convolution_dtype("auto", device)).removeprefix("torch.")
        yield Finding(
            str(device), "ok",
            f"{torch.cuda.get_device_name(device)}, compute capability {major}.{minor}, "
            f"{format_bytes(free_bytes(device))} free; auto takes {precision}",
        )  # fmt: skip


def kernels() -> Iterator[Finding]:
    """Compare every kernel on every GPU, in both types that networks run in there."""
    import torch

    from segkit.ops.dispatch import has_triton

    if not torch.cuda.is_available():
        yield Finding("kernels", "ok", "not compared: without a GPU none is used")
    elif not has_triton():
        cure = "pip install triton: labels, losses and split attention are slower without it, and the same"
        yield Finding("kernels", "note", "Triton is not installed: PyTorch's operations take their place", cure)
    else:
        yield from compared([torch.device("cuda", index) for index in range(torch.cuda.device_count())])


def compared(devices: Sequence["torch.device"]) -> Iterator[Finding]:
    """One finding a kernel, by the comparison that precedes its first use."""
    import torch

    from segkit.ops.kernels.first_use import COMPARISONS, fault, versions

    for kernel in COMPARISONS:
        wrong = []
        for device in devices:
            for dtype in (torch.float32, torch.bfloat16):
                text = fault(kernel, device, dtype)
                if text is not None:
                    wrong.append(f"{str(dtype).removeprefix('torch.')} on {device}: {text}")
        if wrong:
            about = "; ".join(versions(device) for device in devices)
            cure = f"segkit takes PyTorch's operations in its place; report this, with {about}"
            yield Finding(kernel, "wrong", wrong[0], cure)
        else:
            where = ", ".join(map(str, devices))
            yield Finding(kernel, "ok", f"agrees with PyTorch's operations on {where}, in float32 and bfloat16")


def driver_version() -> str | None:
    """The driver's version by nvidia-smi; None if there is no driver."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    command = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.split("\n")[0].strip() or None


def _without_gpu(driver: str | None, built: str | None) -> Finding:
    if driver is None:
        return Finding("cuda", "ok", "no NVIDIA driver: everything runs on the CPU")
    if built is None:
        found = f"driver {driver} is there, but this PyTorch is the build for CPUs"
        return Finding("cuda", "wrong", found, "install the build for CUDA: https://pytorch.org/get-started/locally")
    found = f"driver {driver} is there, but PyTorch (CUDA {built}) sees no GPU"
    return Finding(
        "cuda", "wrong", found, "install a driver for that CUDA, or unset CUDA_VISIBLE_DEVICES if it hides it"
    )
