"""What `benchmark_speed.py` compares segkit with: other toolkits as themselves, and one evaluation restated.

PyTorch-Encoding is restated from facts (encoding/models/sseg/base.py, `MultiEvalModule`): it cannot be installed beside
a current PyTorch. All else is imported.
"""

import importlib
import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BLACK = tuple(-mean / std for mean, std in zip((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), strict=True))
ADE_SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)


def smp_network(num_classes: int) -> nn.Module:
    """segmentation_models_pytorch's DeepLabV3 over timm's ResNeSt-50 at output stride 8; logits at full size."""
    smp = importlib.import_module("segmentation_models_pytorch")
    network: nn.Module = smp.DeepLabV3(
        "tu-resnest50d", encoder_weights=None, classes=num_classes, encoder_output_stride=8
    )
    return network.eval()


def smp_decoder(decoder: str, num_classes: int) -> nn.Module:
    """segmentation_models_pytorch's network by the name of its decoder, over timm's ResNeSt-50; logits at full size."""
    smp = importlib.import_module("segmentation_models_pytorch")
    network: nn.Module = smp.create_model(decoder, "tu-resnest50d", encoder_weights=None, classes=num_classes)
    return network.eval()


def torchvision_network(num_classes: int) -> Callable[[Tensor], Tensor]:
    """torchvision's DeepLabV3 over its ResNet-50, an easier network; logits at full size."""
    segmentation = importlib.import_module("torchvision.models.segmentation")
    network = segmentation.deeplabv3_resnet50(weights=None, weights_backbone=None, num_classes=num_classes).eval()
    return lambda image: network(image)["out"]


def mmseg_network(num_classes: int) -> Callable[[Tensor], Tensor]:
    """mmsegmentation's DeepLabV3 over its ResNeSt-50 at output stride 8 (resnest_s101-d8, but for the depth)."""
    importlib.import_module("mmseg.utils").register_all_modules()
    norm = {"type": "BN"}  # the configs' SyncBN is another name for it in one process
    backbone = {
        "type": "ResNeSt", "depth": 50, "stem_channels": 64, "radix": 2, "reduction_factor": 4, "avg_down_stride": True,
        "strides": (1, 2, 1, 1), "dilations": (1, 1, 2, 4), "contract_dilation": True, "norm_cfg": norm,
    }  # fmt: skip
    head = {
        "type": "ASPPHead", "in_channels": 2048, "in_index": 3, "channels": 512, "dilations": (1, 12, 24, 36),
        "num_classes": num_classes, "norm_cfg": norm, "align_corners": False,
    }  # fmt: skip
    config = {"type": "EncoderDecoder", "backbone": backbone, "decode_head": head, "test_cfg": {"mode": "whole"}}
    network = importlib.import_module("mmseg.registry").MODELS.build(config).eval()
    return lambda image: network.encode_decode(image, [{"img_shape": tuple(image.shape[2:])}])


def mmseg_areas(num_classes: int) -> Callable[[Tensor, Tensor], object]:
    """The update of mmsegmentation's IoUMetric, of labels and mask."""
    metric = importlib.import_module("mmseg.evaluation").IoUMetric
    return lambda labels, mask: metric.intersect_and_union(labels, mask, num_classes, 255)


def has_mmseg() -> bool:
    """Whether mmsegmentation is there and imports: it comes with `uv run --group mmseg`."""
    try:
        importlib.import_module("mmseg")
    except Exception:  # whatever its own imports raise
        return False
    return True


@torch.no_grad()
def multi_eval(
    network: Callable[[Tensor], Tensor],
    image: Tensor,
    base_size: int = 520,
    crop: int = 480,
    scales: Sequence[float] = ADE_SCALES,
) -> Tensor:
    """PyTorch-Encoding's evaluation of one normalised image (1, 3, H, W): scores (1, K, H, W), their argmax labels.

    Args:
        network: float (1, 3, crop, crop) to logits (1, K, h, w); upsampled here with align_corners.
    """
    size = (image.shape[2], image.shape[3])
    total: Tensor | float = 0.0
    for scale in scales:
        long = math.ceil(base_size * scale)
        short = int(1.0 * min(size) * long / max(size) + 0.5)
        scaled_size = (long, short) if size[0] > size[1] else (short, long)
        scaled = _resize(image, scaled_size)
        if long <= crop:
            output = _flip_sum(network, _padded(scaled, crop, crop))[..., : scaled_size[0], : scaled_size[1]]
        else:
            output = _windows(network, scaled, crop)
        total = total + _resize(output, size)
    assert isinstance(total, Tensor)
    return total


def _windows(network: Callable[[Tensor], Tensor], scaled: Tensor, crop: int) -> Tensor:
    """Scores of a scaled image, the mean over windows with a stride of two thirds of the crop."""
    height, width = scaled.shape[2:]
    stride = int(crop * 2.0 / 3.0)
    padded = _padded(scaled, max(height, crop), max(width, crop))
    rows, columns = (math.ceil(max(side - crop, 0) / stride) + 1 for side in padded.shape[2:])
    total, count = None, torch.zeros(1, 1, *padded.shape[2:], device=scaled.device)
    for i in range(rows):
        for j in range(columns):
            top, left = i * stride, j * stride
            bottom, right = min(top + crop, padded.shape[2]), min(left + crop, padded.shape[3])
            window = _padded(padded[:, :, top:bottom, left:right], crop, crop)
            scores = _flip_sum(network, window)[..., : bottom - top, : right - left]
            if total is None:
                total = scores.new_zeros(1, scores.shape[1], *padded.shape[2:])
            total[:, :, top:bottom, left:right] += scores
            count[:, :, top:bottom, left:right] += 1
    assert total is not None
    return (total / count)[:, :, :height, :width]


def _flip_sum(network: Callable[[Tensor], Tensor], window: Tensor) -> Tensor:
    """exp of the logits of a window and of its mirror image, added, at the window's size."""
    size = (window.shape[2], window.shape[3])
    straight = _resize(network(window), size)
    mirrored = _resize(network(window.flip(3)), size)
    return (straight + mirrored.flip(3)).exp()


def _padded(image: Tensor, height: int, width: int) -> Tensor:
    """Black to the right and below."""
    padded = image.new_tensor(BLACK).view(1, 3, 1, 1).expand(1, 3, height, width).clone()
    padded[:, :, : image.shape[2], : image.shape[3]] = image
    return padded


def _resize(tensor: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(tensor, size, mode="bilinear", align_corners=True)
