"""The Lightning module of classification: how encoders are pretrained on ImageNet, and scored.

The recipe is the ResNeSt authors' (zhanghang1989/ResNeSt, scripts/torch/train.py, resnest/torch/loss.py): mixup
together with label smoothing, and AlexNet's PCA lighting, here on the device, as a batch stays uint8 until then.
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from segkit.errors import InputError
from segkit.evaluation.topk import Accuracy, TopK
from segkit.models.checkpoint import weights_sha256
from segkit.models.classifier import Classifier
from segkit.ops.normalize import IMAGENET, Normalization
from segkit.training.base import NetworkModule
from segkit.training.optim import OptimConfig

# Principal components of ImageNet's colours on the 0..1 scale, a column each, and their eigenvalues
# (AlexNet, Krizhevsky et al. 2012; the numbers are those of Facebook's fb.resnet.torch).
_COMPONENTS = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))
_EIGENVALUES = (0.2175, 0.0188, 0.0045)


class ClassificationModule(NetworkModule):
    """Trains and evaluates a classifier; batches are those of `ImageNetDataModule`.

    Args:
        network: The classifier.
        optim: Optimiser and schedule.
        mixup: Alpha of mixup (Zhang et al. 2018): each batch is blended with itself in another order; 0: none.
        label_smoothing: Share of the truth that is spread over all classes.
        lighting: Standard deviation of the PCA lighting; 0: none.
        normalization: Mean and standard deviation of the input, on the 0..1 scale.
        class_names: The data's class names, stored in the checkpoint.

    Attributes:
        protocol: How the test images were cropped, as plain data, for the result file.

    Raises:
        InputError: A number is out of range.
    """

    score: ClassVar[str] = "val/top1"

    def __init__(
        self,
        network: Classifier,
        optim: OptimConfig = OptimConfig(),  # noqa: B008  (frozen)
        mixup: float = 0.0,
        label_smoothing: float = 0.0,
        lighting: float = 0.0,
        normalization: Normalization = IMAGENET,
        class_names: tuple[str, ...] | None = None,
    ) -> None:
        if mixup < 0 or lighting < 0 or not 0 <= label_smoothing < 1:
            raise InputError(
                f"model: mixup is {mixup}, lighting {lighting}, label_smoothing {label_smoothing}; allowed are 0 or "
                "more, and for the last a share below 1"
            )
        super().__init__(network, optim, normalization)
        self.mixup, self.label_smoothing, self.lighting = mixup, label_smoothing, lighting
        self.class_names = class_names
        self.protocol: Mapping[str, Any] = {}
        self.counts = TopK()
        self.accuracy: Accuracy | None = None
        self._loss = torch.zeros(())
        self.save_hyperparameters(self._plain_hyper_parameters(), logger=False)

    @property
    def logged(self) -> list[str]:
        """See base class; adds the scores of a validation."""
        return [*super().logged, "val/loss", "val/top1", "val/top5"]

    def forward(self, x: Tensor) -> Tensor:
        """Logits `(B, K)` of a normalised float image `(B, 3, H, W)`."""
        logits: Tensor = self.network(x)
        return logits

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Return the loss of a batch of crops."""
        x, label = self.normalized(batch), batch["label"]
        if self.lighting:
            x = x + light(len(x), self.lighting, self.normalization).to(x)
        other, share = label, 1.0
        if self.mixup:
            share = float(torch.distributions.Beta(self.mixup, self.mixup).sample())
            order = torch.randperm(len(label)).to(label.device)
            x, other = share * x + (1 - share) * x[order], label[order]
        loss = mixed_loss(self(x), label, other, share, self.label_smoothing)
        self.log_step(loss)
        return loss

    def on_validation_epoch_start(self) -> None:
        """Start an empty count for the validation."""
        self.counts = TopK(self.device)
        self._loss = torch.zeros((), device=self.device)

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Count a batch of centre crops."""
        logits = self.evaluated(self.normalized(batch)).float()
        self.counts.update(logits, batch["label"])
        self._loss += F.cross_entropy(logits, batch["label"], reduction="sum")

    on_test_epoch_start, test_step = on_validation_epoch_start, validation_step

    def on_validation_epoch_end(self) -> None:
        """Sum over all processes once, and log the scores."""
        self.counts.all_reduce()
        self.accuracy = self.counts.compute()
        loss: Any = self.trainer.strategy.reduce(self._loss, reduce_op="sum")
        prefix = "test" if self.trainer.state.fn == "test" else "val"
        for name, interval in (("top1", self.accuracy.top1), ("top5", self.accuracy.top5)):
            self.log(f"{prefix}/{name}", interval.value, prog_bar=name == "top1", sync_dist=False)
        self.log(f"{prefix}/loss", loss / self.accuracy.images, sync_dist=False)

    on_test_epoch_end = on_validation_epoch_end

    @property
    def num_scored(self) -> int:
        """Images that were scored so far."""
        return self.counts.compute().images

    @property
    def protocol_name(self) -> str:
        """The name of the centre crop, and its size."""
        return f"{self.protocol.get('name')}@{self.protocol.get('size')}"

    def running(self, metric: str) -> str:
        """The score of the images so far."""
        return f"top-1 {100 * self.counts.compute().top1.value:.2f}"

    def result(self, metric: str, about: Mapping[str, Any]) -> dict[str, Any]:
        """The result of `test` or `validate` as plain data; `about` has the data set and whether it is partial."""
        weights = {"sha256": weights_sha256(self.network.state_dict())}
        ran = {"protocol": dict(self.protocol), "precision": self.ran_in, "weights": weights}
        return self.counts.compute().to_dict() | ran | dict(about)

    def report(self, metric: str) -> str:
        """The scores as a text."""
        return self.counts.compute().table()

    @property
    def loss_config(self) -> dict[str, Any]:
        """The settings of the loss that repeating a step needs."""
        return {"label_smoothing": self.label_smoothing}

    def _plain_hyper_parameters(self) -> dict[str, Any]:
        return {
            "network": self.network.config,
            "optim": asdict(self.optim),
            "mixup": self.mixup,
            "label_smoothing": self.label_smoothing,
            "lighting": self.lighting,
            "normalization": self.normalization.to_dict(),
            "label_space": None,
            "class_names": None if self.class_names is None else list(self.class_names),
        }


def mixed_loss(logits: Tensor, label: Tensor, other: Tensor, share: float, smoothing: float) -> Tensor:
    """Smoothed cross entropy of `(B, K)` logits for a truth that is `label` by `share` and `other` by the rest.

    This is the authors' NLLMultiLabelSmooth: the mean over all classes is added once, and reduces both labels.
    """
    first = F.cross_entropy(logits, label, label_smoothing=smoothing)
    if share == 1.0:
        return first
    return share * first + (1 - share) * F.cross_entropy(logits, other, label_smoothing=smoothing)


def light(count: int, deviation: float, normalization: Normalization) -> Tensor:
    """Offsets `(B, 3, 1, 1)` of PCA lighting for normalised images, drawn on the CPU, so that devices agree."""
    along = torch.randn(count, 3) * deviation * torch.tensor(_EIGENVALUES)
    return (along @ torch.tensor(_COMPONENTS).T / torch.tensor(normalization.std)).view(count, 3, 1, 1)
