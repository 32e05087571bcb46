"""mmsegmentation's own networks, small and with weights of a trained one's kind; imported only where mmseg is there."""

from typing import Any

import torch
from mmseg.models.backbones.resnest import Bottleneck, ResNeSt
from mmseg.registry import MODELS
from mmseg.utils import register_all_modules
from torch import Tensor, nn

STRIDES = {
    8: {"strides": (1, 2, 1, 1), "dilations": (1, 1, 2, 4)},
    16: {"strides": (1, 2, 2, 1), "dilations": (1, 1, 1, 2)},
}
HEADS: dict[str, dict[str, Any]] = {
    "ASPPHead": {"type": "ASPPHead"},
    "FCNHead": {"type": "FCNHead", "num_convs": 2, "concat_input": True},
}
ASPP_DILATIONS = {8: (1, 12, 24, 36), 16: (1, 6, 12, 18)}


@MODELS.register_module(force=True)
class SmallResNeSt(ResNeSt):  # type: ignore[misc]
    """mmseg's own, with a depth of six blocks."""

    arch_settings = {14: (Bottleneck, (1, 2, 2, 1))}  # noqa: RUF012


def resnest_backbone(output_stride: int) -> dict[str, Any]:
    """As mmseg's configs (resnest_s101-d8_*), at a quarter of the width."""
    sizes = {"depth": 14, "base_channels": 16, "stem_channels": 16, "radix": 2, "reduction_factor": 4}
    return _backbone(output_stride) | sizes | {"type": "SmallResNeSt", "avg_down_stride": True}


def resnet_backbone() -> dict[str, Any]:
    """The comparator of mmseg's zoo."""
    return _backbone(8) | {"type": "ResNetV1c", "depth": 50}


def build(head: str, backbone: dict[str, Any], channels: int, output_stride: int) -> nn.Module:
    """A whole network, as mmseg's configs/_base_/models/{deeplabv3,fcn}_r50-d8.py, in eval mode.

    Args:
        head: A key of `HEADS`.
        backbone: Of the functions above.
        channels: Of its last feature.
        output_stride: 8 or 16.
    """
    register_all_modules()
    common = {"dropout_ratio": 0.1, "num_classes": 5, "norm_cfg": {"type": "BN"}, "align_corners": False}
    decode = {"in_channels": channels, "in_index": 3, "channels": channels // 4} | common | HEADS[head]
    if head == "ASPPHead":
        decode["dilations"] = ASPP_DILATIONS[output_stride]
    auxiliary = {"in_channels": channels // 2, "in_index": 2, "channels": channels // 8} | common
    auxiliary |= HEADS["FCNHead"] | {"num_convs": 1, "concat_input": False}
    parts = {"backbone": backbone, "decode_head": decode, "auxiliary_head": auxiliary}
    return as_trained(MODELS.build({"type": "EncoderDecoder", "test_cfg": {"mode": "whole"}} | parts))


def as_trained(network: nn.Module) -> nn.Module:
    """Weights that keep the variance and norms as after training, none at its default; in eval mode."""
    generator = torch.Generator().manual_seed(0)
    for name, value in network.state_dict().items():
        value.copy_(_values(name, value, generator))
    return network.eval()


def _backbone(output_stride: int) -> dict[str, Any]:
    common = {"norm_cfg": {"type": "BN"}, "out_indices": (0, 1, 2, 3), "contract_dilation": True, "style": "pytorch"}
    return common | STRIDES[output_stride]


def _values(name: str, value: Tensor, generator: torch.Generator) -> Tensor:
    if name.endswith("num_batches_tracked"):
        return torch.tensor(7)
    drawn = torch.randn(value.shape, generator=generator)
    if name.endswith("running_var"):
        return 1 + 0.3 * drawn.tanh()
    if value.ndim == 4:
        return drawn * (2.0 / value[0].numel()) ** 0.5
    return 0.1 * drawn + (1.0 if name.endswith("weight") else 0.0)
