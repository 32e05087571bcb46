"""A trained network as one function of the stored image, traced for the formats that networks are deployed in."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from segkit.errors import InputError, one_line
from segkit.models.checkpoint import Checkpoint
from segkit.models.inference_form import folded, keep_classifier_in_float32
from segkit.ops.dispatch import plain_ops
from segkit.ops.normalize import Normalization, standardize_
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
        self.network = folded(network).to(dtype or torch.float32)
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
            return torch.export.export(
                deployable.eval(), (image,), dynamic_shapes=free, prefer_deferred_runtime_asserts_over_guards=True
            )
    except Exception as error:  # what PyTorch raises here is of many kinds, and each says why the network has no graph
        raise InputError(
            f"this network cannot be exported for images of any size: {one_line(error, 300)}; its model file "
            "(.safetensors) runs in segkit"
        ) from error


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
