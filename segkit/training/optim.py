"""Optimiser and schedule: the ResNeSt authors' recipe by default, AdamW, layer decay and other schedules by option.

Source: zhanghang1989/PyTorch-Encoding, experiments/segmentation/train_dist.py and encoding/utils/lr_scheduler.py.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import nn

from segkit.errors import InputError
from segkit.models.signatures import check_effects
from segkit.text import aligned

Optimizer = Literal["sgd", "adamw"]
Schedule = Literal["poly", "cosine", "step", "constant"]

# Parts that wrappers (FSDP, torch.compile, activation checkpointing) insert into the names of parameters.
_WRAPPERS = re.compile(r"_fsdp_wrapped_module\.|_orig_mod\.|_checkpoint_wrapped_module\.")
# layer3.5, stages_2.blocks.3, stages.2.blocks.3, blocks.4.1, blocks.4, s3.b4 (RegNet), denseblock1.denselayer6
_BLOCK = re.compile(
    r"(?:^|\.|features_)(?P<stage>(?:layers?|stages?|blocks|denseblock|s)[._]?\d+)"
    r"(?:\.(?:blocks\.|denselayer|b)?(?P<block>\d+))?\."
)
# Layers whose weights are decayed even under FSDP, which makes one-dimensional shards of them.
_MATRICES = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


@dataclass(frozen=True)
class OptimConfig:
    """How a network is optimised.

    Attributes:
        name: "sgd" or "adamw".
        lr: Learning rate of the encoder for `reference_batch` images per step; scaled linearly to the real number.
        reference_batch: Total batch that `lr` was meant for; 0 takes `lr` as it is.
        head_lr_mult: The head's and auxiliary head's learning rate in units of the encoder's; a network of one's own
            (`OwnNetwork`) has no such parts.
        layer_decay: Each block of the encoder learns this much slower than the one above it, the last block than the
            head; in (0, 1], and 1 is none (BEiT, Bao et al. 2021, section 3.2; timm's `param_groups_layer_decay`).
        momentum: Momentum of SGD.
        weight_decay: Weight decay of every parameter, including norms and biases, as in the authors' code.
        decay_norm_bias: False exempts biases and the norms' parameters, as recipes with AdamW do. "not_by_name" is the
            ResNeSt authors' rule on ImageNet (zhanghang1989/ResNeSt, scripts/torch/train.py): exempt is what has "bn"
            or "bias" in its name, so the weights of the norms in a deep stem (conv1.1, conv1.4) and behind a shortcut
            (downsample.2) are still decayed.
        schedule: "poly", "cosine", "step" or "constant", by optimiser step after the warm-up.
        power: Exponent of the polynomial.
        min_lr: Learning rate at which poly and cosine end, the same for every group, and not scaled to the batch;
            mmsegmentation's `eta_min`.
        milestones: Optimiser steps, counted from the end of the warm-up, at which "step" multiplies by `gamma`.
        gamma: Factor of the schedule "step".
        warmup_steps: Steps of linear warm-up before the schedule.
    """

    name: Optimizer = "sgd"
    lr: float = 0.01
    reference_batch: int = 16
    head_lr_mult: float = 10.0
    layer_decay: float = 1.0
    momentum: float = 0.9
    weight_decay: float = 1e-4
    decay_norm_bias: bool | Literal["not_by_name"] = True
    schedule: Schedule = "poly"
    power: float = 0.9
    min_lr: float = 0.0
    milestones: tuple[int, ...] = ()
    gamma: float = 0.1
    warmup_steps: int = 0

    def __post_init__(self) -> None:
        """Turn a list (as read from a file) into a tuple and refuse values that cannot train."""
        object.__setattr__(self, "milestones", tuple(self.milestones))
        for name, kind in (("name", Optimizer), ("schedule", Schedule)):
            if getattr(self, name) not in get_args(kind):
                raise InputError(
                    f"model.optim.{name}={getattr(self, name)!r} is not known; use one of {', '.join(get_args(kind))}"
                )
        for name in ("lr", "head_lr_mult", "gamma"):
            if not getattr(self, name) > 0:
                raise InputError(f"model.optim.{name}={getattr(self, name)} must be positive")
        for name in ("weight_decay", "reference_batch", "warmup_steps", "momentum", "min_lr"):
            if not getattr(self, name) >= 0:
                raise InputError(f"model.optim.{name}={getattr(self, name)} must not be negative")
        if not 0 < self.layer_decay <= 1:
            raise InputError(f"model.optim.layer_decay={self.layer_decay} must be above 0, and 1 (none) at most")
        if not all(step > 0 for step in self.milestones) or (self.schedule == "step" and not self.milestones):
            raise InputError(
                f"model.optim.milestones={list(self.milestones)}: schedule step needs optimiser steps of 1 or more, "
                "such as [60000, 80000]"
            )
        check_effects(
            self,
            "model.optim",
            {
                "momentum": (self.name == "sgd", "name sgd"),
                "power": (self.schedule == "poly", "schedule poly"),
                "min_lr": (self.schedule in ("poly", "cosine"), "schedule poly or cosine"),
                "milestones": (self.schedule == "step", "schedule step"),
                "gamma": (self.schedule == "step", "schedule step"),
            },
        )


def scaled_lr(config: OptimConfig, total_batch: int) -> float:
    """The encoder's learning rate for `total_batch` images per optimiser step."""
    return config.lr * total_batch / config.reference_batch if config.reference_batch else config.lr


def parameter_groups(network: nn.Module, lr: float, config: OptimConfig) -> list[dict[str, Any]]:
    """Trainable parameters in groups for an optimiser: `params`, `lr`, `weight_decay` and `name`.

    There are two groups, "encoder" at `lr` and "head" (everything else) at `lr * head_lr_mult`. With layer decay,
    "encoder.stem", "encoder.block1", ... replace the first; norms and biases that are exempt from weight decay follow
    each in a group of their own, "NAME.no_decay". Groups without parameters are left out.

    Args:
        network: Network whose encoder is its attribute `encoder`.
        lr: Learning rate of the encoder, already scaled to the batch.
        config: All other settings.

    Raises:
        InputError: All parameters are frozen, layer decay finds no blocks in the encoder, or a `head_lr_mult` that is
            neither 1 nor the default finds no head.
    """
    parameters = {_WRAPPERS.sub("", name): (name, parameter) for name, parameter in network.named_parameters()}
    parts = _parts([name for name in parameters if name.startswith("encoder.")], config.layer_decay)
    exempt = _exempt(network, config.decay_norm_bias)
    groups: dict[str, dict[str, Any]] = {}
    for name, (wrapped_name, parameter) in parameters.items():
        if not parameter.requires_grad:
            continue
        part, scale = parts.get(name, ("head", config.head_lr_mult))
        decay = config.weight_decay
        if wrapped_name in exempt:
            part, decay = f"{part}.no_decay", 0.0
        group = {"params": [], "lr": lr * scale, "weight_decay": decay, "name": part}
        groups.setdefault(part, group)["params"].append(parameter)
    if not groups:
        raise InputError(
            f"model.network: all {len(parameters)} parameter tensors are frozen, nothing is left to train; freeze less"
        )
    if config.head_lr_mult not in (1, OptimConfig.head_lr_mult) and parameters.keys() <= parts.keys():
        raise InputError(
            f"model.optim.head_lr_mult={config.head_lr_mult} has no effect: this network is not divided into encoder "
            "and head, and all of it learns at model.optim.lr; leave it out, or set it to 1"
        )
    return list(groups.values())


def groups_table(groups: Sequence[dict[str, Any]], network: nn.Module) -> str:
    """The groups as an aligned table, one a line, with a total and the frozen parameters of `network`, if any."""
    rows: list[tuple[str, ...]] = [("group", "tensors", "parameters", "lr", "weight decay")]
    rows += [(g["name"], *_count(g["params"]), f"{g['lr']:.3g}", f"{g['weight_decay']:.3g}") for g in groups]
    rows.append(("total", *_count([p for g in groups for p in g["params"]])))
    frozen = [p for p in network.parameters() if not p.requires_grad]
    if frozen:
        rows.append(("frozen", *_count(frozen)))
    return aligned(rows)


def build_optimizer(config: OptimConfig, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """SGD with momentum, or AdamW, over `groups` with their own learning rates and weight decays."""
    return torch.optim.AdamW(groups) if config.name == "adamw" else torch.optim.SGD(groups, momentum=config.momentum)


def lr_factors(config: OptimConfig, total_steps: int, groups: Sequence[dict[str, Any]]) -> list[Callable[[int], float]]:
    """Each group's learning rate at an optimiser step in units of its initial one, as `LambdaLR` takes it.

    After the warm-up, with t the steps since and T those until the end of the run: poly `(1 - t/T)^power`; cosine
    `(1 + cos(pi t/T)) / 2`; step `gamma^n` after n milestones. Poly and cosine go down to `min_lr`:
    `lr(t) = (lr - min_lr) * factor(t) + min_lr`, as in mmcv's `PolyLrUpdaterHook`, under which mmsegmentation's
    published networks were trained (mmengine's `PolyLR` arrives one step earlier).

    Args:
        config: The schedule.
        total_steps: Optimiser steps of the run.
        groups: Groups with their initial learning rates, from `parameter_groups`.

    Raises:
        InputError: `min_lr` is above a group's learning rate.
    """
    for group in groups:
        if config.min_lr > group["lr"]:
            raise InputError(
                f"model.optim.min_lr={config.min_lr:g} is above the learning rate {group['lr']:.3g} of the group "
                f"{group['name']}; lower it, or raise lr (which is scaled to the batch), or layer_decay"
            )
    return [_lr_factor(config, total_steps, config.min_lr / group["lr"]) for group in groups]


def _lr_factor(config: OptimConfig, total_steps: int, end: float) -> Callable[[int], float]:
    """The factor at each step, as a pure function; `end` is the final factor of poly and cosine."""

    def factor(step: int) -> float:
        if step < config.warmup_steps:
            return (step + 1) / (config.warmup_steps + 1)
        step -= config.warmup_steps
        done = min(1.0, step / max(1, total_steps - config.warmup_steps))
        if config.schedule == "poly":
            return end + (1.0 - end) * float((1.0 - done) ** config.power)
        if config.schedule == "cosine":
            return end + (1.0 - end) * 0.5 * (1.0 + math.cos(math.pi * done))
        if config.schedule == "step":
            return float(config.gamma ** sum(step >= milestone for milestone in config.milestones))
        return 1.0

    return factor


def _parts(names: list[str], layer_decay: float) -> dict[str, tuple[str, float]]:
    """The group of each of the encoder's parameters, and its factor on the learning rate."""
    if layer_decay == 1:
        return dict.fromkeys(names, ("encoder", 1.0))
    layers = _layers(names)
    last = max(layers, default=0)
    if last == 0:
        raise InputError(
            f"model.optim.layer_decay={layer_decay}: no blocks (layer1.0, stages_1.blocks.0, ...) in the names of the "
            f"encoder's parameters ({', '.join(names[:2])}, ...); leave it at 1"
        )
    return {
        name: (f"encoder.block{layer}" if layer else "encoder.stem", layer_decay ** (last + 1 - layer))
        for name, layer in zip(names, layers, strict=True)
    }


def _layers(names: Sequence[str]) -> list[int]:
    """The layer of each parameter: 0 before the first block, then n for the n-th block and everything after it.

    Layers of a stage before its first block (a downsampling convolution) belong to that block, as in timm.
    """
    layers: list[int] = []
    stage = block = None
    layer = 0
    for name in names:
        found = _BLOCK.search(name)
        if found and found["stage"] != stage:
            stage, block = found["stage"], found["block"]
            layer += 1
        elif found and found["block"] is not None and found["block"] != block:
            layer += block is not None
            block = found["block"]
        layers.append(layer)
    return layers


def _exempt(network: nn.Module, decay: bool | str) -> set[str]:
    """Names of the parameters without weight decay."""
    if decay == "not_by_name":
        return {name for name, _ in network.named_parameters() if "bn" in name or "bias" in name}
    return set() if decay else _norms_and_biases(network)


def _norms_and_biases(network: nn.Module) -> set[str]:
    """Names of biases and other one-dimensional parameters: norms, and ConvNeXt's layer scale."""
    return {
        f"{prefix}.{name}" if prefix else name
        for prefix, module in network.named_modules()
        for name, parameter in module.named_parameters(recurse=False)
        if name == "bias" or (parameter.ndim <= 1 and not isinstance(module, _MATRICES))
    }


def _count(parameters: Sequence[nn.Parameter]) -> tuple[str, str]:
    """The number of tensors, and of the numbers in them."""
    return f"{len(parameters)}", f"{sum(p.numel() for p in parameters):,}"
