"""Less memory for training: a stage's activations are computed again in the backward pass (Chen et al. 2016).

Only the input of each block is kept. What is computed is what would have been without, bit for bit: batch norms count
each batch once, and random masks are drawn again as they were.
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
    """A stage whose blocks keep their inputs only, in training with gradients; otherwise an `nn.Sequential`.

    `(B, C, h, w)` to the stage's feature, with parameters under the names that they have in an `nn.Sequential`.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return the stage's feature."""
        x = input
        for block in self:
            x = _checkpointed(block, x) if self.training and torch.is_grad_enabled() else block(x)
        return x


def checkpoint_stages(encoder: nn.Module, stages: Sequence[int]) -> None:
    """Make these stages of an encoder compute their activations again in the backward pass, in place.

    Args:
        encoder: A ResNeSt or one of timm's ResNets, stage by stage; of timm's other encoders those without batch norms
            that offer it themselves, and then all four stages.
        stages: Of 1 to 4; all others keep their activations.

    Raises:
        InputError: Another stage, or an encoder that cannot.
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
    """timm's own way, which would count each batch twice in running statistics."""
    model: Any = getattr(getattr(encoder, "encoder", None), "model", None)
    offered = hasattr(model, "set_grad_checkpointing")
    if stages and (not offered or any(isinstance(m, BATCH_NORMS) for m in model.modules())):
        raise InputError(
            "checkpointed stages: this encoder cannot compute its activations again (no ResNeSt or ResNet, and it has "
            "batch norms or no such setting); use a ResNeSt or leave them out"
        )
    if stages and set(stages) != set(STAGES):
        raise InputError(f"checkpointed stages {list(stages)}: of this encoder it can only be all: [1, 2, 3, 4]")
    if offered:
        model.set_grad_checkpointing(bool(stages))


def _checkpointed(block: nn.Module, x: Tensor) -> Tensor:
    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _statistics_kept(block)

    output: Tensor = checkpoint(block, x, use_reentrant=False, preserve_rng_state=True, context_fn=contexts)
    return output


@contextmanager
def _statistics_kept(block: nn.Module) -> Iterator[None]:
    """Give batch norms that train copies of their running statistics: they have counted this batch already.

    Without statistics to update they would save fewer tensors than before, which checkpointing refuses.
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
