"""SyncBN for Lightning's strategies: all batch norms are synchronised, those on 1x1 maps too, on GPUs and the CPU."""

import pytorch_lightning as pl
from pytorch_lightning.plugins import layer_sync
from torch import nn

from segkit.models.norms import FrozenBatchNorm2d
from segkit.ops.sync_batch_norm import SYNCHRONISED, to_batch_norm, to_sync_batch_norm
from segkit.ops.torch_private import BatchNormBase


class SyncBatchNormPlugin(layer_sync.TorchSyncBatchNorm):
    """What `trainer.sync_batchnorm: true` stands for: `segkit.ops.sync_batch_norm` in the place of each batch norm.

    The names in a state dict do not change, and after training the network has its own norms again. Norms that use
    their running statistics only have nothing to synchronise and stay.
    """

    def __init__(self) -> None:
        self._originals: list[tuple[nn.Module, str, BatchNormBase]] = []

    def apply(self, model: nn.Module) -> nn.Module:
        """Put the synchronised norms in, in place."""
        assert isinstance(model, pl.LightningModule)
        device = model.trainer.strategy.root_device.type
        for parent in list(model.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, BatchNormBase) and not isinstance(child, (*SYNCHRONISED, FrozenBatchNorm2d)):
                    setattr(parent, name, to_sync_batch_norm(child, device))
                    self._originals.append((parent, name, child))
        return model

    def revert(self, model: nn.Module) -> nn.Module:
        """Put the network's own norms back, with what they have learnt."""
        for parent, name, original in self._originals:
            setattr(parent, name, to_batch_norm(getattr(parent, name), original))
        self._originals = []
        return model
