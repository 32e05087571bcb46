"""The networks that the ResNeSt paper compares itself with, as small as `resnest14_tiny`: ResNet-D, SENet, SKNet.

The blocks are timm's (timm/models/resnet.py and sknet.py), registered there under the names below, so that they are
built, dilated and exported like any timm encoder. Layers, deep stem and averaging shortcut are those of
`resnest14_tiny`; the bottlenecks are wider, so that parameters and FLOPs are equal. As in segkit's ResNeSt, and unlike
timm's default, the last norm of a block starts at 1.

Squeeze-and-excitation comes at the end of a block (Hu et al. 2018); the two selective kernels, 3x3 and dilated 3x3, see
half of the channels each (timm's skresnet50), as do the two splits of a ResNeSt of radix 2.
"""

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.resnet import Bottleneck, ResNet
from timm.models.sknet import SelectiveKernelBottleneck
from torch import nn

from segkit.models.resnest import RESNEST_VARIANTS

_LIKE = RESNEST_VARIANTS["resnest14_tiny"]
_ARGUMENTS = {
    "layers": _LIKE["layers"],
    "channels": _LIKE["planes"],
    "stem_width": _LIKE["stem_width"],
    "stem_type": "deep",
    "avg_down": True,
    "zero_init_last": False,
}

COMPARATORS = ("resnet14_tiny", "senet14_tiny", "sknet14_tiny")

# timm looks up a model's weights here: there are none.
default_cfgs = generate_default_cfgs({n: {"first_conv": "conv1.0", "classifier": "fc"} for n in COMPARATORS})


@register_model
def resnet14_tiny(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-D (He et al. 2019): the plain 3x3 convolution."""
    return _build("resnet14_tiny", pretrained, {"block": Bottleneck, "base_width": 68} | kwargs)


@register_model
def senet14_tiny(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """SENet (Hu et al. 2018): squeeze-and-excitation of a block's output."""
    block = {"block": Bottleneck, "block_args": {"attn_layer": "se"}}
    return _build("senet14_tiny", pretrained, block | kwargs)


@register_model
def sknet14_tiny(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """SKNet (Li et al. 2019): selective kernels in place of the 3x3 convolution."""
    block = {"block": SelectiveKernelBottleneck, "block_args": {"sk_kwargs": {"split_input": True}}}
    return _build("sknet14_tiny", pretrained, block | kwargs)


def _build(name: str, pretrained: bool, arguments: dict[str, Any]) -> nn.Module:
    model: nn.Module = build_model_with_cfg(ResNet, name, pretrained, **_ARGUMENTS | arguments)
    return model
