"""The Lightning module: training, validation, test and prediction steps of a segmentation network.

The recipe is the ResNeSt authors' (PyTorch-Encoding, experiments/segmentation/train_dist.py): `optim.py`, `losses.py`.
"""

import math
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, Self, TypedDict

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor, nn

from segkit.evaluation.calibration import Calibration
from segkit.evaluation.confusion import ConfusionMatrix, true_ids
from segkit.evaluation.scores import Scores
from segkit.inference.engine import predict, predict_with_confidence
from segkit.inference.protocols import Protocol
from segkit.inference.protocols import get as get_protocol
from segkit.metadata.label_space import LabelSpace, numbered_space
from segkit.models.gradient_checkpointing import checkpoint_stages as recompute_stages
from segkit.models.inference_form import precision_of
from segkit.models.norms import freeze_stages, norms_to_eval
from segkit.models.segmentation import SegmentationModel, require_rgb
from segkit.models.weights import read_checkpoint
from segkit.ops.normalize import IMAGENET, Normalization, normalize
from segkit.training.losses import LossConfig, check_class_weights, loss_terms
from segkit.training.optim import OptimConfig, build_optimizer, groups_table, lr_factors, parameter_groups
from segkit.training.preflight import (
    batch_size,
    check_monitors,
    check_norms,
    check_settings,
    learning_rate,
    training_arguments,
)
from segkit.training.validation_loss import ValidationLoss


class Batch(TypedDict, total=False):
    """What the data modules hand over.

    image: uint8 `(B, 3, H, W)` RGB. mask: uint8 `(B, H, W)` train ids, 255 = ignore. name: B strings.
    """

    image: Tensor
    mask: Tensor
    name: list[str]


class SegmentationModule(pl.LightningModule):
    """Trains and evaluates a network. What it is made of is what a checkpoint keeps (but for `checkpoint_stages`).

    Args:
        network: `FCN`, `DeepLabV3`, or any `SegmentationModel`.
        optim: Optimiser and schedule.
        loss: Weights of the loss.
        normalization: Mean and standard deviation of the input, on the 0..1 scale.
        frozen_stages: Encoder stages that are not trained: -1 none, 0 the stem, n the stem and stages 1 to n.
        norm_eval: Whether the encoder's batch norms also use their running statistics in training.
        checkpoint_stages: Encoder stages whose activations are computed again in the backward pass instead of kept.
        label_space: Classes, colours and label table of the data; stored in the checkpoint for inference.

    Attributes:
        protocol: How `test` and `predict` run, to be set before they do; by default "whole".
        validation_protocol: How `fit` validates: single-scale, without flip, on the whole image, at its label's size.
    """

    def __init__(
        self,
        network: SegmentationModel,
        optim: OptimConfig = OptimConfig(),  # noqa: B008  (frozen)
        loss: LossConfig = LossConfig(),  # noqa: B008  (frozen)
        normalization: Normalization = IMAGENET,
        frozen_stages: int = -1,
        norm_eval: bool = False,
        checkpoint_stages: tuple[int, ...] = (),
        label_space: LabelSpace | None = None,
    ) -> None:
        super().__init__()
        require_rgb(network.config.get("init_args", {}))
        check_settings(network, loss, norm_eval)
        # channels_last is the layout in which convolutions are fastest, on the CPU (oneDNN) and on tensor cores.
        self.network = network.to(memory_format=torch.channels_last)
        self.optim, self.loss, self.normalization = optim, loss, normalization
        self.frozen_stages, self.norm_eval = frozen_stages, norm_eval
        if checkpoint_stages:
            recompute_stages(network.encoder, checkpoint_stages)
        self.protocol = self.validation_protocol = get_protocol("whole")
        self._form: list[nn.Module] = []  # at most one; in a list, for it is no part of the module's state
        self.label_space = label_space
        self.confusion: ConfusionMatrix | None = None
        self.validation_loss: ValidationLoss | None = None  # of `fit`
        self.calibration: Calibration | None = None  # set by who wants it measured
        self.scores: Scores | None = None
        self.note: str | None = None  # on the scores: of a truth that holds one class, or none
        self._group_options: list[dict[str, Any]] = []
        self._lr_factors: list[Callable[[int], float]] = []
        self.save_hyperparameters(self._plain_hyper_parameters(), logger=False)
        self.train()  # Lightning leaves the modes as they are, and those of frozen parts are not the others'

    @property
    def classes(self) -> LabelSpace:
        """The label space, or where none is known one of numbered classes."""
        return self.label_space or numbered_space(self.network.num_classes)

    def train(self, mode: bool = True) -> Self:
        """Training mode, in which frozen stages and norms stay in eval mode."""
        super().train(mode)
        if mode:
            freeze_stages(self.network, self.frozen_stages)
            if self.norm_eval:
                norms_to_eval(self.network.encoder)
        return self

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Logits of a normalised float image `(B, 3, H, W)` at the network's stride."""
        outputs: dict[str, Tensor] = self.network(x)
        return outputs

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of a batch of crops."""
        outputs = self(self._normalized(batch))
        terms = loss_terms(outputs, batch["mask"], self.loss, self.network.align_corners, self._mean_count)
        loss = torch.stack(list(terms.values())).sum()
        groups = self.optimizers(use_pl_optimizer=False).param_groups  # type: ignore[union-attr]
        # Of the encoder; with layer decay that of its last block.
        lr = max([g["lr"] for g in groups if g["name"].startswith("encoder")] or [groups[0]["lr"]])
        self.log("train/loss", loss, prog_bar=True)
        self.log("lr", lr, prog_bar=True)
        if len(terms) > 1:
            self.log_dict({f"train/loss_{name}": term for name, term in terms.items()})
        return loss

    @property
    def logged(self) -> list[str]:
        """Names of all values that `fit` logs, those of segkit's callbacks too: what a callback may monitor."""
        terms = [*self.loss.terms(), *(["aux"] if self.network.aux_head is not None else [])]
        scores = ["loss", "mIoU", "pixel_accuracy", "mean_accuracy", *(f"IoU/{n}" for n in self.classes.class_names)]
        trained = ["train/loss", *(f"train/loss_{name}" for name in terms if len(terms) > 1)]
        return [*trained, "lr", "samples/s", "data_wait", *(f"val/{name}" for name in scores)]

    def on_validation_epoch_start(self) -> None:
        """Start an empty confusion matrix, and in `fit` an empty loss."""
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
        self.scores = self.confusion.scores()
        self.note = self.classes.note_of_absence(true_ids(self.confusion.counts))
        prefix = "test" if self.trainer.state.fn == "test" else "val"
        # The matrix is already that of all processes, so each logs the same floats and none needs to synchronise.
        shown = math.isfinite(self.scores.miou)  # a bar would show "nan"
        self.log(f"{prefix}/mIoU", self.scores.miou, prog_bar=shown, rank_zero_only=False, sync_dist=False)
        self.log(f"{prefix}/pixel_accuracy", self.scores.pixel_accuracy, sync_dist=False)
        self.log(f"{prefix}/mean_accuracy", self.scores.mean_accuracy, sync_dist=False)
        if self.validation_loss is not None:
            self.log(f"{prefix}/loss", self.validation_loss.compute(), sync_dist=False)
            named = zip(self.classes.class_names, self.scores.class_iou, strict=True)
            self.log_dict({f"{prefix}/IoU/{name}": float(iou) for name, iou in named}, sync_dist=False)

    on_test_epoch_end = on_validation_epoch_end

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return train ids, uint8 `(B, H, W)`, of images at their own size."""
        return predict(self.evaluated, self._normalized(batch), self.protocol, normalization=self.normalization)

    def configure_optimizers(self) -> Any:
        """Parameter groups and a schedule by optimiser step, the learning rate scaled to the real batch."""
        total_steps = self.trainer.estimated_stepping_batches  # also sets up the train loader
        check_norms(self.network, batch_size(self.trainer))
        check_class_weights(self.loss, self.network.num_classes)
        check_monitors(self.trainer, self.logged)
        lr = learning_rate(self.trainer, self.optim, total_steps)
        groups = parameter_groups(self.network, lr, self.optim)
        rank_zero_info(groups_table(groups, self.network))
        optimizer = build_optimizer(self.optim, groups)
        self._group_options = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
        self._lr_factors = lr_factors(self.optim, int(total_steps), groups)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._lr_factors)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_start(self) -> None:
        """Train with this run's learning rate, decay and momentum, also where a checkpoint has restored its own."""
        optimizer: Any = self.optimizers(use_pl_optimizer=False)
        schedule: Any = self.lr_schedulers()
        schedule.base_lrs = [options["lr"] for options in self._group_options]
        factors = [factor(schedule.last_epoch) for factor in self._lr_factors]
        for group, options, factor in zip(optimizer.param_groups, self._group_options, factors, strict=True):
            group.update(options, initial_lr=options["lr"], lr=options["lr"] * factor)

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

    def _plain_hyper_parameters(self) -> dict[str, Any]:
        """What a checkpoint keeps: plain data only, and nothing of how one tests."""
        return {
            "network": self.network.config,
            "optim": asdict(self.optim),
            "loss": self.loss.to_dict(),
            "frozen_stages": self.frozen_stages,
            "norm_eval": self.norm_eval,
            "normalization": self.normalization.to_dict(),
            "label_space": None if self.label_space is None else self.label_space.to_dict(),
        }

    def _normalized(self, batch: Batch) -> Tensor:
        # uint8 to float, on the device; then to the type of the weights where the trainer's precision is a "true" one
        dtype = torch.float64 if self.dtype == torch.float64 else torch.float32
        image = normalize(batch["image"], self.normalization, dtype).to(self.dtype)
        return image.contiguous(memory_format=torch.channels_last)

    def _mean_count(self, count: Tensor) -> Tensor:
        """The mean over all processes: with it averaged gradients are those of one process with the joined batch."""
        if self.trainer.world_size == 1:
            return count
        total = count.clone()
        dist.all_reduce(total)
        return total / self.trainer.world_size

    @property
    def evaluated(self) -> nn.Module:
        """The network that `test`, `validate` and `predict` run: itself, or the form of it that was set."""
        return self._form[0] if self._form else self.network

    def evaluate_in(self, form: nn.Module | None) -> None:
        """Set the form of the network that `test`, `validate` and `predict` run; None sets the network itself."""
        self._form = [] if form is None else [form]

    @property
    def ran_in(self) -> str:
        """The form and type in which `test`, `validate` and `predict` run: "exact", "float32" or "bfloat16"."""
        return precision_of(self.evaluated)

    def _evaluate(self, batch: Batch, protocol: Protocol) -> Tensor:
        assert self.confusion is not None
        image, normalization = self._normalized(batch), self.normalization
        if self.calibration is None:
            labels = predict(self.evaluated, image, protocol, normalization=normalization)
        else:
            labels, sure = predict_with_confidence(self.evaluated, image, protocol, normalization=normalization)
            self.calibration.update(batch["mask"], labels, sure)
        self.confusion.update(batch["mask"], labels)
        return labels
