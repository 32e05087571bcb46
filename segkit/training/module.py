"""The Lightning module: training, validation, test and prediction steps of a segmentation network.

The recipe is the ResNeSt authors' (PyTorch-Encoding, experiments/segmentation/train_dist.py): `optim.py`, `losses.py`.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Literal, Self, TypedDict

import torch
import torch.distributed as dist
from torch import Tensor

from segkit.errors import InputError
from segkit.evaluation.calibration import Calibration
from segkit.evaluation.confusion import ConfusionMatrix, true_ids
from segkit.evaluation.conventions import convention
from segkit.evaluation.results import format_table, result_dict, without_words
from segkit.evaluation.scores import Scores
from segkit.inference.engine import predict, predict_with_confidence, resolve
from segkit.inference.protocols import Protocol
from segkit.inference.protocols import get as get_protocol
from segkit.metadata.label_space import LabelSpace, numbered_space
from segkit.models.checkpoint import weights_sha256
from segkit.models.encoders import encoder_normalization
from segkit.models.gradient_checkpointing import checkpoint_stages as recompute_stages
from segkit.models.own import around
from segkit.models.segmentation import SegmentationModel
from segkit.models.weights import read_checkpoint
from segkit.ops.normalize import Normalization
from segkit.text import percent
from segkit.training.base import NetworkModule
from segkit.training.losses import LossConfig, check_class_weights, loss_terms
from segkit.training.optim import OptimConfig
from segkit.training.preflight import (
    check_settings,
    training_arguments,
)
from segkit.training.validation_loss import ValidationLoss


class Batch(TypedDict, total=False):
    """A batch of the data modules.

    image: uint8 `(B, 3, H, W)` RGB, or the data's bands, uint8, uint16 or float32.
    mask: uint8 `(B, H, W)` train ids, 255 = ignore. name: B strings.
    """

    image: Tensor
    mask: Tensor
    name: list[str]


class SegmentationModule(NetworkModule):
    """Trains and evaluates a network. A checkpoint keeps its arguments, except for `checkpoint_stages`.

    Args:
        network: `FCN`, `DeepLabV3`, or any `SegmentationModel`.
        optim: Optimiser and schedule.
        loss: Weights of the loss.
        normalization: Mean and standard deviation of the input, on the 0..1 scale. "encoder": those that its
            published weights were trained with, repeated for channels other than RGB. "data": those of the training
            images, which the command line computes and passes to `normalize_by`.
        frozen_stages: Encoder stages that are not trained: -1 none, 0 the stem, n the stem and stages 1 to n.
        norm_eval: Whether the encoder's batch norms also use their running statistics in training.
        checkpoint_stages: Encoder stages whose activations are recomputed in the backward pass instead of kept.
        label_space: Classes, colours and label table of the data; stored in the checkpoint for inference.

    Attributes:
        protocol: How `test` and `predict` run, to be set before they do; by default "whole".
        validation_protocol: How `fit` validates: single-scale, without flip, on the whole image, at its label's size.
        temperature: Scales the probabilities (see `segkit.inference.fusion.best_of`); 1 by default.
        predicts_confidence: Whether `predict` returns the confidence, too; not by default.
        confidence: Of the images that were tested last, float32 `(B, H, W)`, while calibration is measured.
        without: Train ids of the classes that the means of `test` and `validate` leave out; none by default.
    """

    network: SegmentationModel

    def __init__(
        self,
        network: SegmentationModel,
        optim: OptimConfig = OptimConfig(),  # noqa: B008  (frozen)
        loss: LossConfig = LossConfig(),  # noqa: B008  (frozen)
        normalization: Normalization | Literal["encoder", "data"] = "encoder",
        frozen_stages: int = -1,
        norm_eval: bool = False,
        checkpoint_stages: tuple[int, ...] = (),
        label_space: LabelSpace | None = None,
    ) -> None:
        network = around(network)
        check_settings(network, loss, norm_eval)
        channels = network.config.get("init_args", {}).get("in_channels", 3)
        own = encoder_normalization(network.config.get("init_args", {}).get("encoder", ""))
        stated = normalization if isinstance(normalization, Normalization) else own
        super().__init__(network, optim, stated.adapted(channels), frozen_stages, norm_eval)
        self.loss = loss
        if checkpoint_stages:
            recompute_stages(network.encoder, checkpoint_stages)
        self.protocol = self.validation_protocol = get_protocol("whole")
        self.label_space = label_space
        if label_space is not None and label_space.num_classes != network.num_classes:
            raise InputError(
                f"the data has {label_space.num_classes} classes, but the network {network.config['class_path']} makes "
                f"logits of {network.num_classes}: give its constructor num_classes, which is filled in from the data"
            )
        self.confusion: ConfusionMatrix | None = None
        self.validation_loss: ValidationLoss | None = None  # in `fit` only
        self.calibration: Calibration | None = None  # set by `CalibrationReport`
        self.temperature, self.predicts_confidence = 1.0, False
        self.confidence: Tensor | None = None
        self.scores: Scores | None = None
        self.without: tuple[int, ...] = ()
        self.note: str | None = None  # a remark on the scores if the truth has one class or none
        self.save_hyperparameters(self._plain_hyper_parameters(), logger=False)
        self.train()  # Lightning does not set the modes, and those of frozen parts differ

    def normalize_by(self, normalization: Normalization) -> None:
        """Take another normalization, which a checkpoint then keeps."""
        self.normalization = normalization
        self.hparams["normalization"] = normalization.to_dict()

    @property
    def classes(self) -> LabelSpace:
        """The label space, or if it is unknown, one of numbered classes."""
        return self.label_space or numbered_space(self.network.num_classes)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Logits of a normalised float image `(B, 3, H, W)` at the network's stride."""
        outputs: dict[str, Tensor] = self.network(x)
        return outputs

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of a batch of crops."""
        outputs = self(self.normalized(batch))
        terms = loss_terms(outputs, batch["mask"], self.loss, self.network.align_corners, self._mean_count)
        loss = torch.stack(list(terms.values())).sum()
        self.log_step(loss)
        if len(terms) > 1:
            self.log_dict({f"train/loss_{name}": term for name, term in terms.items()})
        return loss

    @property
    def logged(self) -> list[str]:
        """See base class; adds the terms of the loss and the scores of a validation."""
        terms = [*self.loss.terms(), *(["aux"] if self.network.aux_head is not None else [])]
        scores = ["loss", "mIoU", "pixel_accuracy", "mean_accuracy", *(f"IoU/{n}" for n in self.classes.class_names)]
        trained = [f"train/loss_{name}" for name in terms if len(terms) > 1]
        return [*super().logged, *trained, *(f"val/{name}" for name in scores)]

    def on_validation_epoch_start(self) -> None:
        """Start with an empty confusion matrix and, in `fit`, an empty loss."""
        self.confusion = ConfusionMatrix(self.network.num_classes, self.device)
        fitting = self.trainer.state.fn == "fit"
        self.validation_loss = ValidationLoss(self.loss, self.device) if fitting else None

    def validation_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Add whole images, at their label's own size, to the confusion matrix; return train ids `(B, H, W)`."""
        if self.validation_loss is None:
            return self._evaluate(batch, self.protocol)
        # One view an image, so that the network runs once; its logits are kept at its own stride.
        seen: list[Tensor] = []
        with self.network.register_forward_hook(lambda module, inputs, outputs: seen.append(outputs["out"])):
            labels = self._evaluate(batch, self.validation_protocol)
        self.validation_loss.update(torch.cat(seen), batch["mask"], self.network.align_corners)
        return labels

    on_test_epoch_start = on_validation_epoch_start

    def test_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Add images, predicted by the test protocol, to the confusion matrix; return train ids `(B, H, W)`."""
        return self._evaluate(batch, self.protocol)

    def on_validation_epoch_end(self) -> None:
        """Sum the matrices of all processes once, and log the scores."""
        assert self.confusion is not None
        self.confusion.all_reduce()
        self.scores = self.confusion.scores(without=self.without)
        self.note = self.classes.note_of_absence(true_ids(self.confusion.counts))
        prefix = "test" if self.trainer.state.fn == "test" else "val"
        # The matrix is already summed over all processes, so each logs the same floats without synchronising.
        shown = math.isfinite(self.scores.miou)  # a bar would show "nan"
        self.log(f"{prefix}/mIoU", self.scores.miou, prog_bar=shown, rank_zero_only=False, sync_dist=False)
        self.log(f"{prefix}/pixel_accuracy", self.scores.pixel_accuracy, sync_dist=False)
        self.log(f"{prefix}/mean_accuracy", self.scores.mean_accuracy, sync_dist=False)
        if self.validation_loss is not None:
            self.log(f"{prefix}/loss", self.validation_loss.compute(), sync_dist=False)
            named = zip(self.classes.class_names, self.scores.class_iou, strict=True)
            self.log_dict({f"{prefix}/IoU/{name}": float(iou) for name, iou in named}, sync_dist=False)

    on_test_epoch_end = on_validation_epoch_end

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor | tuple[Tensor, Tensor]:
        """Return train ids, uint8 `(B, H, W)`, of images at their own size, and if wanted their confidence."""
        if self.predicts_confidence:
            return self._sure(batch, self.protocol)
        return predict(self.evaluated, self.normalized(batch), self.protocol, normalization=self.normalization)

    def configure_optimizers(self) -> Any:
        """Check the class weights, then do as the base class does."""
        check_class_weights(self.loss, self.network.num_classes)
        return super().configure_optimizers()

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: Any, *args: Any, **kwargs: Any) -> Self:
        """Rebuild a module, network and weights, from a checkpoint; keyword arguments replace hyper-parameters.

        Raises:
            InputError: The file is not a segkit checkpoint.
        """
        checkpoint = read_checkpoint(checkpoint_path)
        space = checkpoint.label_space
        stored: dict[str, Any] = {
            **training_arguments(checkpoint.hyper_parameters, str(checkpoint_path)),
            "normalization": Normalization.from_dict(checkpoint.normalization),
            "label_space": None if space is None else LabelSpace.from_dict(space),
        }
        return cls(network=checkpoint.build_network(), **(stored | kwargs))

    @property
    def num_scored(self) -> int:
        """Images that were scored so far."""
        return 0 if self.confusion is None else self.confusion.num_images

    @property
    def protocol_name(self) -> str:
        """Of the protocol by which images are scored."""
        return self.protocol.name

    def running(self, metric: str) -> str:
        """The mIoU in percent so far."""
        assert self.confusion is not None
        heading = f"mIoU{without_words(self.classes.class_names, self.without)}"
        return f"{heading} {percent(self.confusion.scores(metric, self.without).miou)}"

    def result(self, metric: str, about: Mapping[str, Any]) -> dict[str, Any]:
        """All scores as plain data; see `result_dict`."""
        assert self.confusion is not None
        protocol = resolve(self.protocol, self.network).to_dict()  # with the network's settings filled in
        weights, names = {"sha256": weights_sha256(self.network.state_dict())}, self.classes.class_names
        about = {"weights": weights, "note": self.note, "without": self.without, **about}
        result = result_dict(self.confusion, names, protocol, metric=metric, **dict(about))
        result["precision"] = self.ran_in
        if self.calibration is not None:
            scaled = {} if self.temperature == 1 else {"temperature": self.temperature}
            result["calibration"] = self.calibration.result(self.without).to_dict() | scaled
        return result

    def report(self, metric: str) -> str:
        """The table of all classes, and the rule of the metric."""
        assert self.confusion is not None
        note = f"note: in the truth {self.note}\n" if self.note else ""
        rule = convention(metric)
        table = format_table(self.confusion.scores(metric, self.without), self.classes.class_names, rule.heading)
        return f"{table}\n{note}metric {metric}: {rule.rule}"

    @property
    def loss_config(self) -> dict[str, Any]:
        """All settings of the loss as plain data."""
        return self.loss.to_dict()

    def _plain_hyper_parameters(self) -> dict[str, Any]:
        """The hyper-parameters that a checkpoint keeps: plain data only, without the test protocol."""
        return {
            "network": self.network.config,
            "optim": asdict(self.optim),
            "loss": self.loss.to_dict(),
            "frozen_stages": self.frozen_stages,
            "norm_eval": self.norm_eval,
            "normalization": self.normalization.to_dict(),
            "label_space": None if self.label_space is None else self.label_space.to_dict(),
        }

    def _mean_count(self, count: Tensor) -> Tensor:
        """The mean over all processes, which makes averaged gradients those of one process with the joined batch."""
        if self.trainer.world_size == 1:
            return count
        total = count.clone()
        dist.all_reduce(total)
        return total / self.trainer.world_size

    def _evaluate(self, batch: Batch, protocol: Protocol) -> Tensor:
        assert self.confusion is not None
        if self.calibration is None:
            image = self.normalized(batch)
            labels = predict(self.evaluated, image, protocol, normalization=self.normalization)
        else:
            labels, self.confidence = self._sure(batch, protocol)
            self.calibration.update(batch["mask"], labels, self.confidence)
        self.confusion.update(batch["mask"], labels)
        return labels

    def _sure(self, batch: Batch, protocol: Protocol) -> tuple[Tensor, Tensor]:
        """Train ids and confidence of images."""
        how = (None, self.normalization, None, self.temperature)
        return predict_with_confidence(self.evaluated, self.normalized(batch), protocol, *how)
