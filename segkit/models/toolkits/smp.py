"""Recognises the smp decoder of a checkpoint by the names and shapes of its parameters.

Names: segmentation_models_pytorch 0.6, decoders/*/decoder.py; for DeepLabV3 those of 0.4, too. An argument that leaves
no trace in names and shapes (dilation rates, interpolation) is assumed to be smp's default, and a note says so.
"""

import re
from collections.abc import Iterator
from typing import Any

from segkit.errors import InputError
from segkit.models.decoders import parameters
from segkit.models.toolkits.recognise import Shapes

# decoder, a name that only it has, and its arguments, each with the parameter whose first size it is (\d: of a list)
# fmt: off
_DECODERS: tuple[tuple[str, str, dict[str, str]], ...] = (
    ("dpt",           r"reassemble_blocks\.0",
     {"decoder_intermediate_channels": r"reassemble_blocks\.\d\.project_to_out_channel",
      "decoder_fusion_channels":       r"reassemble_blocks\.0\.project_to_feature_dim"}),
    ("unetplusplus",  r"blocks\.x_0_0",         {"decoder_channels": r"blocks\.x_0_\d\.conv1\.0"}),
    ("manet",         r"blocks\.0\.hl_conv",
     {"decoder_channels": r"blocks\.\d\.conv1\.0", "decoder_pab_channels": r"center\.top_conv"}),
    ("linknet",       r"blocks\.0\.block",      {}),
    ("unet",          r"blocks\.0\.conv1",      {"decoder_channels": r"blocks\.\d\.conv1\.0"}),
    ("fpn",           r"seg_blocks\.0",
     {"decoder_pyramid_channels": "p5", "decoder_segmentation_channels": r"seg_blocks\.0\.block\.0\.block\.0"}),
    ("pspnet",        r"psp\.blocks\.0\.pool",  {"psp_out_channels": r"conv\.0"}),
    ("pan",           "fpa",                    {"decoder_channels": r"fpa\.branch1\.1\.conv"}),
    ("deeplabv3plus", r"aspp\.0\.convs",        {"decoder_channels": r"aspp\.0\.convs\.0\.0"}),
    ("deeplabv3",     r"(aspp|0)\.convs",       {"decoder_channels": r"(aspp|0)\.convs\.0\.0"}),
    ("upernet",       "fusion_block",           {"decoder_channels": r"fusion_block\.0"}),
    ("segformer",     "mlp_stage",              {"decoder_segmentation_channels": r"fuse_stage\.0"}),
)
# fmt: on
# A pattern of names that occurs once for each feature, and the number of features without one.
_FEATURES = {
    "unet": (r"blocks\.\d\.", 0),
    "unetplusplus": (r"blocks\.x_0_\d\.", 0),
    "manet": (r"blocks\.\d\.", 0),
    "linknet": (r"blocks\.\d\.", 0),
    "segformer": (r"mlp_stage\.\d\.", 0),
    "upernet": (r"feature_norms\.\d\.", 1),
}
_UNSEEN = ("decoder_atrous_rates", "decoder_interpolation")


def decoder_configs(shapes: Shapes) -> Iterator[tuple[str, dict[str, Any]]]:
    """The decoder's name and arguments for `EncoderDecoder`, for each possible encoder depth, likeliest first.

    Args:
        shapes: Shapes of the file's tensors, under smp's names.

    Raises:
        InputError: The decoder is none of smp's.
    """
    inside = {name.removeprefix("decoder."): shape for name, shape in shapes.items() if name.startswith("decoder.")}
    found = [row for row in _DECODERS if any(re.match(rf"{row[1]}\.", name) for name in inside)]
    if not found:
        raise InputError(
            f"a checkpoint of smp with a decoder that segkit does not know ({', '.join(sorted(inside)[:2])}, ...); it "
            f"reads {', '.join(sorted(row[0] for row in _DECODERS))}"
        )
    decoder, _, widths = found[0]
    given = {argument: _width(pattern, inside) for argument, pattern in widths.items()}
    given |= _structure(decoder, inside, shapes)
    defaults = _defaults(decoder)
    depths: list[int] = [defaults["encoder_depth"]]
    if decoder in _FEATURES:
        pattern, without = _FEATURES[decoder]
        depths = [without + len({match[0] for name in inside if (match := re.match(pattern, name))})]
    elif decoder != "dpt":
        depths += [depth for depth in (5, 4, 3) if depth not in depths]
    for depth in depths:
        arguments = {**given, "encoder_depth": depth}
        yield decoder, {name: value for name, value in arguments.items() if value != defaults[name]}


def unseen(decoder: str) -> str:
    """Say which of a decoder's arguments its file cannot show; "" if there are none."""
    taken = {name: value for name, value in _defaults(decoder).items() if name in _UNSEEN}
    words = ", ".join(f"{name} {value}" for name, value in taken.items())
    return f"not in the file, assumed to be smp's default: {words}" if taken else ""


def _width(pattern: str, inside: Shapes) -> Any:
    sizes = {name: shape[0] for name, shape in inside.items() if re.fullmatch(rf"{pattern}\.weight", name)}
    if not sizes:
        raise InputError(f"the decoder cannot be recognised without decoder.{pattern}.weight".replace("\\", ""))
    return [sizes[name] for name in sorted(sizes)] if r"\d" in pattern else next(iter(sizes.values()))


def _structure(decoder: str, inside: Shapes, shapes: Shapes) -> dict[str, Any]:
    """The decoder's arguments that are choices, not widths."""
    found: dict[str, Any] = {}
    if "decoder_use_norm" in _defaults(decoder) and not any(name.endswith("running_mean") for name in inside):
        found["decoder_use_norm"] = False
    if any(".attention1." in name for name in inside):
        found["decoder_attention_type"] = "scse"
    if decoder.startswith("deeplabv3"):
        found["decoder_aspp_separable"] = any(re.match(r"(aspp\.)?(0\.)?convs\.1\.0\.0\.", name) for name in inside)
    if decoder == "fpn" and len(head := shapes.get("segmentation_head.0.weight", ())) == 4:
        merged = head[1] == inside["seg_blocks.0.block.0.block.0.weight"][0]
        found["decoder_merge_policy"] = "add" if merged else "cat"
    if decoder == "dpt" and not any(name.startswith("projection_blocks.") for name in inside):
        found["decoder_readout"] = "ignore"
    return found


def _defaults(decoder: str) -> dict[str, Any]:
    return {
        name: list(p.default) if isinstance(p.default, tuple) else p.default for name, p in parameters(decoder).items()
    }
