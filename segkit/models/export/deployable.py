"""A trained network as one function of the stored image, traced for the formats that networks are deployed in."""

from __future__ import annotations

import copy
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from segkit.errors import InputError, one_line
from segkit.models.checkpoint import Checkpoint
from segkit.models.inference_form import folded, keep_classifier_in_float32
from segkit.ops.dispatch import plain_ops
from segkit.ops.normalize import Normalization, standardize_
from segkit.ops.torch_private import ASSERT_SCALAR
from segkit.ops.upsample import label_dtype, upsample

Outputs = Literal["both", "labels", "logits"]

_EXAMPLE = (2, 97, 129)  # batch, height and width of the traced image: no two alike, none 1, as PyTorch would fix these


class Deployable(nn.Module):
    """Maps the image as it is stored to labels at its size, logits at the network's stride, or both, in this order.

    Args:
        network: A network in eval mode, which is not changed: its copy has the batch norms folded.
        normalization: How the network's images are normalised, which becomes part of the function.
        outputs: "labels": uint8 (B, H, W), int16 above 256 classes; "logits": float32 (B, K, h, w); "both".
        dtype: The dtype of weights and features; the classifier computes in float32.
    """

    def __init__(
        self,
        network: nn.Module,
        normalization: Normalization,
        outputs: Outputs = "both",
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.network = folded(with_traceable_padding(network)).to(dtype or torch.float32)
        if dtype not in (None, torch.float32):
            keep_classifier_in_float32(self.network)
        self.normalization, self.outputs, self.dtype = normalization, outputs, dtype or torch.float32
        self.align_corners = bool(network.align_corners)
        self.label_dtype = label_dtype(int(network.num_classes))  # type: ignore[arg-type]

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Label the image, uint8 or float32 (B, C, H, W) with the values that image files have."""
        values = standardize_(image.to(torch.float32, copy=True), self.normalization)
        logits = self.network(values.to(self.dtype))["out"].float()
        if self.outputs == "logits":
            return (logits,)
        full = upsample(logits, (image.shape[2], image.shape[3]), self.align_corners)
        labels = full.argmax(dim=1).to(self.label_dtype)
        return (labels,) if self.outputs == "labels" else (labels, logits)


class SamePadding(nn.Module):
    """TensorFlow's padding "same" for a convolution of stride 2 and an odd kernel: (B, C, H, W), any H and W.

    Args:
        most: Pixels on each side of an odd height or width; an even one has one less at its beginning.
    """

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most

    def forward(self, x: Tensor) -> Tensor:
        """Pad with zeros to (B, C, H + 2 most - 1 + H % 2, W + 2 most - 1 + W % 2)."""
        height, width = x.shape[2:]
        top, left = 1 - height % 2, 1 - width % 2
        padded = F.pad(x, (self.most,) * 4)
        rows = padded.narrow(2, top, height + 2 * self.most - top)
        return rows.narrow(3, left, width + 2 * self.most - left)


def with_traceable_padding(network: nn.Module) -> nn.Module:
    """Copy a network whose convolutions of timm's class Conv2dSame, if any, pad as `SamePadding`.

    Their own sizes of padding are rounded up, multiplied and bounded: in a few layers one inside the other, these
    expressions of a free height and width take PyTorch's tracing half an hour and more.
    """
    changed = copy.deepcopy(network)
    for name, module in list(changed.named_modules()):
        if type(module).__name__ != "Conv2dSame" or not isinstance(module, nn.Conv2d):
            continue
        if module.stride == (2, 2) and module.dilation == (1, 1) and module.kernel_size[0] % 2:
            keys = ("in_channels", "out_channels", "kernel_size", "stride", "groups")
            convolution = nn.Conv2d(**{key: getattr(module, key) for key in keys}, bias=module.bias is not None)
            convolution.weight, convolution.bias = module.weight, module.bias
            changed.set_submodule(name, nn.Sequential(SamePadding(module.kernel_size[0] // 2), convolution))
    return changed.train(network.training)


def output_names(outputs: Outputs) -> list[str]:
    """The names of a deployable's outputs, in order."""
    return ["labels", "logits"] if outputs == "both" else [outputs]


def trace(deployable: Deployable, input_dtype: torch.dtype = torch.float32) -> ExportedProgram:
    """Trace a deployable for any batch, height and width, in plain PyTorch operations.

    Raises:
        InputError: The network's path depends on values or on a fixed size, so that no program can stand for it.
    """
    batch, height, width = _EXAMPLE
    channels = len(deployable.normalization.mean)
    image = torch.randint(0, 256, (batch, channels, height, width), generator=torch.Generator()).to(input_dtype)
    most = 2**15
    free: dict[str, Any] = {
        "image": {0: Dim("batch", min=1, max=most), 2: Dim("height", min=1, max=most), 3: Dim("width", min=1, max=most)}
    }
    try:
        with plain_ops(), torch.no_grad():
            program = torch.export.export(
                deployable.eval(), (image,), dynamic_shapes=free, prefer_deferred_runtime_asserts_over_guards=True
            )
    except Exception as error:  # what PyTorch raises here is of many kinds, and each says why the network has no graph
        raise InputError(
            f"this network cannot be exported for images of any size: {one_line(error, 300)}; its model file "
            "(.safetensors) runs in segkit"
        ) from error
    return _without_assertions(program)


def _without_assertions(program: ExportedProgram) -> ExportedProgram:
    """Remove what tracing supposed of the sizes, such as that a crop is no copy, from the program, in place.

    Its operations do not depend on it, and for some sizes it is not so.
    """
    for node in list(program.graph.nodes):
        if node.target is ASSERT_SCALAR:
            program.graph.erase_node(node)
    program.graph.eliminate_dead_code()
    program.graph_module.recompile()
    return program


def deployment_card(checkpoint: Checkpoint, network: nn.Module, **how: Any) -> dict[str, Any]:
    """All that a file for another runtime says of itself, as plain data.

    Args:
        checkpoint: The weights' description, with its card.
        network: The network that `checkpoint` builds.
        how: "outputs", "input", "precision" and "license" of the file.
    """
    return {
        "format": 1,
        **checkpoint.card,
        "network": network.config,
        "num_classes": network.num_classes,
        "output_stride": network.output_stride,
        "align_corners": network.align_corners,
        "normalization": checkpoint.normalization,
        "label_space": checkpoint.label_space,
        **how,
    }
