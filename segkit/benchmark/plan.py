"""The rows of `segkit benchmark`: from the command line (models x protocols) or from a plan file.

A plan is a YAML list; each item is one row, or one for each of its protocols:

    - model: runs/3/checkpoints/last.ckpt                 # any file that `segkit.load` reads
      config: ade20k/deeplabv3_resnest50                  # its data, its protocol, its published number
      protocol: [whole, encoding-ms]                      # instead of the recipe's
    - config: ade20k/deeplabv3_resnest269                 # no model: random weights, what the network costs
    - {name: theirs, model: theirs.pth, data: data/ade20k, protocol: mmseg-ss, metric: mmseg}
    - model: my_module:predict                            # any kind of `segkit.benchmark.models`
      data: data/camvid
      classes: {pavement: Sidewalk, 12: null}             # corrects what was matched by name; or a YAML file, or raw

Paths are relative to the working directory.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

import torch

from segkit.benchmark.models.options import OPTIONS, ModelOptions
from segkit.data.datamodule import SegmentationDataModule
from segkit.data.imagenet.crops import CentreCrop
from segkit.data.imagenet.datamodule import ImageNetDataModule
from segkit.errors import InputError, did_you_mean, printable
from segkit.evaluation.conventions import convention
from segkit.inference import protocols
from segkit.inference.engine import resolve
from segkit.inference.protocols import Protocol
from segkit.models.classifier import is_classifier
from segkit.models.segmentation import NETWORKS, SegmentationModel, build_network
from segkit.plain_data import read_yaml
from segkit.recipes import Published, Recipe, is_recipe, read_recipe

Data = SegmentationDataModule | ImageNetDataModule

KEYS = ("name", "model", "config", "data", "protocol", "metric", *OPTIONS)  # of a plan's row

# Makes the data module of a class path with its arguments, or of a config's path; of None, what the command line names.
MakeData = Callable[[Mapping[str, Any] | str | None], Data | None]

# Arguments in which two networks of one name may still differ.
_IDENTITY = ("encoder", "output_stride", "dilation_convention")


@dataclass(frozen=True)
class Experiment:
    """A recipe's facts for one row.

    Attributes:
        path: The recipe's file.
        network: `{"class_path": ..., "init_args": {...}}` for `build_network`, mostly without num_classes.
        data: `{"class_path": ..., "init_args": {...}}` of its data module; None if the recipe has no data module.
        data_class: Name of the data module's class; "" where the recipe has no data.
        protocol: The recipe's protocol, or `whole`.
        recipe: The recipe itself.
    """

    path: Path
    network: dict[str, Any]
    data: Mapping[str, Any] | None
    data_class: str
    protocol: Protocol | CentreCrop
    recipe: Recipe

    def build(self, num_classes: int) -> SegmentationModel:
        """The recipe's network with random weights, in eval mode.

        Raises:
            InputError: The class or an argument is unknown.
        """
        arguments = {"num_classes": num_classes} | self.network.get("init_args", {})
        return build_network({**self.network, "init_args": arguments}).eval()

    def why_not_comparable(
        self, published: Published, network: SegmentationModel, protocol: Protocol, data_class: str, images: int
    ) -> str | None:
        """Why a score must not be compared with the published number; None if it may be.

        Args:
            published: The published number.
            network: The network that was scored.
            protocol: The protocol that really ran.
            data_class: Name of the data module's class.
            images: How many were scored.
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


@dataclass(frozen=True)
class PlannedRow:
    """One row to compute.

    Attributes:
        name: What the table calls it.
        model: Of any kind that `open_model` knows; None = the recipe's network with random weights.
        experiment: The recipe of the model, or None.
        data: What it is scored on, not set up yet; None for a network without a model whose recipe has no data.
        protocol: The protocol that it is scored by.
        metric: Convention of the scores.
        options: What its file does not say of the model.
    """

    name: str
    model: str | None
    experiment: Experiment | None
    data: Data | None
    protocol: Protocol | CentreCrop
    metric: str
    options: ModelOptions = field(default_factory=ModelOptions)

    @property
    def title(self) -> str:
        """What progress bars and messages call the row."""
        return f"{self.name}, {self.protocol.name}"

    @property
    def short_title(self) -> str:
        """A short title for a progress bar, which needs the room itself."""
        return printable(f"{PurePath(self.name).name}, {self.protocol.name}")


def read_experiment(name: str | Path) -> Experiment:
    """Read a recipe, given by its path or name.

    Raises:
        InputError: The file is absent, not YAML, or has no network.
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
    data_class = "" if recipe.data is None else str(recipe.data["class_path"]).rsplit(".", 1)[-1]
    given = recipe.content.get("protocol", "resnest" if is_classifier(network) else "whole")
    protocol = read_protocol(given, str(recipe.path), is_classifier(network))
    return Experiment(recipe.path, network, recipe.data, data_class, protocol, recipe)


def read_protocol(value: Any, where: str, of_classifier: bool = False) -> Protocol | CentreCrop:
    """A protocol as it is, by its name, by its YAML file, or from its fields; of a classifier a centre crop.

    Raises:
        InputError: It is none of these.
    """
    if of_classifier or isinstance(value, CentreCrop):
        return CentreCrop.of(value)
    if isinstance(value, Protocol):
        return value
    return protocols.get(value) if isinstance(value, str) else protocols.from_fields(value, where=f"{where}: protocol")


def rows_of_models(
    models: Sequence[str],
    config: str | None,
    names: Sequence[str] | None,
    metric: str,
    make_data: MakeData,
    options: ModelOptions,
) -> list[PlannedRow]:
    """A row for each model and protocol.

    Args:
        models: Of any kind that `open_model` knows; a recipe in their place stands for its network with random weights.
        config: A recipe of the models, for data, protocol and published number.
        names: Names of protocols; None = the recipe's, or `whole`.
        metric: Convention of the scores.
        make_data: Makes the data module of the recipe's data.
        options: What their files do not say of the models.

    Raises:
        InputError: A file, recipe or protocol cannot be used.
    """
    shared = read_experiment(config) if config else None
    rows = []
    for model in models:
        recipe = read_experiment(model) if is_recipe(model) else shared
        data = make_data(recipe.data if recipe else None)
        file = None if is_recipe(model) else model
        own: list[Any] = [recipe.protocol if recipe else "whole"]
        for name in names or own:
            how = read_protocol(name, model, _classifies(recipe))
            row = PlannedRow(model, file, recipe, data, how, metric, options)
            rows.append(_checked(row, model, "--data or --config"))
    return rows


def rows_of_plan(path: Path, metric: str, make_data: MakeData) -> list[PlannedRow]:
    """The rows of a plan file; arguments and errors as of `rows_of_models`, for items that do not say it themselves."""
    items = read_yaml(path)
    if not isinstance(items, list) or not items:
        raise InputError(f"{path}: not a list of rows; write one '- {{model: ..., data: ..., protocol: ...}}' for each")
    rows = []
    for number, item in enumerate(items, start=1):
        rows += _rows_of_item(item, f"{path}, row {number}", metric, make_data)
    return rows


def _rows_of_item(item: Any, where: str, metric: str, make_data: MakeData) -> list[PlannedRow]:
    if not isinstance(item, dict):
        raise InputError(f"{where}: {item!r} is not a mapping; allowed keys are {', '.join(KEYS)}")
    for key in item:
        if key not in KEYS:
            hint = did_you_mean(str(key), KEYS)
            raise InputError(f"{where}: no such key {str(key)!r}; {hint}allowed: {', '.join(KEYS)}")
    recipe = read_experiment(item["config"]) if "config" in item else None
    if recipe is None and "model" not in item:
        raise InputError(f"{where}: neither model nor config; give a model file, a recipe, or both")
    given = item.get("data", recipe.data if recipe else None)
    if not isinstance(given, Mapping | str | None):
        raise InputError(f"{where}: data is {given!r}; give a YAML file, or a mapping with class_path and init_args")
    data = make_data(given)
    wanted = item.get("protocol", recipe.protocol if recipe else "whole")
    name = str(item.get("name", item.get("model", item.get("config"))))
    model = str(item["model"]) if "model" in item else None
    options, metric = ModelOptions.read(item, where), str(item.get("metric", metric))
    rows = []
    for one in wanted if isinstance(wanted, list) else [wanted]:
        how = read_protocol(one, where, _classifies(recipe))
        row = PlannedRow(name, model, recipe, data, how, metric, options)
        rows.append(_checked(row, where, "the key data, or config"))
    return rows


def _classifies(recipe: Experiment | None) -> bool:
    return recipe is not None and is_classifier(recipe.network)


def _checked(row: PlannedRow, where: str, how: str) -> PlannedRow:
    if row.model is not None and row.data is None:
        raise InputError(f"{where}: no data to score on; give it with {how}")
    try:
        convention(row.metric)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    return row


def _full_name(class_path: str) -> str:
    """`DeepLabV3` as `build_network` wants it; anything else is left for it to refuse."""
    return next((name for name in NETWORKS if name.rsplit(".", 1)[-1] == class_path), class_path)


def _identity(network: SegmentationModel) -> str:
    arguments = network.config["init_args"]
    kind = network.config["class_path"].rsplit(".", 1)[-1]
    return f"{kind}({', '.join(f'{name}={arguments.get(name)}' for name in _IDENTITY)})"
