"""Batch norm over the batch of all processes, also on the CPU.

torch.nn.SyncBatchNorm refuses CPU tensors, and DistributedDataParallel refuses a CPU network that has one, so a recipe
with it could be neither run nor tested without GPUs. `SyncBatchNorm2d` computes the same on the CPU: statistics over
all processes (whose batches may differ in size), the unbiased variance in the running statistics, and gradients that
flow through the common statistics.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from segkit.ops.torch_private import BatchNormBase


class SyncBatchNorm2d(nn.BatchNorm2d):
    """A batch norm of CPU tensors `(B, C, ...)` over all processes, for any float dtype, computed at least in float32.

    Parameters, buffers and their names are those of torch's batch norms. Without a process group, and in eval mode, it
    behaves like one of them.
    """

    process_group: Any = None  # all processes

    def forward(self, input: Tensor) -> Tensor:
        """Normalise with the statistics of the batches of all processes; then timm's dropout and activation, if any."""
        together = self.training and dist.is_initialized() and dist.get_world_size(self.process_group) > 1
        return _and_after(self, self._synchronised(input) if together else super().forward(input))

    def _synchronised(self, input: Tensor) -> Tensor:
        output, mean, variance, count = _normalise(input, self.weight, self.bias, self.eps, self.process_group)
        if self.track_running_stats and self.running_mean is not None and self.running_var is not None:
            assert self.num_batches_tracked is not None
            self.num_batches_tracked.add_(1)
            momentum = self.momentum if self.momentum is not None else 1.0 / float(self.num_batches_tracked)
            with torch.no_grad():
                self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
                unbiased = variance * (count / (count - 1))
                self.running_var.lerp_(unbiased.to(self.running_var.dtype), momentum)
        return output

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected at least 2 dimensions, got {input.dim()}")


class TorchSyncBatchNorm(nn.SyncBatchNorm):
    """torch.nn.SyncBatchNorm, followed by timm's dropout and activation if the norm has them."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise with the statistics of the batches of all processes."""
        return _and_after(self, super().forward(input))


SYNCHRONISED = (SyncBatchNorm2d, nn.SyncBatchNorm)


def to_sync_batch_norm(norm: BatchNormBase, device_type: str = "cpu") -> SyncBatchNorm2d | TorchSyncBatchNorm:
    """Make a synchronised norm for this type of device that shares a batch norm's parameters and buffers."""
    kind = SyncBatchNorm2d if device_type == "cpu" else TorchSyncBatchNorm
    synced = kind(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    _share(norm, synced)
    return synced


def to_batch_norm(synced: nn.Module, original: BatchNormBase) -> BatchNormBase:
    """Return `original`, the argument of `to_sync_batch_norm`, with the current parameters and buffers."""
    _share(synced, original)
    return original


def _and_after(norm: nn.Module, output: Tensor) -> Tensor:
    for name in ("drop", "act"):  # of timm's BatchNormAct2d
        after = getattr(norm, name, None)
        output = output if after is None else after(output)
    return output


def _share(source: nn.Module, target: nn.Module) -> None:
    for name, parameter in source.named_parameters(recurse=False):
        target.register_parameter(name, parameter)
    for name, buffer in source.named_buffers(recurse=False):
        target.register_buffer(name, buffer)
    for name, module in source.named_children():
        target.add_module(name, module)
    target.train(source.training)


def _normalise(
    input: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, group: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The normalised batch; and mean and biased variance `(C,)`, and count `()`, over all processes."""
    # Half precision is summed in float32, float64 stays what it is.
    x = input if input.dtype == torch.float64 else input.float()
    normalised, mean, variance, count = _Normalise.apply(x, eps, group)
    shape = (1, -1, *[1] * (input.dim() - 2))
    if weight is not None:
        normalised = normalised * weight.to(x.dtype).view(shape)
    if bias is not None:
        normalised = normalised + bias.to(x.dtype).view(shape)
    return normalised.to(input.dtype), mean, variance, count


class _Normalise(torch.autograd.Function):
    """`(x - mean) / sqrt(variance + eps)` with statistics of all processes; weight and bias are left to autograd."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float, group: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        mean, variance, count = _statistics(x, group)
        shape = (1, -1, *[1] * (x.dim() - 2))
        inverse = (variance + eps).rsqrt()
        normalised = (x - mean.view(shape)) * inverse.view(shape)
        ctx.save_for_backward(normalised, inverse, count)
        ctx.group = group
        ctx.mark_non_differentiable(mean, variance, count)
        return normalised, mean, variance, count

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Tensor, None, None]:
        normalised, inverse, count = ctx.saved_tensors
        axes, shape = _axes(normalised), (1, -1, *[1] * (normalised.dim() - 2))
        sums = torch.stack([gradient.sum(axes), (gradient * normalised).sum(axes)])  # (2, C)
        dist.all_reduce(sums, group=ctx.group)
        mean, along = (sums / count).view(2, *shape)
        return (gradient - mean - normalised * along) * inverse.view(shape), None, None


def _statistics(x: Tensor, group: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and biased variance `(C,)` over all processes, and the number of values of a channel `()`.

    Each process contributes its own mean and squared deviations from it, which are then merged (Chan et al. 1979); sums
    of squares would lose digits if the mean is large.
    """
    axes, channels = _axes(x), x.shape[1]
    n = x.numel() // channels
    local = x.mean(axes) if n else x.new_zeros(channels)
    deviations = (x - local.view(1, -1, *[1] * (x.dim() - 2))).square().sum(axes)
    own = torch.cat([local, deviations, local.new_tensor([n])])
    gathered = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
    dist.all_gather(gathered, own, group=group)
    means, squares, counts = torch.stack(gathered).split([channels, channels, 1], dim=1)  # (P, C), (P, C), (P, 1)
    count = counts.sum()
    mean = (means * counts).sum(0) / count
    joined = squares.sum(0) + ((means - mean).square() * counts).sum(0)
    return mean, joined / count, count


def _axes(x: Tensor) -> list[int]:
    return [axis for axis in range(x.dim()) if axis != 1]
