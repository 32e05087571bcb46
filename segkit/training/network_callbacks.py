"""Callbacks about the network itself: the weights that a training begins with, and the form that is evaluated."""

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.utilities import rank_zero_info

from segkit.models.finetune import load_matching
from segkit.models.inference_form import Precision, convolution_dtype, inference_form
from segkit.models.pretrained import imagenet_repository, imagenet_weights_path
from segkit.models.weights import load_encoder_weights
from segkit.training.module import SegmentationModule


class InitialWeights(Callback):
    """Loads the weights that `fit` begins with; other commands read nothing.

    Args:
        encoder_weights: A file with the encoder's weights, or "imagenet" for those that timm publishes, which are
            downloaded once.
        init_from: A whole network of any toolkit: what fits is taken, and of a classifier of other classes the rows
            whose class has the same name.
    """

    def __init__(self, encoder_weights: str | None = None, init_from: str | None = None) -> None:
        self.encoder_weights, self.init_from = encoder_weights, init_from

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Load them, and say so."""
        assert isinstance(pl_module, SegmentationModule)
        if stage != "fit":
            return
        network, path = pl_module.network, self.encoder_weights
        if path is not None:
            path = str(imagenet_weights_path(imagenet_repository(network))) if path == "imagenet" else path
            left_out = load_encoder_weights(network.encoder, path)
            few = f"{len(left_out)} tensors behind the last feature left out ({', '.join(left_out[:3])}, ...)"
            rank_zero_info(f"encoder weights: {path}{f'; {few}' if left_out else ''}")
        if self.init_from is not None:
            names = None if pl_module.label_space is None else pl_module.label_space.class_names
            rank_zero_info(str(load_matching(network, self.init_from, names)))


class EvaluationForm(Callback):
    """Runs `test`, `validate` and `predict` in the network's inference form, which is faster and rounds differently.

    Args:
        precision: "exact" leaves the network as it was trained; "float32", "bfloat16" or "auto": see
            `segkit.models.inference_form`.
    """

    def __init__(self, precision: Precision = "exact") -> None:
        self.precision: Precision = precision

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Make it, but not within `fit`, whose weights change."""
        assert isinstance(pl_module, SegmentationModule)
        dtype = convolution_dtype(self.precision, pl_module.device)
        if dtype is not None and trainer.state.fn != "fit":
            pl_module.evaluate_in(inference_form(pl_module.network, dtype))

    on_validation_start = on_predict_start = on_test_start

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Free its memory."""
        assert isinstance(pl_module, SegmentationModule)
        pl_module.evaluate_in(None)
