"""Recognises a file's encoder by the shapes of its parameters: a ResNeSt, or a ResNet of timm and torchvision."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from segkit.errors import InputError
from segkit.models.resnest import EXPANSION, RESNEST_VARIANTS

Shapes = Mapping[str, tuple[int, ...]]

_WIDEST = (64, 128, 256, 512)  # planes of every published network

# ResNets by their shapes. The parts combine to timm's names; timm refuses those that do not exist.
_DEPTHS: dict[tuple[str, tuple[int, ...]], int] = {
    ("basic", (2, 2, 2, 2)): 18,
    ("basic", (3, 4, 6, 3)): 34,
    ("bottleneck", (2, 2, 2, 2)): 26,
    ("bottleneck", (3, 4, 6, 3)): 50,
    ("bottleneck", (3, 4, 23, 3)): 101,
    ("bottleneck", (3, 8, 36, 3)): 152,
}
# (channels of the stem's convolutions, whether the shortcut has a pool)
_STEMS: dict[tuple[tuple[int, ...], bool], str] = {
    ((64,), False): "",
    ((32, 32, 64), False): "c",
    ((64, 64, 128), False): "s",
    ((32, 32, 64), True): "d",
}
# (inner channels of stage 1, channels of a group)
_WIDTHS = {
    (64, 64): "resnet{}",
    (128, 128): "wide_resnet{}_2",
    (128, 4): "resnext{}_32x4d",
    (256, 4): "resnext{}_64x4d",
    (256, 8): "resnext{}_32x8d",
}


@dataclass(frozen=True)
class EncoderGuess:
    """An encoder that has the shapes of a file.

    Attributes:
        name: The encoder's name for `build_encoder`.
        overrides: The `encoder_args`; empty for the published encoders.
        in_channels: Channels of the input.
        notes: What the shapes leave open, in words.
    """

    name: str
    overrides: dict[str, Any] = field(default_factory=dict)
    in_channels: int = 3
    notes: tuple[str, ...] = ()

    @property
    def is_resnest(self) -> bool:
        """Whether it is a ResNeSt, for which the dilation convention is a choice."""
        return self.name in RESNEST_VARIANTS


def recognise_encoder(shapes: Shapes, file_name: str = "") -> EncoderGuess:
    """Find the encoder by the shapes of its parameters, under the authors' names ("conv1.0.weight", "layer1.0....").

    The "fast" variants pool before the 3x3 convolution, which no shape shows. A plain variant with the same shapes is
    preferred, unless the file's name has "fast" in it.

    Raises:
        InputError: The encoder is neither a ResNeSt nor a ResNet; the message says what was found.
    """
    try:
        if "layer1.0.conv2.conv.weight" in shapes:
            return _resnest(shapes, "fast" in file_name.lower())
        return _resnet(shapes)
    except InputError:
        raise
    except (KeyError, IndexError, ValueError, ZeroDivisionError) as error:
        without = f"without {error.args[0]}" if isinstance(error, KeyError) else "from parameters of these shapes"
        raise InputError(f"the encoder cannot be recognised {without}; name it: --encoder resnest50, ...") from error


def _resnest(shapes: Shapes, fast: bool) -> EncoderGuess:
    stages = sum(count > 0 for count in _layers(shapes))
    planes = tuple(shapes[f"layer{i + 1}.0.conv3.weight"][0] // EXPANSION for i in range(stages))
    inner = shapes["layer1.0.conv3.weight"][1]
    splits, group_width = shapes["layer1.0.conv2.conv.weight"][:2]
    radix = splits // inner
    cardinality = inner // group_width // radix
    width = inner / cardinality * 64 / planes[0]
    found: dict[str, Any] = {
        "layers": _layers(shapes)[:stages],
        "radix": radix,
        "cardinality": cardinality,
        "width": int(width) if width.is_integer() else width,
        "stem_width": shapes["conv1.0.weight"][0],
        "planes": planes,
    }
    differences = {
        name: _differences(found, {"planes": _WIDEST} | variant, stages) for name, variant in RESNEST_VARIANTS.items()
    }
    fewest = min(map(len, differences.values()))
    alike = [name for name, different in differences.items() if len(different) == fewest]
    preferred = [name for name in alike if ("fast" in name) == fast] or alike
    name = preferred[0]
    notes = [f"{other} has the same shapes (--encoder)" for other in alike if not fewest and other != name]
    overrides = {key: list(v) if isinstance(v, tuple) else v for key, v in differences[name].items()}
    if fast and not RESNEST_VARIANTS[name].get("avd_first"):
        overrides["avd_first"] = True
        notes.append("avd_first is assumed, because the file's name contains 'fast'")
    return EncoderGuess(name, overrides, shapes["conv1.0.weight"][1], tuple(notes))


def _differences(found: Mapping[str, Any], variant: Mapping[str, Any], stages: int) -> dict[str, Any]:
    """Differences from a variant; stages that the file lacks are assumed to be the variant's."""
    whole = {
        key: (*value, *variant[key][stages:]) if isinstance(value, tuple) else value for key, value in found.items()
    }
    return {key: value for key, value in whole.items() if value != variant[key]}


def _resnet(shapes: Shapes) -> EncoderGuess:
    block = "bottleneck" if "layer1.0.conv3.weight" in shapes else "basic"
    stem = "conv1.weight" if "conv1.weight" in shapes else "conv1.0.weight"
    deep = ("conv1.0.weight", "conv1.3.weight", "conv1.6.weight")
    convolutions = tuple(shapes[name][0] for name in (deep if stem == deep[0] else (stem,)))
    pooled = len(shapes.get("layer2.0.downsample.1.weight", ())) == 4
    layers, width = tuple(filter(None, _layers(shapes))), shapes["layer1.0.conv2.weight"][:2]
    # A file that lacks the last stages is taken for the first network that begins with the same ones.
    alike = (d for (b, n), d in _DEPTHS.items() if b == block and n[: len(layers)] == layers[: len(n)])
    depth, letter = next(alike, None), _STEMS.get((convolutions, pooled))
    name = _WIDTHS.get((width[0], width[1]))
    if depth is None or letter is None or name is None:
        raise InputError(
            f"an encoder that segkit does not build: {block} blocks {layers}, stem of {convolutions} channels, "
            f"{'pooled' if pooled else 'strided'} shortcuts, 3x3 convolutions of {width[0]} channels in stage 1"
        )
    return EncoderGuess(name.format(f"{depth}{letter}"), in_channels=shapes[stem][1])


def _layers(shapes: Shapes) -> tuple[int, ...]:
    """The number of blocks in each of the four stages."""
    blocks = {match.groups() for name in shapes if (match := re.match(r"layer([1-4])\.(\d+)\.", name))}
    return tuple(sum(stage == str(i) for stage, _ in blocks) for i in (1, 2, 3, 4))
