"""What the Lightning modules of all tasks share: a network, its optimiser and schedule, and its frozen parts."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Self

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor, nn

from segkit.models.inference_form import precision_of
from segkit.models.norms import freeze_stages, norms_to_eval
from segkit.ops.normalize import Normalization, normalize
from segkit.training.optim import OptimConfig, build_optimizer, groups_table, lr_factors, parameter_groups
from segkit.training.preflight import batch_size, check_monitors, check_norms, learning_rate


class NetworkModule(pl.LightningModule):
    """Trains a network; each task is a subclass with its steps, and with `logged` if they log more.

    Args:
        network: A network with an attribute `encoder`.
        optim: Optimiser and schedule.
        normalization: Mean and standard deviation of the input, on the 0..1 scale.
        frozen_stages: Encoder stages that are not trained: -1 none, 0 the stem, n the stem and stages 1 to n.
        norm_eval: Whether the encoder's batch norms also use their running statistics in training.
    """

    network: Any  # subclasses narrow the type
    score: ClassVar[str] = "val/mIoU"  # decides on the best checkpoint

    def __init__(
        self,
        network: nn.Module,
        optim: OptimConfig,
        normalization: Normalization,
        frozen_stages: int = -1,
        norm_eval: bool = False,
    ) -> None:
        super().__init__()
        # channels_last is the layout in which convolutions are fastest, on the CPU (oneDNN) and on tensor cores.
        self.network = network.to(memory_format=torch.channels_last)
        self.optim, self.normalization = optim, normalization
        self.frozen_stages, self.norm_eval = frozen_stages, norm_eval
        self._form: list[nn.Module] = []  # at most one; a list keeps it out of the module's state
        self._group_options: list[dict[str, Any]] = []
        self._lr_factors: list[Callable[[int], float]] = []

    @property
    def logged(self) -> list[str]:
        """Names of all values that `fit` logs, including those of segkit's callbacks, which callbacks may monitor."""
        return ["train/loss", "lr", "samples/s", "data_wait"]

    def train(self, mode: bool = True) -> Self:
        """Training mode, in which frozen stages and norms stay in eval mode."""
        super().train(mode)
        if mode:
            freeze_stages(self.network, self.frozen_stages)
            if self.norm_eval:
                norms_to_eval(self.network.encoder)
        return self

    def configure_optimizers(self) -> Any:
        """Parameter groups and a schedule by optimiser step, the learning rate scaled to the real batch."""
        total_steps = self.trainer.estimated_stepping_batches  # also sets up the train loader
        check_norms(self.network, batch_size(self.trainer))
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
        """Use this run's learning rate, decay and momentum, even if a checkpoint has restored its own."""
        optimizer: Any = self.optimizers(use_pl_optimizer=False)
        schedule: Any = self.lr_schedulers()
        schedule.base_lrs = [options["lr"] for options in self._group_options]
        factors = [factor(schedule.last_epoch) for factor in self._lr_factors]
        for group, options, factor in zip(optimizer.param_groups, self._group_options, factors, strict=True):
            group.update(options, initial_lr=options["lr"], lr=options["lr"] * factor)

    def log_step(self, loss: Tensor) -> None:
        """Log the loss of a training step, and the learning rate."""
        groups = self.optimizers(use_pl_optimizer=False).param_groups  # type: ignore[union-attr]
        # The encoder's rate; with layer decay, that of its last block.
        lr = max([g["lr"] for g in groups if g["name"].startswith("encoder")] or [groups[0]["lr"]])
        self.log("train/loss", loss, prog_bar=True)
        self.log("lr", lr, prog_bar=True)

    @property
    def evaluated(self) -> nn.Module:
        """The network that `test`, `validate` and `predict` run: the network itself, or the form set in its place."""
        network: nn.Module = self._form[0] if self._form else self.network
        return network

    def evaluate_in(self, form: nn.Module | None) -> None:
        """Set the form of the network that `test`, `validate` and `predict` run; None sets the network itself."""
        self._form = [] if form is None else [form]

    @property
    def ran_in(self) -> str:
        """The precision in which `test`, `validate` and `predict` run: "exact", "float32" or "bfloat16"."""
        return precision_of(self.evaluated)

    @property
    def num_scored(self) -> int:
        """Images that were scored so far."""
        raise NotImplementedError

    @property
    def protocol_name(self) -> str:
        """The name of the protocol by which images are scored."""
        raise NotImplementedError

    def running(self, metric: str) -> str:
        """The score of the images seen so far, for a progress bar."""
        raise NotImplementedError

    def result(self, metric: str, about: Mapping[str, Any]) -> dict[str, Any]:
        """The scores as plain data, for the result file.

        Args:
            metric: The convention of the scores.
            about: "dataset", plain data that names data set and split, and "partial", whether images are missing.
        """
        raise NotImplementedError

    def report(self, metric: str) -> str:
        """The scores as a text."""
        raise NotImplementedError

    @property
    def loss_config(self) -> dict[str, Any]:
        """The settings of the loss that repeating a step needs, as plain data."""
        raise NotImplementedError

    def normalized(self, batch: Mapping[str, Any]) -> Tensor:
        """Normalise a batch's images on the device, uint8 to float, or to the weights' type in "true" precision."""
        dtype = torch.float64 if self.dtype == torch.float64 else torch.float32
        image = normalize(batch["image"], self.normalization, dtype).to(self.dtype)
        return image.contiguous(memory_format=torch.channels_last)
