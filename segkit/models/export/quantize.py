"""Int8 by NNCF's post-training quantisation, with the layers that cost too much mIoU kept in float.

NNCF's own accuracy control removes quantisers one by one and scores a data set after each. Here layers are ranked by
how much the logits of a few images change if that layer alone is rounded to int8, and the first of this ranking are
kept in float, twice as many in each round, until the loss of mIoU is small enough. A loss that made the choice
flatters the file, so a report needs other images than the choice.
"""

from __future__ import annotations

import contextlib
import io
import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from segkit.errors import InputError, import_extra, one_line
from segkit.models.export.deployable import Deployable
from segkit.ops.dispatch import plain_ops
from segkit.ops.normalize import standardize_

RANKED_IMAGES = 2  # that the ranking of layers looks at: each is run once for every layer

_NOT_INT8 = ["Resize", "Interpolate", "ArgMax", "TopK"]  # of ONNX and OpenVINO: they make the labels from the logits
_PRODUCT = (nn.Conv2d, nn.Linear)


@dataclass(frozen=True)
class Calibration:
    """What int8 is calibrated on, and how the loss is judged.

    Attributes:
        count: Number of calibration images.
        read: Returns image i as the exported file takes it: float32 or uint8 (1, C, H, W).
        drop: Returns the loss of mIoU, 0..1, of a file that was written, on images that no report uses.
        max_drop: The largest loss that is accepted, 0..1.
        say: Called with one line for each step.
    """

    count: int
    read: Callable[[int], np.ndarray]
    drop: Callable[[Path], float]
    max_drop: float
    say: Callable[[str], None]


def layers_of(onnx_model: Any) -> dict[str, str]:
    """Layers of an `onnx.ModelProto` of segkit, in its order: name in the network -> name of the node."""
    found = {}
    for node in onnx_model.graph.node:
        weight = node.input[1] if node.op_type in ("Conv", "Gemm", "MatMul") else ""
        if weight.startswith("network.") and weight.endswith(".weight"):
            found[weight.removeprefix("network.").removesuffix(".weight")] = node.name
    return found


def quantize_until(
    path: Path,
    layers: dict[str, str],
    deployable: Deployable,
    calibration: Calibration,
    write: Callable[[Sequence[str], Sequence[str]], None],
) -> list[str]:
    """Write an int8 file again and again, with more layers in float, until the loss of mIoU is accepted.

    Args:
        path: The file that `write` writes.
        layers: See `layers_of`.
        deployable: The same network in PyTorch, float32.
        calibration: Images and judge.
        write: Writes the file with some layers in float, given as names in the network and as names of nodes.

    Returns:
        Names of the layers kept in float; the last always is: eight bits of a logit are too few to tell classes apart.
    """
    names = list(layers)
    kept, ranked = names[-1:], list[str]()
    while True:
        calibration.say(f"int8: calibrating on {calibration.count} images, {len(kept)} of {len(names)} layers in float")
        write(kept, [layers[name] for name in kept])
        drop = calibration.drop(path)
        limit = f"at most {100 * calibration.max_drop:g} allowed"
        calibration.say(f"int8: loses {100 * drop:.2f} points of mIoU, {limit}; in float: {', '.join(kept)}")
        if drop <= calibration.max_drop or len(kept) == len(names):
            return kept
        if not ranked:
            calibration.say(f"int8: ranking {len(names)} layers by what rounding each alone does to the logits")
            images = [torch.from_numpy(calibration.read(i)) for i in range(min(RANKED_IMAGES, calibration.count))]
            ranked = [*kept, *(name for name in ranking(deployable, images) if name in layers and name not in kept)]
            ranked += [name for name in names if name not in ranked]
        kept = ranked[: 2 * len(kept)]


@torch.no_grad()
def ranking(deployable: Deployable, images: Sequence[Tensor]) -> list[str]:
    """Names of the network's layers, that first whose rounding to int8 changes the logits most.

    Args:
        deployable: The network in float32; not changed.
        images: Stored images (1, C, H, W).
    """
    network = deployable.network
    values = [standardize_(image.to(torch.float32, copy=True), deployable.normalization) for image in images]

    def logits() -> list[Tensor]:
        with plain_ops():
            return [network(value)["out"] for value in values]

    exact, changes = logits(), dict[str, float]()
    for name, layer in network.named_modules():
        if not isinstance(layer, _PRODUCT):
            continue
        weight = layer.weight.data
        handle = layer.register_forward_pre_hook(lambda module, inputs: (_rounded(inputs[0]),))
        layer.weight.data = _rounded(weight, by_row=True)
        changes[name] = sum(float((a - b).square().mean()) for a, b in zip(exact, logits(), strict=True))
        layer.weight.data = weight
        handle.remove()
    return sorted(changes, key=lambda name: -changes[name])


def _rounded(values: Tensor, by_row: bool = False) -> Tensor:
    """Values in 255 steps of equal size over their range, which zero belongs to; of weights for each output channel."""
    flat = values.reshape(len(values), -1) if by_row else values.reshape(1, -1)
    low, high = flat.amin(1).clamp(max=0), flat.amax(1).clamp(min=0)
    step = ((high - low) / 255).clamp(min=1e-12)
    shape = (-1, *[1] * (values.ndim - 1))
    return (values / step.view(shape)).round() * step.view(shape)


def quantized(model: Any, calibration: Calibration, in_float: Sequence[str]) -> Any:
    """An `onnx.ModelProto` or `openvino.Model` in int8, as new.

    Args:
        model: The model in float.
        calibration: The images.
        in_float: Names of nodes that stay in float.

    Raises:
        InputError: NNCF is missing, or cannot quantise this model.
    """
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # which NNCF imports: it warns without CUDA
    nncf = import_extra("nncf", "openvino")
    # nncf.set_log_level would also set the level of handlers, whosever they are.
    logging.getLogger("nncf").setLevel(logging.ERROR)
    # OpenVINO splits a node with a bias in two, of which the first has this ending; NNCF looks at the beginning only.
    patterns = [f"{re.escape(name)}(/WithoutBiases)?$" for name in in_float]
    images = nncf.Dataset(range(calibration.count), lambda i: {"image": calibration.read(i)})
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # its bars
            return nncf.quantize(
                model,
                images,
                preset=nncf.QuantizationPreset.MIXED,
                subset_size=calibration.count,
                ignored_scope=nncf.IgnoredScope(patterns=patterns, types=_NOT_INT8, validate=False),
            )
    except InputError:
        raise
    except Exception as error:  # NNCF and the runtimes below it raise errors of many kinds
        raise InputError(
            f"NNCF cannot quantise this network: {one_line(error, 200)}; take another precision"
        ) from error
