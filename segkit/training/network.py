"""Lightning callbacks and plugins for the network: its first weights, the form that is evaluated, SyncBN."""

from pathlib import Path

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.plugins import layer_sync
from pytorch_lightning.utilities import rank_zero_info
from torch import nn

from segkit.models.authors import PREFIX, authors_weights_path, class_names, encoder_name
from segkit.models.finetune import load_matching
from segkit.models.inference_form import Precision, convolution_dtype, inference_form
from segkit.models.norms import FrozenBatchNorm2d
from segkit.models.pretrained import imagenet_repository, imagenet_weights_path
from segkit.models.weights import load_encoder_weights
from segkit.ops.sync_batch_norm import SYNCHRONISED, to_batch_norm, to_sync_batch_norm
from segkit.ops.torch_private import BatchNormBase
from segkit.training.base import NetworkModule
from segkit.training.module import SegmentationModule


class InitialWeights(Callback):
    """Loads the weights with which `fit` begins; other commands read nothing.

    Args:
        encoder_weights: A file with the encoder's weights, or "imagenet" for those that timm publishes, or "authors"
            for the authors' own, which are downloaded once.
        init_from: A whole network of any toolkit, or one of the authors' by name (`authors/RECIPE`): tensors that fit
            are taken, and from a classifier with other classes the rows of classes with the same name.
    """

    def __init__(self, encoder_weights: str | None = None, init_from: str | None = None) -> None:
        self.encoder_weights, self.init_from = encoder_weights, init_from

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Load the weights and report them."""
        assert isinstance(pl_module, NetworkModule)
        if stage != "fit":
            return
        network, path = pl_module.network, self.encoder_weights
        if path is not None:
            if path == "imagenet":
                path = str(imagenet_weights_path(imagenet_repository(network)))
            elif path == "authors":
                path = str(authors_weights_path(encoder_name(network)))
            left_out = load_encoder_weights(network.encoder, path, rank_zero_info)
            few = f"{len(left_out)} tensors behind the last feature left out ({', '.join(left_out[:3])}, ...)"
            rank_zero_info(f"encoder weights: {path}{f'; {few}' if left_out else ''}")
        if self.init_from is not None:
            assert isinstance(pl_module, SegmentationModule)
            names = None if pl_module.label_space is None else pl_module.label_space.class_names
            begin = self.init_from
            theirs: tuple[str, ...] = ()
            if begin.startswith(PREFIX) and not Path(begin).exists():
                theirs = class_names(begin.removeprefix(PREFIX))
                begin = str(authors_weights_path(begin.removeprefix(PREFIX)))
            rank_zero_info(str(load_matching(network, begin, names, theirs)))


class EvaluationForm(Callback):
    """Runs `test`, `validate` and `predict` in the network's inference form, which is faster and rounds differently.

    Args:
        precision: "exact" leaves the network as it was trained; "float32", "bfloat16" or "auto": see
            `segkit.models.inference_form`.
    """

    def __init__(self, precision: Precision = "exact") -> None:
        self.precision: Precision = precision

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Build the form, but not within `fit`, where weights change."""
        assert isinstance(pl_module, NetworkModule)
        dtype = convolution_dtype(self.precision, pl_module.device)
        if dtype is not None and trainer.state.fn != "fit":
            pl_module.evaluate_in(inference_form(pl_module.network, dtype))

    on_validation_start = on_predict_start = on_test_start

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Release the memory of the form."""
        assert isinstance(pl_module, NetworkModule)
        pl_module.evaluate_in(None)


class SyncBatchNormPlugin(layer_sync.TorchSyncBatchNorm):
    """Implements `trainer.sync_batchnorm: true`: replaces each batch norm by `segkit.ops.sync_batch_norm`.

    The names in a state dict do not change, and after training the network has its own norms again. Norms that only use
    their running statistics have nothing to synchronise and stay.
    """

    def __init__(self) -> None:
        self._originals: list[tuple[nn.Module, str, BatchNormBase]] = []

    def apply(self, model: nn.Module) -> nn.Module:
        """Replace the norms by synchronised ones, in place."""
        assert isinstance(model, pl.LightningModule)
        device = model.trainer.strategy.root_device.type
        for parent in list(model.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, BatchNormBase) and not isinstance(child, (*SYNCHRONISED, FrozenBatchNorm2d)):
                    setattr(parent, name, to_sync_batch_norm(child, device))
                    self._originals.append((parent, name, child))
        return model

    def revert(self, model: nn.Module) -> nn.Module:
        """Restore the network's own norms, with what they have learnt."""
        for parent, name, original in self._originals:
            setattr(parent, name, to_batch_norm(getattr(parent, name), original))
        self._originals = []
        return model
