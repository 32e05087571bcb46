"""ResNeSt's split attention (Zhang et al. 2020, arXiv 2004.08955, section 3.1) without products as large as the splits.

Written with PyTorch's operations, R splits of C channels become R products and these a sum, each a tensor of its own.
Here the CPU does a strip at a time (some channels or rows of one sample, small enough for a core's cache), forward and
backward, and CUDA has kernels. Sums are taken one by one in the order of the authors' release
(zhanghang1989/ResNeSt, resnest/torch/splat.py), with which contiguous float32 on the CPU agrees to the bit.

The operators are opaque to PyTorch's exporters: inside `plain_ops()` these see PyTorch's own operations.

Letters: B batch, C channels, R radix, G cardinality, h w feature cells; p = C / G; k channels and n rows of a strip.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional as F

from segkit.errors import InputError
from segkit.ops.dispatch import fused_ops, operator, uses_triton

STRIP_BYTES = 2**20  # of one split and core: the strip's split, product and sum lie in the core's cache


def split_attention(splits: Tensor, attention: Tensor, radix: int, cardinality: int = 1) -> Tensor:
    """Weight R splits by attention, softmax over the radix (a sigmoid if R is 1), and add them.

    Args:
        splits: Float (B, R*C, h, w), radix-major: the C channels of the first split come first.
        attention: Float (B, R*C, 1, 1) before the softmax, cardinality-major: (G, R, p).
        radix: R, 1 or more.
        cardinality: G, a divisor of C.

    Returns:
        (B, C, h, w) in the memory format of `splits` and the dtype that both are promoted to. Half precision is
        computed in float32 and rounded once, except for two bfloat16 splits on the CPU, whose weights are rounded too.
        Differentiable once by both arguments; tensors with forward-mode tangents take the plain form.

    Raises:
        InputError: The shapes do not fit.
    """
    channels = _channels(splits, radix)
    if cardinality < 1 or channels % cardinality:
        raise InputError(f"split_attention: cardinality={cardinality} must be a divisor of the {channels} channels")
    if attention.shape != (splits.shape[0], splits.shape[1], 1, 1):
        raise InputError(
            f"split_attention: the attention has shape {tuple(attention.shape)}, but splits of shape "
            f"{tuple(splits.shape)} need {(splits.shape[0], splits.shape[1], 1, 1)}"
        )
    if fused_ops() and not _is_dual(splits, attention):
        attended: Tensor = _attend(splits, attention, radix, cardinality)
        return attended
    weights = radix_weights(attention, radix, cardinality).split(channels, dim=1)  # R times (B, C, 1, 1)
    return _sum([weight * split for weight, split in zip(weights, splits.split(channels, dim=1), strict=True)])


def split_pool(splits: Tensor, radix: int) -> Tensor:
    """Mean over the cells of the sum of R splits: (B, R*C, h, w), radix-major, to (B, C, 1, 1) of the same dtype.

    Half precision is summed in float32.

    Raises:
        InputError: The splits have another shape.
    """
    channels = _channels(splits, radix)
    if fused_ops() and not _is_dual(splits):
        pooled: Tensor = _pool(splits, radix)
        return pooled
    return F.adaptive_avg_pool2d(_sum(splits.split(channels, dim=1)), 1)


@operator("segkit::split_attention")
def _attend(splits: Tensor, attention: Tensor, radix: int, cardinality: int) -> Tensor:
    output = _empty_result(splits, attention, radix)
    if uses_triton(splits, "split_attention"):
        from segkit.ops.kernels import split_attention as kernels

        return kernels.forward(splits, attention, output, radix, cardinality)
    if radix == 2 and splits.device.type == "cpu" and splits.dtype == output.dtype == torch.bfloat16:
        return _attend_two(splits, attention, cardinality)
    return _attend_in_strips(splits, attention, output, radix, cardinality)


@operator("segkit::split_attention_backward")
def _attend_backward(
    gradient: Tensor, splits: Tensor, attention: Tensor, radix: int, cardinality: int
) -> tuple[Tensor, Tensor]:
    """The gradients by `splits` and `attention`, as an operator without a derivative of its own."""
    if uses_triton(splits, "split_attention_backward"):
        from segkit.ops.kernels import split_attention as kernels

        return kernels.backward(gradient, splits, attention, radix, cardinality)
    return _attend_backward_in_strips(gradient, splits, attention, radix, cardinality)


@operator("segkit::split_pool")
def _pool(splits: Tensor, radix: int) -> Tensor:
    if splits.is_cuda:
        return _pool_at_once(splits, radix)
    if splits.dtype == torch.bfloat16 and splits.is_contiguous(memory_format=torch.channels_last):
        return _pool_by_product(splits, radix)
    return _pool_in_strips(splits, radix)


@_attend.register_fake
def _(splits: Tensor, attention: Tensor, radix: int, cardinality: int) -> Tensor:
    return _empty_result(splits, attention, radix)


@_attend_backward.register_fake
def _(gradient: Tensor, splits: Tensor, attention: Tensor, radix: int, cardinality: int) -> tuple[Tensor, Tensor]:
    return torch.empty_like(splits), attention.new_empty(attention.shape)


@_pool.register_fake
def _(splits: Tensor, radix: int) -> Tensor:
    return splits.new_empty(splits.shape[0], splits.shape[1] // radix, 1, 1)


def _keep_for_attend(ctx: Any, inputs: tuple[Tensor, Tensor, int, int], output: Tensor) -> None:
    splits, attention, ctx.radix, ctx.cardinality = inputs
    ctx.save_for_backward(splits, attention)


def _differentiate_attend(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
    if _is_dual(gradient):  # an operator would drop the tangents and say nothing
        raise InputError("split_attention: its gradient has no forward-mode derivative; run it inside plain_ops()")
    by_splits, by_attention = _attend_backward(gradient, *ctx.saved_tensors, ctx.radix, ctx.cardinality)
    return by_splits, by_attention, None, None


def _keep_for_pool(ctx: Any, inputs: tuple[Tensor, int], output: Tensor) -> None:
    splits, ctx.radix = inputs
    ctx.shape = splits.shape


def _differentiate_pool(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
    """Every cell of every split gets the same share, so a view of (B, R*C, 1, 1) is enough."""
    share = gradient / (ctx.shape[2] * ctx.shape[3])
    return share.repeat(1, ctx.radix, 1, 1).expand(ctx.shape), None


_attend.register_autograd(_differentiate_attend, setup_context=_keep_for_attend)
_pool.register_autograd(_differentiate_pool, setup_context=_keep_for_pool)


def _attend_in_strips(splits: Tensor, attention: Tensor, output: Tensor, radix: int, cardinality: int) -> Tensor:
    dtype = _raised(output.dtype)
    weights = radix_weights(attention.to(dtype), radix, cardinality)  # (B, R*C, 1, 1)
    for parts, scales, (target,) in _strips(_cut(splits, radix), splits, weights, output):
        total = target if target.dtype == dtype else torch.empty_like(target, dtype=dtype)  # (k, n, w)
        torch.mul(parts[0], scales[0], out=total)
        for part, scale in zip(parts[1:], scales[1:], strict=True):
            total += part * scale  # not addcmul, which may round once where the release rounds twice
        if total is not target:
            target.copy_(total)
    return output


def _attend_two(splits: Tensor, attention: Tensor, cardinality: int) -> Tensor:
    """Attend to two splits, whose weights add up to 1, in one vectorised pass; weights are rounded to bfloat16."""
    first, second = splits.chunk(2, dim=1)  # (B, C, h, w)
    weight = radix_weights(attention.float(), 2, cardinality)[:, : first.shape[1]]  # (B, C, 1, 1)
    return torch.lerp(second, first, weight.to(splits.dtype))


def _attend_backward_in_strips(
    gradient: Tensor, splits: Tensor, attention: Tensor, radix: int, cardinality: int
) -> tuple[Tensor, Tensor]:
    dtype = _raised(gradient.dtype)
    weights = radix_weights(attention.to(dtype), radix, cardinality)  # (B, R*C, 1, 1)
    by_splits, by_weights = torch.empty_like(splits), torch.zeros_like(weights)
    cut = _cut(splits, radix)
    for (given,), *per_split in _strips(cut, gradient, splits, weights, by_splits, by_weights):
        given = given.to(dtype)  # (k, n, w)
        for part, scale, by_part, by_scale in zip(*per_split, strict=True):
            torch.mul(given, scale, out=by_part)
            by_scale += (given * part).sum((1, 2), keepdim=True)  # (k, 1, 1)
    return by_splits, _softmax_backward(weights, by_weights, radix, cardinality).to(attention.dtype)


def _pool_at_once(splits: Tensor, radix: int) -> Tensor:
    """One reduction, which is one kernel on CUDA and reads the splits once."""
    batch, channels, height, width = splits.shape
    parts = splits.view(batch, radix, channels // radix, height, width)
    total = parts.sum((1, 3, 4), dtype=_raised(splits.dtype))  # (B, C)
    return (total / (height * width)).to(splits.dtype)[:, :, None, None]


def _pool_by_product(splits: Tensor, radix: int) -> Tensor:
    """A product with ones, which oneDNN sums in float32; in channels-last, cells and splits are rows of one matrix."""
    batch, channels, height, width = splits.shape
    rows = splits.permute(0, 2, 3, 1).view(batch, height * width * radix, channels // radix)
    total = rows.new_ones(batch, 1, rows.shape[1]) @ rows  # (B, 1, C)
    return (total.float() / (height * width)).to(splits.dtype).view(batch, -1, 1, 1)


def _pool_in_strips(splits: Tensor, radix: int) -> Tensor:
    output = splits.new_empty(splits.shape[0], splits.shape[1] // radix, 1, 1)
    cut = _cut(splits, radix)
    if cut.axis == 1:  # no strips of rows: the order of the sum over the cells is PyTorch's own
        cut = cut._replace(length=cut.size)
    dtype = _raised(splits.dtype)
    for parts, (target,) in _strips(cut, splits, output):
        total = _sum([parts[0].to(dtype), *parts[1:]])  # (k, h, w)
        target.copy_(total.mean((1, 2), keepdim=True))
    return output


class _Cut(NamedTuple):
    """How one sample's (C, h, w) is cut into strips: of `length` out of `size` channels (axis 0) or rows (axis 1)."""

    channels: int
    axis: int
    size: int
    length: int


def _cut(splits: Tensor, radix: int) -> _Cut:
    """Cut into strips of channels, or of rows if the channels are adjacent in memory (channels_last)."""
    channels, height, width = splits.shape[1] // radix, *splits.shape[2:]
    axis, size = (1, height) if splits.stride(1) == 1 else (0, channels)
    if splits.device.type != "cpu":
        return _Cut(channels, axis, size, size)
    element_bytes = channels * height * width * splits.element_size() // max(size, 1)  # of one channel or row
    length = STRIP_BYTES * torch.get_num_threads() // max(element_bytes, 1)
    return _Cut(channels, axis, size, max(2, length // 2 * 2))  # the mean of a lone channel may be taken otherwise


def _strips(cut: _Cut, *tensors: Tensor) -> Iterator[tuple[tuple[Tensor, ...], ...]]:
    """Cut tensors (B, C or R*C, h or 1, w or 1) into strips of one sample.

    Yields:
        For each strip the 1 or R parts of each tensor, (k, n, w), or (k, 1, 1) of weights.
    """
    for sample in range(tensors[0].shape[0]):
        parted = [t[sample].view(-1, cut.channels, *t.shape[2:]) for t in tensors]  # (1 or R, C, h or 1, w or 1)
        for start in range(0, cut.size, cut.length):
            yield tuple(_part(tensor, cut, start).unbind() for tensor in parted)


def _part(tensor: Tensor, cut: _Cut, start: int) -> Tensor:
    if tensor.shape[cut.axis + 1] != cut.size:  # weights, which all rows share
        return tensor
    return tensor.narrow(cut.axis + 1, start, min(cut.length, cut.size - start))


def radix_weights(attention: Tensor, radix: int, cardinality: int) -> Tensor:
    """Softmax over the radix: (B, R*C, 1, 1), cardinality-major, to (B, R*C, 1, 1), radix-major."""
    if radix == 1:
        return torch.sigmoid(attention)
    shape = (attention.shape[0], cardinality, radix, attention.shape[1] // (cardinality * radix))
    grouped = attention.reshape(shape).transpose(1, 2)  # (B, R, G, p)
    return F.softmax(grouped, dim=1).reshape(attention.shape)


def _softmax_backward(weights: Tensor, by_weights: Tensor, radix: int, cardinality: int) -> Tensor:
    """Backward of `radix_weights`, from its result and the gradient by this: (B, R*C, 1, 1), cardinality-major."""
    if radix == 1:
        return by_weights * weights * (1 - weights)
    shape = (weights.shape[0], radix, cardinality, weights.shape[1] // (cardinality * radix))
    grouped, by_grouped = weights.view(shape), by_weights.view(shape)  # (B, R, G, p)
    by_attention = grouped * (by_grouped - (grouped * by_grouped).sum(1, keepdim=True))
    return by_attention.transpose(1, 2).reshape(weights.shape)


def _empty_result(splits: Tensor, attention: Tensor, radix: int) -> Tensor:
    """(B, C, h, w), uninitialised, of the promoted type, in the memory format of the splits."""
    dtype = torch.promote_types(splits.dtype, attention.dtype)
    return torch.empty_like(splits.narrow(1, 0, splits.shape[1] // radix), dtype=dtype)


def _raised(dtype: torch.dtype) -> torch.dtype:
    """The dtype to compute in: at least float32."""
    return torch.promote_types(dtype, torch.float32)


def _sum(tensors: Sequence[Tensor]) -> Tensor:
    """Add one by one: another order of summation would differ from the release in the last bit."""
    total = tensors[0]
    for tensor in tensors[1:]:
        total = total + tensor
    return total


def _is_dual(*tensors: Tensor) -> bool:
    """Whether one carries a forward-mode tangent, which operators without a rule for it drop silently."""
    return any(forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors)


def _channels(splits: Tensor, radix: int) -> int:
    if radix < 1 or splits.dim() != 4 or splits.shape[1] % radix:
        raise InputError(
            f"split attention: splits of shape {tuple(splits.shape)} and radix={radix}, "
            "but (B, radix * C, h, w) and radix 1 or more are needed"
        )
    return splits.shape[1] // radix
