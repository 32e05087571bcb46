"""Batch norms that cannot train with one image per process, and norms or stages that are kept from training.

A norm after a global average pool sees a 1x1 map, one value per channel and image: those of the split attention
(`SplitAttention.bn1`), of ASPP's pooled branch, and of selective kernels in timm's SKNet. With one image in the batch
PyTorch refuses it; with two, the values become plus and minus one.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from segkit.errors import InputError
from segkit.models.resnest import ResNeSt
from segkit.ops.meta import meta_image, on_meta

PooledNorm = Literal["batch", "frozen", "group"]

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)

_PROBE = 64  # side in pixels: an encoder's coarsest feature, at stride 32, still has 2x2 cells
_GROUP = 16  # minimum channels per group (Wu & He 2018, table 3): on a 1x1 map they are a group's only values
_MOST_GROUPS = 32
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


class FrozenBatchNorm2d(nn.BatchNorm2d):
    """A batch norm that uses its running statistics even in training and never updates them; weight and bias train.

    It maps `(B, C, h, w)` to the same shape. Parameters, buffers and their names are those of `nn.BatchNorm2d`.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalise with the running statistics."""
        self._check_input_dim(input)
        return F.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)


def pooled_norms(network: nn.Module) -> list[tuple[str, nn.Module]]:
    """Find the batch, frozen and group norms that see 1x1 maps when an image passes through; names and modules.

    Args:
        network: A segmentation network, left unchanged.
    """
    seen: list[str] = []
    shapes = on_meta(network).float()  # one dtype, so that a network in half precision accepts the image
    for name, norm in shapes.named_modules():
        if isinstance(norm, (*BATCH_NORMS, nn.GroupNorm)):
            norm.register_forward_pre_hook(partial(_note_pooled, seen, name))
    channels: Any = network.get_submodule("encoder").channels
    with torch.no_grad():
        shapes(meta_image(shapes, (1, channels[0], _PROBE, _PROBE)))
    return [(name, network.get_submodule(name)) for name in dict.fromkeys(seen)]


def _note_pooled(seen: list[str], name: str, norm: nn.Module, inputs: tuple[Tensor]) -> None:
    if inputs[0].shape[2:].numel() == 1:
        seen.append(name)


def set_pooled_norm(network: nn.Module, kind: PooledNorm) -> None:
    """Replace all norms on 1x1 maps by one kind, in place, and record it in the network's `config`.

    Weight and bias stay the same parameters, so that an optimizer keeps them. Running statistics are kept too, except
    that a group norm has none, so a batch norm that replaces one starts with fresh statistics.

    Args:
        network: A segmentation network.
        kind: "batch", "frozen" (`FrozenBatchNorm2d`: names in a state dict do not change), or "group" (`nn.GroupNorm`
            with at least 16 channels per group).

    Raises:
        InputError: The kind is unknown, a norm cannot be replaced, or there is no norm to replace.
    """
    if kind not in get_args(PooledNorm):
        raise InputError(f"pooled_norm={kind!r} is not one of {', '.join(get_args(PooledNorm))}")
    norms = pooled_norms(network)
    if kind != "batch" and not norms:
        raise InputError(f"pooled_norm={kind} has no effect: this network has no norm on 1x1 maps; leave it out")
    for name, norm in norms:
        network.set_submodule(name, _converted(name, norm, kind))
    config: Any = getattr(network, "config", None)
    if config is not None:
        config["init_args"] = {**config.get("init_args", {}), "pooled_norm": kind}


def needs_more_than_one_value(network: nn.Module) -> list[str]:
    """Names of the norms that would fail with one image per process: batch norms on 1x1 maps that train.

    Norms kept in eval mode while the network trains (`norms_to_eval`, `freeze_stages`) are not included.
    """
    return [
        name
        for name, norm in pooled_norms(network)
        if isinstance(norm, BATCH_NORMS)
        and not isinstance(norm, FrozenBatchNorm2d)
        and (norm.training or not network.training)
    ]


def without_absent_statistics(module: nn.Module, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Leave out the running statistics of norms that are group norms in `module`, which have no statistics."""
    absent = {
        f"{name}.{buffer}"
        for name, m in module.named_modules()
        if isinstance(m, nn.GroupNorm)
        for buffer in _STATISTICS
    }
    return {name: tensor for name, tensor in state_dict.items() if name not in absent}


def norms_to_eval(module: nn.Module) -> None:
    """Make all batch norms use their running statistics until the next `train()`, after which call this again.

    On a network's encoder this is mmsegmentation's `norm_eval` (1.2.2, mmseg/models/backbones/resnet.py).
    """
    for norm in module.modules():
        if isinstance(norm, BATCH_NORMS):
            norm.eval()


def freeze_stages(network: nn.Module, frozen_stages: int) -> None:
    """Exclude the encoder's first stages from training, as mmsegmentation's `frozen_stages` does.

    Their parameters need no gradient, and they are in eval mode until the next `train()`, after which call this again.
    Make the first call before the optimizer is built.

    Args:
        network: A segmentation network over a ResNeSt or a timm ResNet.
        frozen_stages: -1 for nothing, 0 for the stem, n for the stem and stages 1 to n (at most 4).

    Raises:
        InputError: The number is out of range, or the encoder's stages are not known.
    """
    if frozen_stages not in range(-1, 5):
        raise InputError(f"frozen_stages={frozen_stages} is not -1 (nothing), 0 (the stem) or 1 to 4 (stages)")
    if frozen_stages == -1:
        return
    trunk = find_trunk(network.get_submodule("encoder"))
    if trunk is None:
        raise InputError(
            "frozen_stages: the encoder's stages are not known (no conv1, bn1, layer1 to layer4); use -1, or a ResNeSt "
            "or ResNet encoder"
        )
    for name in ("conv1", "bn1", *(f"layer{stage}" for stage in range(1, frozen_stages + 1))):
        trunk.get_submodule(name).requires_grad_(False).eval()


def find_trunk(encoder: nn.Module) -> nn.Module | None:
    """Find the module with conv1, bn1 and layer1 to layer4: a ResNeSt itself, or the ResNet inside a `TimmEncoder`."""
    if isinstance(encoder, ResNeSt):
        return encoder
    # A TimmEncoder holds smp's wrapper, which holds timm's model.
    model = getattr(getattr(encoder, "encoder", None), "model", None)
    parts = dict(model.named_children()) if isinstance(model, nn.Module) else {}
    stages = all(isinstance(parts.get(f"layer{stage}"), nn.Sequential) for stage in range(1, 5))
    return model if stages and {"conv1", "bn1"} <= parts.keys() else None


@contextmanager
def eval_mode(network: nn.Module) -> Iterator[None]:
    """Use eval mode inside the block, then restore each module's own mode (a frozen BatchNorm stays frozen)."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _converted(name: str, norm: nn.Module, kind: PooledNorm) -> nn.Module:
    weight, bias, eps = norm.weight, norm.bias, norm.eps
    replaceable = type(norm) in (nn.BatchNorm2d, FrozenBatchNorm2d, nn.GroupNorm)
    if not (replaceable and isinstance(weight, nn.Parameter) and isinstance(bias, nn.Parameter)):
        raise InputError(f"pooled_norm: {name} is a {type(norm).__name__}, which cannot be replaced; use 'batch'")
    new = _new_norm(kind, len(weight), float(eps))  # type: ignore[arg-type]
    new.to(weight.device)
    new.weight, new.bias = weight, bias
    own = dict(new.named_buffers(recurse=False))
    for buffer, value in norm.named_buffers(recurse=False):
        if buffer in own:
            new.register_buffer(buffer, value)
    return new.train(norm.training)


def _new_norm(kind: PooledNorm, channels: int, eps: float) -> nn.BatchNorm2d | nn.GroupNorm:
    if kind != "group":
        return (FrozenBatchNorm2d if kind == "frozen" else nn.BatchNorm2d)(channels, eps)
    fitting = [n for n in range(1, _MOST_GROUPS + 1) if channels % n == 0 and channels // n >= _GROUP]
    return nn.GroupNorm(max(fitting, default=1), channels, eps)
