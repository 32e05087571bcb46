"""What a recipe of configs/ says to `segkit benchmark`: network, data, protocol, and the number in its header.

The header line that is read, with what is known and in this order; the brackets say where it comes from:

    # Published: mIoU 45.12, pixel_accuracy 81.17, protocol encoding-ms, images 2000 (PyTorch-Encoding docs)

Any other line that begins with `# Published:` is for people only.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from segkit.errors import InputError
from segkit.inference import protocols
from segkit.inference.engine import resolve
from segkit.inference.protocols import Protocol
from segkit.models.segmentation import NETWORKS, SegmentationModel, build_network
from segkit.plain_data import parse_yaml, read_text, read_yaml

# Where two networks of one name would still be two networks.
_IDENTITY = ("encoder", "output_stride", "dilation_convention")

_PUBLISHED = re.compile(
    r"^# Published: mIoU (?P<miou>[\d.]+)(?:, pixel_accuracy (?P<accuracy>[\d.]+))?, protocol (?P<protocol>[^\s,]+)"
    r", images (?P<images>\d+) \((?P<source>.+)\)$",
    re.MULTILINE,
)


@dataclass(frozen=True)
class Published:
    """A number that others published, and what it is a property of.

    Attributes:
        miou: 0..1.
        pixel_accuracy: 0..1; None where none was published.
        protocol: name of the protocol that it was made with.
        images: of the split that it was made on.
        source: where it stands.
    """

    miou: float
    pixel_accuracy: float | None
    protocol: str
    images: int
    source: str


@dataclass(frozen=True)
class Recipe:
    """A recipe file, as plain data.

    Attributes:
        path: the file.
        network: `{"class_path": ..., "init_args": {...}}` for `build_network`, mostly without num_classes.
        data: what `--data` takes: a path or JSON; None where the recipe has none.
        data_class: name of the data module's class; "" where the recipe has no data.
        protocol: that of the recipe, or `whole`.
        published: the number in its header.
    """

    path: Path
    network: dict[str, Any]
    data: str | None
    data_class: str
    protocol: Protocol
    published: Published | None

    def build(self, num_classes: int) -> SegmentationModel:
        """The recipe's network with random weights, in eval mode.

        Raises:
            InputError: the class or an argument is not known.
        """
        arguments = {"num_classes": num_classes} | self.network.get("init_args", {})
        return build_network({**self.network, "init_args": arguments}).eval()

    def why_not_comparable(
        self, network: SegmentationModel, protocol: Protocol, data_class: str, images: int
    ) -> str | None:
        """Why a score must not be put beside the published number; None where it may, or where there is no number.

        Args:
            network: that was scored.
            protocol: that really ran.
            data_class: name of the data module's class.
            images: how many were scored.
        """
        if self.published is None:
            return None
        if data_class != self.data_class:
            return f"scored on {data_class}, published for {self.data_class}"
        if images != self.published.images:
            return f"{images} images were scored, published for {self.published.images}"
        wanted = resolve(protocols.get(self.published.protocol), network)
        if protocol.to_dict() != wanted.to_dict():
            return f"scored with the protocol {protocol.name}, published for {wanted.name}"
        with torch.device("meta"):
            own = self.build(network.num_classes)
        if _identity(own) != _identity(network):
            return f"the network is {_identity(network)}, published for {_identity(own)}"
        return None


def read_recipe(path: str | Path) -> Recipe:
    """Read a recipe.

    Raises:
        InputError: the file is absent, not YAML, or has no network.
    """
    path = Path(path)
    text = read_text(path)
    content = parse_yaml(text, path)
    try:
        network = dict(content["model"]["network"])
        network["class_path"] = _full_name(network["class_path"])
        data = content.get("data")
        data_class = _class_name(path, data)
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise InputError(
            f"{path}: not a recipe (no {error}); give a file such as configs/ade20k/deeplabv3_resnest50.yaml, "
            "with data and model.network.class_path"
        ) from error
    if isinstance(data, str):
        spec: str | None = str(path.parent / data)  # included files are named relative to the recipe
    else:
        spec = None if data is None else json.dumps(data)
    protocol = read_protocol(content.get("protocol", "whole"), str(path))
    return Recipe(path, network, spec, data_class, protocol, read_published(text))


def read_published(text: str) -> Published | None:
    """The published number in a recipe's header; None where there is none."""
    found = _PUBLISHED.search(text)
    if found is None:
        return None
    accuracy = found["accuracy"]
    return Published(
        miou=float(found["miou"]) / 100,
        pixel_accuracy=None if accuracy is None else float(accuracy) / 100,
        protocol=found["protocol"],
        images=int(found["images"]),
        source=found["source"],
    )


def read_protocol(value: Any, where: str) -> Protocol:
    """A protocol by its name, by its YAML file, or from its fields.

    Raises:
        InputError: it is none of these.
    """
    return protocols.get(value) if isinstance(value, str) else protocols.from_fields(value, where=f"{where}: protocol")


def _full_name(class_path: str) -> str:
    """`DeepLabV3` as `build_network` wants it; anything else is left for it to refuse."""
    return next((name for name in NETWORKS if name.rsplit(".", 1)[-1] == class_path), class_path)


def _class_name(recipe: Path, data: str | Mapping[str, Any] | None) -> str:
    if data is None:
        return ""
    content = read_yaml(recipe.parent / data) if isinstance(data, str) else data
    return str(content["class_path"]).rsplit(".", 1)[-1]


def _identity(network: SegmentationModel) -> str:
    arguments = network.config["init_args"]
    kind = network.config["class_path"].rsplit(".", 1)[-1]
    return f"{kind}({', '.join(f'{name}={arguments.get(name)}' for name in _IDENTITY)})"
