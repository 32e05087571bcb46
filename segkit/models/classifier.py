"""An encoder with ImageNet's classifier: the network in which encoders are pretrained and compared."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from segkit.errors import InputError
from segkit.models.encoders import build_encoder
from segkit.models.segmentation import NETWORKS
from segkit.models.signatures import check_arguments


class Classifier(nn.Module):
    """Encoder at stride 32, global average pool, dropout, one linear layer: `(B, 3, H, W)` to logits `(B, K)`.

    For a ResNeSt it is the authors' network (resnest/torch/models/resnet.py), for a ResNet timm's. Other timm encoders
    have layers after their last feature, which are left out here.

    Args:
        encoder: The name of a ResNeSt ("resnest50", ...) or a timm model.
        num_classes: The number of classes, K.
        final_drop: Probability of the dropout before the linear layer.
        encoder_args: Arguments of `ResNeSt` that differ from the named variant's, such as `zero_init_last_gamma`.

    Attributes:
        config: Plain data, `{"class_path": ..., "init_args": {...}}`, that rebuilds this network.

    Raises:
        InputError: The encoder or an argument is unknown or out of range.
    """

    def __init__(
        self,
        encoder: str = "resnest50",
        num_classes: int = 1000,
        final_drop: float = 0.0,
        encoder_args: dict[str, Any] | None = None,
    ) -> None:
        arguments = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        check_arguments(Classifier, arguments, "model.network.init_args")
        if num_classes < 1 or not 0 <= final_drop < 1:
            raise InputError(
                f"model.network.init_args: num_classes is {num_classes} and final_drop {final_drop}; allowed are 1 or "
                "more classes, and a probability below 1"
            )
        super().__init__()
        self.config: dict[str, Any] = {"class_path": CLASS_PATH, "init_args": arguments}
        self.num_classes = num_classes
        self.encoder = build_encoder(encoder, output_stride=32, overrides=encoder_args)
        channels: tuple[int, ...] = self.encoder.channels  # type: ignore[assignment]
        self.pool, self.drop = nn.AdaptiveAvgPool2d(1), nn.Dropout(final_drop)
        self.fc = nn.Linear(channels[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `(B, K)` of normalised images `(B, 3, H, W)`."""
        pooled = self.pool(self.encoder(x)[-1]).flatten(1)  # (B, C)
        logits: Tensor = self.fc(self.drop(pooled))
        return logits


CLASS_PATH = f"{Classifier.__module__}.{Classifier.__name__}"

# Registered so that weight files refer to it like to any network; code that needs labels of pixels refuses it.
_KNOWN: dict[str, Any] = NETWORKS
_KNOWN[CLASS_PATH] = Classifier


def is_classifier(config: Mapping[str, Any]) -> bool:
    """Whether a network's `config` is a classifier's."""
    return config.get("class_path") == CLASS_PATH
