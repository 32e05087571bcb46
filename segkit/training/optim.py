"""Optimiser and schedule: the ResNeSt authors' recipe by default, AdamW and cosine by option.

Source: zhanghang1989/PyTorch-Encoding, experiments/segmentation/train_dist.py and encoding/utils/lr_scheduler.py.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from segkit.errors import InputError


@dataclass(frozen=True)
class OptimConfig:
    """How a network is optimised.

    Attributes:
        name: "sgd" or "adamw".
        lr: Learning rate of the encoder for `reference_batch` pictures per step; scaled linearly to the real number.
        reference_batch: Total batch that `lr` was meant for; 0 takes `lr` as it is.
        head_lr_mult: The head's and auxiliary head's learning rate in units of the encoder's.
        momentum: Of SGD.
        weight_decay: On every parameter, norms and biases included, as the authors have it.
        schedule: "poly", "cosine" or "constant", by optimiser step, down to zero.
        power: Of the polynomial.
        warmup_steps: Steps of linear warm-up before the schedule.
    """

    name: Literal["sgd", "adamw"] = "sgd"
    lr: float = 0.01
    reference_batch: int = 16
    head_lr_mult: float = 10.0
    momentum: float = 0.9
    weight_decay: float = 1e-4
    schedule: Literal["poly", "cosine", "constant"] = "poly"
    power: float = 0.9
    warmup_steps: int = 0

    def __post_init__(self) -> None:
        """Refuse numbers that cannot train."""
        for name in ("lr", "head_lr_mult"):
            if not getattr(self, name) > 0:
                raise InputError(f"model.optim.{name}={getattr(self, name)} must be positive")
        for name in ("weight_decay", "reference_batch", "warmup_steps", "momentum"):
            if getattr(self, name) < 0:
                raise InputError(f"model.optim.{name}={getattr(self, name)} must not be negative")


def scaled_lr(config: OptimConfig, total_batch: int) -> float:
    """The encoder's learning rate for `total_batch` pictures per optimiser step."""
    return config.lr * total_batch / config.reference_batch if config.reference_batch else config.lr


def parameter_groups(network: nn.Module, lr: float, head_lr_mult: float) -> list[dict[str, Any]]:
    """Two groups: the encoder at `lr`; everything else at `lr * head_lr_mult`."""
    encoder: list[nn.Parameter] = []
    heads: list[nn.Parameter] = []
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            (encoder if name.startswith("encoder.") else heads).append(parameter)
    groups = [
        {"params": encoder, "lr": lr, "name": "encoder"},
        {"params": heads, "lr": lr * head_lr_mult, "name": "head"},
    ]
    return [group for group in groups if group["params"]]


def build_optimizer(config: OptimConfig, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """SGD with momentum, or AdamW, over `groups`."""
    if config.name == "adamw":
        return torch.optim.AdamW(groups, weight_decay=config.weight_decay)
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay)


def lr_factor(config: OptimConfig, total_steps: int) -> Callable[[int], float]:
    """The learning rate at an optimiser step in units of the initial one: a pure function of the step.

    Poly: `(1 - t/T)^power`; cosine: `(1 + cos(pi t/T)) / 2`, over the steps after the warm-up.
    """

    def factor(step: int) -> float:
        if step < config.warmup_steps:
            return (step + 1) / (config.warmup_steps + 1)
        span = max(1, total_steps - config.warmup_steps)
        done = min(1.0, (step - config.warmup_steps) / span)
        if config.schedule == "poly":
            return float((1.0 - done) ** config.power)
        if config.schedule == "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * done))
        return 1.0

    return factor
