"""The inference form of a network: what only training needs is removed, and the rest is arranged for speed.

Batch norms are folded into the convolution before them, dropout and the auxiliary head are removed, weights and
features are stored channels-last, and convolutions may run in bfloat16. Float32 convolutions on the CPU multiply less
where `segkit.ops.winograd` is faster, which takes up to 5.4 times their weights in extra memory, and depthwise ones of
large dilation are shifted products (`segkit.ops.depthwise`). Results differ from the original network's only by
rounding, and `inference_form` checks the folded norms.
"""

import copy
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from segkit.errors import InputError
from segkit.models.norms import FrozenBatchNorm2d
from segkit.ops.depthwise import shift_dilated_depthwise
from segkit.ops.processor import multiplies_bfloat16
from segkit.ops.torch_private import BatchNormBase
from segkit.ops.winograd import multiply_less

Precision = Literal["auto", "exact", "float32", "bfloat16"]

_FOLDED = (nn.BatchNorm2d, FrozenBatchNorm2d, nn.SyncBatchNorm)  # exactly these: timm's subclasses do more than norm
_LEFT_OUT = (nn.Dropout, nn.Dropout2d)
MAX_SHAPES = 8  # number of input shapes that are compiled

_PROBE = 64  # side in pixels of the image that finds the norms and checks the result
_TOLERANCE = 1e-3  # of the largest logit; rounding is 1e-6 of it, a wrongly folded norm 0.1 and more


class InferenceForm(nn.Module):
    """Maps `(B, C, H, W)` normalised float to `{"out": (B, K, h, w)}` float32, as its network did in eval mode.

    Args:
        network: A network already folded by `inference_form`.
        dtype: The dtype of weights and features. The classifier, the last convolution, always computes in float32:
            eight bits of a logit are too few to tell classes apart.
        compiled: Whether `torch.compile` compiles the network, once for each of the first few input shapes.

    Attributes:
        num_classes, output_stride, align_corners, config: Those of the network.
    """

    def __init__(self, network: nn.Module, dtype: torch.dtype, compiled: bool = False) -> None:
        super().__init__()
        self.num_classes: int = network.num_classes  # type: ignore[assignment]
        self.output_stride: int = network.output_stride  # type: ignore[assignment]
        self.align_corners: bool = network.align_corners  # type: ignore[assignment]
        self.config: Mapping[str, Any] = network.config  # type: ignore[assignment]
        self.dtype = dtype
        self.network = network.to(dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
        keep_classifier_in_float32(network)
        run: Callable[[Tensor], Tensor] = self._logits
        self._run = ShapeBuckets(run) if compiled else run

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return logits at the network's own stride."""
        x = x.to(self.dtype, memory_format=torch.channels_last)
        return {"out": self._run(x).float()}

    def _logits(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x)["out"]
        return logits


class ShapeBuckets:
    """`run`, compiled for the first few input shapes (with CUDA graphs on CUDA) and uncompiled for all others.

    A compiled network is one program per shape. Windows of a protocol share one shape, but whole images may have
    hundreds, each of which would take a minute to compile and stay in memory.

    Args:
        run: A function from a tensor to a tensor.
        max_shapes: How many input shapes get a program of their own.
        compile_: A replacement for `torch.compile` in tests.
    """

    def __init__(
        self,
        run: Callable[[Tensor], Tensor],
        max_shapes: int = MAX_SHAPES,
        compile_: Callable[..., Callable[[Tensor], Tensor]] = torch.compile,
    ) -> None:
        self._plain, self._max_shapes, self._compile = run, max_shapes, compile_
        self._programs: dict[tuple[object, ...], Callable[[Tensor], Tensor]] = {}

    def __call__(self, x: Tensor) -> Tensor:
        """Run on `x`, compiled if its shape is among the first `max_shapes`."""
        key = (tuple(x.shape), x.dtype, x.device)
        if key not in self._programs:
            if len(self._programs) >= self._max_shapes:
                return self._plain(x)
            # CUDA graphs replay a forward pass without the CPU; the next replay overwrites the output.
            mode = "reduce-overhead" if x.is_cuda else None
            self._programs[key] = self._compile(self._plain, dynamic=False, mode=mode)
        result = self._programs[key](x)
        return result.clone() if x.is_cuda else result


def inference_form(network: nn.Module, dtype: torch.dtype = torch.float32, compiled: bool = False) -> nn.Module:
    """Make the inference form of a network, which itself stays unchanged.

    Args:
        network: A `SegmentationModel`, or any module with its attributes.
        dtype: The dtype, float32 or bfloat16; see `InferenceForm`.
        compiled: See `InferenceForm`.

    Returns:
        An `InferenceForm` on the network's device. Norms stay unfolded if folding them changes the logits.
    """
    plain = folded(network)
    if dtype == torch.float32:
        multiply_less(plain)
        shift_dilated_depthwise(plain)
    return InferenceForm(plain, dtype, compiled).eval()


def folded(network: nn.Module) -> nn.Module:
    """Copy a network in eval mode without dropout and auxiliary head, its batch norms folded where that is exact."""
    plain = _without_training(network)
    return plain if _fold_norms(plain) else _without_training(network)


def precision_of(network: nn.Module) -> str:
    """The precision in which a network runs: "exact" as trained, or that of its inference form or exported file."""
    return (
        str(network.dtype).removeprefix("torch.")
        if isinstance(network, InferenceForm)
        else str(getattr(network, "precision", "exact"))
    )


def convolution_dtype(precision: Precision, device: torch.device) -> torch.dtype | None:
    """Return the dtype in which convolutions run; None for "exact", the network as it was trained.

    "auto" means bfloat16 if the device multiplies it faster than float32: a CPU with AVX-512 BF16 or AMX
    (`segkit.ops.processor`), or a GPU of compute capability 8 or higher.

    Raises:
        InputError: `precision` is none of the allowed words.
    """
    if precision not in get_args(Precision):
        raise InputError(f"precision={precision!r} is not one of {', '.join(get_args(Precision))}")
    if precision == "auto":
        return torch.bfloat16 if _fast_bfloat16(device) else torch.float32
    return {"exact": None, "float32": torch.float32, "bfloat16": torch.bfloat16}[precision]


def _fast_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and multiplies_bfloat16()


def _without_training(network: nn.Module) -> nn.Module:
    """Copy the network without what only training needs."""
    plain = copy.deepcopy(network).eval().requires_grad_(False)
    plain.aux_head = None  # type: ignore[assignment]
    for name, module in list(plain.named_modules()):
        if isinstance(module, _LEFT_OUT):
            plain.set_submodule(name, nn.Identity())
    return plain


@torch.no_grad()
def _fold_norms(network: nn.Module) -> bool:
    """Fold batch norms into convolutions, in place; return whether the logits changed by no more than rounding."""
    like = next(network.parameters())
    arguments: Mapping[str, Any] = network.config.get("init_args", {})  # type: ignore[union-attr, operator]
    channels = int(getattr(network, "in_channels", arguments.get("in_channels", 3)))
    generator = torch.Generator().manual_seed(0)
    probe = torch.randn(1, channels, _PROBE, _PROBE, generator=generator).to(like)
    pairs, expected = _pairs(network, probe)
    for convolution, norm in pairs:
        _fold(network, convolution, norm)
    return bool((network(probe)["out"] - expected).abs().max() <= _TOLERANCE * expected.abs().max())


def _pairs(network: nn.Module, probe: Tensor) -> tuple[list[tuple[str, str]], Tensor]:
    """Names of (convolution, norm) where the norm's input is the very tensor the convolution returned; and logits."""
    made: dict[int, tuple[str, Tensor]] = {}  # by id; the tensor is kept so that no other gets its id
    pairs: list[tuple[str, str]] = []
    calls: dict[str, int] = {}

    def after(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
            calls[name] = calls.get(name, 0) + 1
            made[id(output)] = (name, output)

        return hook

    def before(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            calls[name] = calls.get(name, 0) + 1
            if id(inputs[0]) in made:
                pairs.append((made[id(inputs[0])][0], name))

        return hook

    handles = []
    for name, module in network.named_modules():
        if type(module) is nn.Conv2d:
            handles.append(module.register_forward_hook(after(name)))
        elif type(module) in _FOLDED:
            handles.append(module.register_forward_pre_hook(before(name)))
    try:
        logits: Tensor = network(probe)["out"]
    finally:
        for handle in handles:
            handle.remove()
    return [pair for pair in pairs if calls[pair[0]] == calls[pair[1]] == 1], logits


def _fold(network: nn.Module, convolution: str, norm: str) -> None:
    """Fold a norm into the weights of the convolution before it, and remove it."""
    conv, bn = network.get_submodule(convolution), network.get_submodule(norm)
    assert isinstance(conv, nn.Conv2d) and isinstance(bn, BatchNormBase)
    if bn.running_mean is None or bn.running_var is None:
        return
    conv.weight, bias = fuse_conv_bn_weights(
        conv.weight, conv.bias, bn.running_mean, bn.running_var, bn.eps, bn.weight, bn.bias
    )
    conv.bias = bias.requires_grad_(False)
    conv.weight.requires_grad_(False)
    network.set_submodule(norm, nn.Identity())


def keep_classifier_in_float32(network: nn.Module) -> None:
    """Make the convolution that makes the logits compute in float32: the last one, if it has an output per class."""
    found = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    if found and found[-1].out_channels == network.num_classes:
        found[-1].float().register_forward_pre_hook(lambda module, inputs: (inputs[0].float(),))
