"""From logits at the network's stride to labels at a wanted size, without full-size scores of all classes.

There are three equivalent forms: a Triton kernel on CUDA, strips and cells in the caches of a CPU, and plain PyTorch,
which is the reference (see `segkit.ops.dispatch`). Letters: B batch, K classes, H W wanted size, h w logits.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from segkit.ops.dispatch import fused_ops, operator, uses_triton
from segkit.ops.upsample import label_dtype, upsample
from segkit.ops.upsample_argmax_cpu import BAND_BYTES, label_images, label_images_with_confidence

ARGMAX_BYTES = 256 * 2**20  # of the plain form: 150 classes of an ADE20K image (210 MB) still go in one piece

_BUFFERS = 8  # of the CPU's form at once


def upsample_argmax(
    logits: Tensor, size: tuple[int, int], align_corners: bool = True, max_bytes: int | None = None
) -> Tensor:
    """Labels of bilinearly upsampled logits: `upsample(logits.float(), ...).argmax(1)` in bounded memory.

    The plain form gives the very labels of the full `interpolate` on its device. The fused forms take each score in
    float32 from the same positions and weights, and round once or twice differently: where the two best scores of a
    pixel are equal but for that (some 1e-7 of the logits around it), either class may be its label. Of equal scores
    the first class wins, as in `argmax`.

    Args:
        logits: Finite float (B, K, h, w), of any strides; half precision is resized in float32.
        size: (H, W) wanted.
        align_corners: As the network was trained.
        max_bytes: Bytes of the largest float tensor made here; None for the fastest. The CPU form needs at least one
            row of all classes, the plain form one class; the kernel makes none.

    Returns:
        uint8 (B, H, W), int16 above 256 classes.
    """
    labels: Tensor = _argmax(logits.detach(), tuple(size), align_corners, max_bytes, None)[0]
    return labels


def upsample_argmax_confidence(
    logits: Tensor,
    size: tuple[int, int],
    align_corners: bool = True,
    max_bytes: int | None = None,
    temperature: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """`upsample_argmax`, and the probability of each label, softmax(logits / temperature): float32 (B, H, W) in 0..1.

    The other arguments are those of `upsample_argmax`. The temperature changes no label, and 1 changes no bit. No
    gradient flows to the logits.
    """
    found: tuple[Tensor, Tensor] = _argmax(logits.detach(), tuple(size), align_corners, max_bytes, 1 / temperature)
    return found


def argmax_bytes(num_classes: int, batch: int, size: tuple[int, int], max_bytes: int | None = None) -> int:
    """Most bytes that these functions need besides logits and results; the kernel on CUDA needs none."""
    if fused_ops():
        rows = 4 * num_classes * 2 * max(size[1], 1)  # two rows of all classes at full width are the least
        return _BUFFERS * max(min(max_bytes or BAND_BYTES, BAND_BYTES), rows)
    # One class resized, the best so far, int64 indices, and what replaces them.
    return 24 * batch * size[0] * size[1] + (max_bytes or ARGMAX_BYTES)


@operator("segkit::upsample_argmax")
def _argmax(
    logits: Tensor, size: Sequence[int], align_corners: bool, max_bytes: int | None, sharpness: float | None
) -> tuple[Tensor, Tensor]:
    """Labels (B, H, W), and their probabilities, softmax(logits * sharpness), (B, H, W) or, of None, (0,)."""
    wanted = (size[0], size[1])
    if uses_triton(logits, "upsample_argmax"):
        from segkit.ops.kernels.upsample_argmax import launch

        return launch(logits, wanted, align_corners, sharpness is not None, sharpness or 1.0)
    if logits.device.type == "cpu" and fused_ops():
        if sharpness is not None:
            return label_images_with_confidence(logits, wanted, align_corners, max_bytes, sharpness)
        return label_images(logits, wanted, align_corners, max_bytes), torch.empty(0)
    return _plain(logits, wanted, align_corners, max_bytes or ARGMAX_BYTES, sharpness)


@_argmax.register_fake
def _(
    logits: Tensor, size: Sequence[int], align_corners: bool, max_bytes: int | None, sharpness: float | None
) -> tuple[Tensor, Tensor]:
    shape = (logits.shape[0], *size)
    confidence = logits.new_empty((0,) if sharpness is None else shape, dtype=torch.float32)
    return logits.new_empty(shape, dtype=label_dtype(logits.shape[1])), confidence


def _plain(
    logits: Tensor, size: tuple[int, int], align_corners: bool, max_bytes: int, sharpness: float | None
) -> tuple[Tensor, Tensor]:
    """Resize a few classes at a time and keep a running maximum, so that every score is `interpolate`'s own.

    A running sum for the softmax is kept, too, and rescaled whenever a larger logit is met.
    """
    labels = best = total = logits.new_empty(0, dtype=torch.float32)
    for first, some in _class_pieces(logits, size, align_corners, max_bytes):
        value, index = some.max(dim=1)  # (B, k, H, W) -> (B, H, W)
        index = (index + first).to(label_dtype(logits.shape[1]))
        terms = total if sharpness is None else (some - value[:, None]).mul_(sharpness).exp_().sum(dim=1)
        if first == 0:
            best, labels, total = value, index, terms
            continue
        labels, largest = torch.where(value > best, index, labels), torch.maximum(best, value)
        if sharpness is not None:
            old, new = ((part - largest).mul_(sharpness).exp_() for part in (best, value))
            total = total * old + terms * new
        best = largest
    return labels, total.reciprocal()


def _class_pieces(
    logits: Tensor, size: tuple[int, int], align_corners: bool, max_bytes: int
) -> Iterator[tuple[int, Tensor]]:
    """(first class, float32 (B, k, H, W)) of as many classes at a time as fit into `max_bytes`, at least one."""
    at_once = max(1, max_bytes // (4 * logits.shape[0] * size[0] * size[1]))
    for first in range(0, logits.shape[1], at_once):
        yield first, upsample(logits[:, first : first + at_once].float(), size, align_corners)
