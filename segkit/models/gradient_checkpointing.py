"""Saves training memory by recomputing a stage's activations in the backward pass (Chen et al. 2016).

Only the input of each block is kept. The results are bit-identical to training without checkpointing: batch norms
count each batch once, and random masks are drawn again as they were.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from segkit.errors import InputError
from segkit.models.norms import BATCH_NORMS, find_trunk

STAGES = (1, 2, 3, 4)


class CheckpointedStage(nn.Sequential):
    """A stage whose blocks keep only their inputs while training with gradients; otherwise an `nn.Sequential`.

    It maps `(B, C, h, w)` to the stage's feature; its parameters are named as in an `nn.Sequential`.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return the stage's feature for `(B, C, h, w)`."""
        x = input
        for block in self:
            x = _checkpointed(block, x) if self.training and torch.is_grad_enabled() else block(x)
        return x


def checkpoint_stages(encoder: nn.Module, stages: Sequence[int]) -> None:
    """Make these stages of an encoder recompute their activations in the backward pass, in place.

    Args:
        encoder: A ResNeSt or a timm ResNet, stage by stage; or another timm encoder that supports checkpointing itself
            and has no batch norms, all four stages at once.
        stages: Numbers from 1 to 4; all other stages keep their activations.

    Raises:
        InputError: A stage is out of range, or the encoder cannot be checkpointed.
    """
    wrong = [stage for stage in stages if stage not in STAGES]
    if wrong:
        raise InputError(f"checkpointed stages {list(stages)}: {wrong[0]} is no stage; allowed are 1, 2, 3 and 4")
    trunk = find_trunk(encoder)
    if trunk is None:
        _checkpoint_whole(encoder, stages)
        return
    for stage in STAGES:
        blocks = trunk.get_submodule(f"layer{stage}")
        kind = CheckpointedStage if stage in stages else nn.Sequential
        replacement = kind(OrderedDict(blocks.named_children()))
        replacement.training = blocks.training  # train() would reach the blocks, whose norms may be in eval mode
        trunk.set_submodule(f"layer{stage}", replacement)


def _checkpoint_whole(encoder: nn.Module, stages: Sequence[int]) -> None:
    """Use timm's own checkpointing, which would count each batch twice in running statistics."""
    model: Any = getattr(getattr(encoder, "encoder", None), "model", None)
    offered = hasattr(model, "set_grad_checkpointing")
    if stages and (not offered or any(isinstance(m, BATCH_NORMS) for m in model.modules())):
        raise InputError(
            "checkpointed stages: this encoder cannot recompute its activations (it is no ResNeSt or ResNet, and has "
            "batch norms or no such setting); use a ResNeSt or leave them out"
        )
    if stages and set(stages) != set(STAGES):
        raise InputError(f"checkpointed stages {list(stages)}: this encoder can only checkpoint all: [1, 2, 3, 4]")
    if offered:
        model.set_grad_checkpointing(bool(stages))


def _checkpointed(block: nn.Module, x: Tensor) -> Tensor:
    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _statistics_kept(block)

    output: Tensor = checkpoint(block, x, use_reentrant=False, preserve_rng_state=True, context_fn=contexts)
    return output


@contextmanager
def _statistics_kept(block: nn.Module) -> Iterator[None]:
    """Let training batch norms update copies of their running statistics, as they have already counted this batch.

    Without statistics to update, they would save fewer tensors than before, which checkpointing refuses.
    """
    norms = [m for m in block.modules() if isinstance(m, BATCH_NORMS) and m.training]
    kept = [(norm, name, buffer) for norm in norms for name, buffer in norm.named_buffers(recurse=False)]
    for norm, name, buffer in kept:
        setattr(norm, name, buffer.clone())
    try:
        yield
    finally:
        for norm, name, buffer in kept:
            setattr(norm, name, buffer)
