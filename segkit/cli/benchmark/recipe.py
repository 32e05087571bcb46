"""What a recipe says to `segkit benchmark`: network, data and protocol, and what its score may be put beside."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from segkit.errors import InputError
from segkit.inference import protocols
from segkit.inference.engine import resolve
from segkit.inference.protocols import Protocol
from segkit.models.segmentation import NETWORKS, SegmentationModel, build_network
from segkit.recipes import Published, Recipe, read_recipe

# Where two networks of one name would still be two networks.
_IDENTITY = ("encoder", "output_stride", "dilation_convention")


@dataclass(frozen=True)
class Experiment:
    """What a recipe says about one row.

    Attributes:
        path: the recipe's file.
        network: `{"class_path": ..., "init_args": {...}}` for `build_network`, mostly without num_classes.
        data: what `--data` takes, as JSON; None where the recipe has none.
        data_class: name of the data module's class; "" where the recipe has no data.
        protocol: that of the recipe, or `whole`.
        recipe: the recipe itself.
    """

    path: Path
    network: dict[str, Any]
    data: str | None
    data_class: str
    protocol: Protocol
    recipe: Recipe

    def published_for(self, protocol: Protocol) -> Published | None:
        """The published number that a score by this protocol is compared with."""
        return self.recipe.published_for(protocol.name)

    def build(self, num_classes: int) -> SegmentationModel:
        """The recipe's network with random weights, in eval mode.

        Raises:
            InputError: the class or an argument is not known.
        """
        arguments = {"num_classes": num_classes} | self.network.get("init_args", {})
        return build_network({**self.network, "init_args": arguments}).eval()

    def why_not_comparable(
        self, published: Published, network: SegmentationModel, protocol: Protocol, data_class: str, images: int
    ) -> str | None:
        """Why a score must not be put beside the published number; None where it may.

        Args:
            published: that number.
            network: that was scored.
            protocol: that really ran.
            data_class: name of the data module's class.
            images: how many were scored.
        """
        if data_class != self.data_class:
            return f"scored on {data_class}, published for {self.data_class}"
        if images != published.images:
            return f"{images} images were scored, published for {published.images}"
        wanted = resolve(protocols.get(published.protocol), network)
        if protocol.to_dict() != wanted.to_dict():
            return f"scored with the protocol {protocol.name}, published for {wanted.name}"
        with torch.device("meta"):
            own = self.build(network.num_classes)
        if _identity(own) != _identity(network):
            return f"the network is {_identity(network)}, published for {_identity(own)}"
        return None


def read_experiment(name: str | Path) -> Experiment:
    """Read a recipe, given by its path or name.

    Raises:
        InputError: the file is absent, not YAML, or has no network.
    """
    recipe = read_recipe(name)
    try:
        network = dict(recipe.content["model"]["network"])
        network["class_path"] = _full_name(network["class_path"])
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise InputError(
            f"{recipe.path}: not a recipe (no {error}); give one such as ade20k/deeplabv3_resnest50, "
            "with data and model.network.class_path"
        ) from error
    data = None if recipe.data is None else json.dumps(recipe.data)
    data_class = "" if recipe.data is None else str(recipe.data["class_path"]).rsplit(".", 1)[-1]
    protocol = read_protocol(recipe.content.get("protocol", "whole"), str(recipe.path))
    return Experiment(recipe.path, network, data, data_class, protocol, recipe)


def read_protocol(value: Any, where: str) -> Protocol:
    """A protocol by its name, by its YAML file, or from its fields.

    Raises:
        InputError: it is none of these.
    """
    return protocols.get(value) if isinstance(value, str) else protocols.from_fields(value, where=f"{where}: protocol")


def _full_name(class_path: str) -> str:
    """`DeepLabV3` as `build_network` wants it; anything else is left for it to refuse."""
    return next((name for name in NETWORKS if name.rsplit(".", 1)[-1] == class_path), class_path)


def _identity(network: SegmentationModel) -> str:
    arguments = network.config["init_args"]
    kind = network.config["class_path"].rsplit(".", 1)[-1]
    return f"{kind}({', '.join(f'{name}={arguments.get(name)}' for name in _IDENTITY)})"
