"""What the inspection of a weight file takes from the user, and what it finds."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from segkit.errors import InputError
from segkit.metadata.label_space import LabelSpace, distinct_palette, identity_table
from segkit.models.checkpoint import Checkpoint, refuse_unusable
from segkit.models.resnest import DilationConvention
from segkit.models.segmentation import build_network
from segkit.models.signatures import fits
from segkit.models.toolkits.keys import KeyReport
from segkit.ops.normalize import IMAGENET


@dataclass(frozen=True)
class Choices:
    """What a file of another toolkit does not say, but the user may.

    Attributes:
        encoder: The encoder's name, if not the one that the shapes suggest.
        output_stride: 8, 16 or 32; None means 8, and smp's own for its decoder.
        dilation_convention: The dilation convention, if not the toolkit's.
        allow_unmatched: Shell patterns of names that may be missing (the network's initial values stay), unexpected
            (left out) or of another shape (both).
    """

    encoder: str | None = None
    output_stride: int | None = None
    dilation_convention: DilationConvention | None = None
    allow_unmatched: tuple[str, ...] = ()


@dataclass(frozen=True)
class Inspection:
    """What a weight file holds.

    Attributes:
        toolkit: The toolkit, in words.
        config: A network's config for `build_network`; for an encoder alone, the arguments of `build_encoder`.
        is_network: Whether there is a head.
        weights: The tensors that fit, under the network's names; for an encoder alone, under the authors'.
        keys: What became of each name.
        notes: What the file cannot show, in words.
        label_space: Class names, colours and label table, as plain data, if the file has them.
        card: See `Checkpoint`.
        normalization: Mean and std as plain data: the encoder's own in files of smp and timm, ImageNet's in all others.
        unusable: Names in the file whose values cannot be computed with, and what is wrong with them.
    """

    toolkit: str
    config: dict[str, Any]
    is_network: bool
    weights: dict[str, Tensor]
    keys: KeyReport
    notes: tuple[str, ...] = ()
    label_space: dict[str, Any] | None = None
    card: dict[str, Any] = field(default_factory=dict)
    normalization: dict[str, list[float]] = field(default_factory=IMAGENET.to_dict)
    unusable: dict[str, str] = field(default_factory=dict)

    def checkpoint(self, source: str, allow_unmatched: tuple[str, ...] = ()) -> Checkpoint:
        """Return the network as segkit's own; parameters that may be missing get the initial values of seed 0.

        Args:
            source: The file's name in error messages.
            allow_unmatched: See `Choices`.

        Raises:
            InputError: There is no head, something does not match, or some values cannot be computed with.
        """
        if not self.is_network:
            raise InputError(
                f"{source}: an encoder without a head ({self.config['name']}); give a whole network's checkpoint, or "
                "train with it: --encoder_weights"
            )
        self.keys.require_match(source, allow_unmatched)
        refuse_unusable(self.unusable, source)
        weights = self.weights
        if self.keys.missing or self.keys.clashing:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                weights = dict(build_network(self.config).state_dict()) | weights
        known = {"network": self.config, "normalization": self.normalization, "label_space": self.label_space}
        return Checkpoint(known, weights, self.card)


def label_space_in(beside: Mapping[str, Any], num_classes: int) -> tuple[dict[str, Any] | None, tuple[str, ...]]:
    """Classes and colours that mmsegmentation keeps beside the weights, as plain data, and notes on them.

    Args:
        beside: The plain data of the file; "meta" has them.
        num_classes: The network's; if the file names another number of classes, its names are left out.

    Raises:
        InputError: Names are not strings, or colours not three numbers each.
    """
    meta = beside.get("meta")
    meta = meta if isinstance(meta, dict) else {}
    inner = meta.get("dataset_meta")  # since 1.0
    known = {str(key).lower(): value for key, value in {**meta, **(inner if isinstance(inner, dict) else {})}.items()}
    names, palette = known.get("classes"), known.get("palette")
    if not isinstance(names, (list, tuple)):
        return None, ()
    if len(names) != num_classes:
        return None, (f"the file names {len(names)} classes, but the network has {num_classes}: names left out",)
    if not isinstance(palette, (list, tuple)) or len(palette) != num_classes:
        palette = distinct_palette(num_classes)
    if not (fits(names, list[str]) and fits(palette, list[list[int]])):
        raise InputError("its class names are not strings, or its colours are not three numbers each")
    plain = {
        "class_names": list(names),
        "palette": [list(colour) for colour in palette],
        "table": list(identity_table(num_classes)),
    }
    return dict(LabelSpace.from_dict(plain).to_dict()), ()
