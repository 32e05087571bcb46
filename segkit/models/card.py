"""Checks what a segkit file says about its network before anything is built, imported or allocated.

A checkpoint's hyper-parameters and a model file's card are plain data that anyone may have written. Types and ranges
must be those of the constructors that receive them, and a network may be no larger than the file's tensors.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from segkit.errors import InputError
from segkit.metadata.label_space import LabelSpace
from segkit.metadata.temperature import temperature_of
from segkit.models.checkpoint import Checkpoint
from segkit.models.resnest import ResNeSt
from segkit.models.segmentation import (
    NETWORKS,
    SegmentationModel,
    build_network,
    unknown_network,
)
from segkit.models.signatures import check_arguments, fits
from segkit.ops.meta import ShapesOnly
from segkit.ops.normalize import Normalization

_Part = dict[str, Any] | None
# part         its type, if present
_CARD = {
    "segkit":      str | None,
    "protocol":    _Part,
    "scores":      list[dict[str, Any]] | None,
    "source":      _Part,
    "versions":    _Part,
    "calibration": _Part,
    "license":     str | None,
}  # fmt: skip
_LABEL_SPACE = {"class_names": list[str], "palette": list[list[int]], "table": list[int]}
_BANDS = {"names": list[str], "dtype": str, "low": list[float], "high": list[float]}
_PROTOCOL = {"name": str}
_SCORE = {"mIoU": float | None, "protocol": str, "dataset": dict[str, Any], "num_images": int, "partial": bool,
          "interval": dict[str, float] | None}  # fmt: skip
_SOURCE = {"file": str, "sha256": str, "recalibrated": _Part}
_RECALIBRATED = {"batches": int, "batch_size": int, "data": str, "split": str}


def checked(path: Path, checkpoint: Checkpoint) -> tuple[Checkpoint, SegmentationModel]:
    """Check all parts, except whether names and shapes of the weights fit, which is left to the caller.

    Args:
        path: The file, for error messages.
        checkpoint: Its contents, unchecked.

    Returns:
        The checkpoint, with defaults filled into its network's config, and the network it describes, shapes only.

    Raises:
        InputError: A part is missing, of the wrong type or out of range.
    """
    parts = checkpoint.hyper_parameters
    named = parts.get("network")
    path_of = named.get("class_path") if isinstance(named, dict) else None
    if isinstance(path_of, str) and not path_of.startswith("segkit.") and path_of not in NETWORKS:
        raise InputError(f"{path}: {unknown_network(path_of)}")  # which is no damage
    try:
        network = described_network(parts.get("network"), len(checkpoint.state_dict))  # a block has tensors
        _check_normalization(parts.get("normalization"), network.config["init_args"].get("in_channels", 3))
        _check_label_space(parts.get("label_space"), network.num_classes)
        _check_card(checkpoint.card)
    except InputError as error:
        raise InputError(
            f"{path}: damaged, or not a segkit file: {error}; copy it again, or export it again with the segkit "
            "version that wrote it"
        ) from error
    return replace(checkpoint, hyper_parameters={**parts, "network": network.config}), network


def described_network(config: Any, most_blocks: int) -> SegmentationModel:
    """Build the network that a file describes, with shapes only.

    Args:
        config: What the file says, unchecked.
        most_blocks: A limit for the blocks of its encoder: building them is what would take long.

    Raises:
        InputError: A part is missing, of the wrong type or out of range.
    """
    if not fits(config, dict[str, Any]) or not fits(config.get("init_args"), dict[str, Any]):
        raise InputError("network must consist of class_path and init_args")
    if config.keys() != {"class_path", "init_args"} or config["class_path"] not in list(NETWORKS):  # it may be a list
        raise InputError(unknown_network(config.get("class_path")))
    arguments = config["init_args"]
    if not hasattr(NETWORKS[config["class_path"]], "own_class"):  # of one of the user's own, its constructor tells
        check_arguments(NETWORKS[config["class_path"]], arguments, "network")
    overrides = arguments.get("encoder_args") or {}
    check_arguments(ResNeSt, overrides, "encoder_args")
    if sum(overrides.get("layers", ())) > most_blocks:
        raise InputError(f"encoder_args.layers: {sum(overrides['layers'])} blocks, at most {most_blocks} are possible")
    with ShapesOnly():
        return build_network(config)


def _check_normalization(values: Any, channels: int) -> None:
    if not fits(values, dict[str, Any]) or values.keys() - {"bands"} != {"mean", "std"}:
        raise InputError("normalization must consist of mean and std, and bands where they are declared")
    check_arguments(Normalization, {name: value for name, value in values.items() if name != "bands"}, "normalization")
    bands = values.get("bands")
    if bands is not None:
        if not fits(bands, dict[str, Any]) or bands.keys() != _BANDS.keys():
            raise InputError(f"normalization.bands must consist of {', '.join(_BANDS)}")
        _check_types("normalization's bands", bands, _BANDS)
    given = len(Normalization.from_dict(values).mean)
    if given != channels:
        raise InputError(f"normalization has {given} channels, but the network has {channels}")
    if bands is None and channels != 3:
        raise InputError(
            f"the network has {channels} channels, but the normalization does not say which bands they are"
        )


def _check_label_space(values: Any, num_classes: int) -> None:
    if values is None:
        return
    if not fits(values, dict[str, Any]):
        raise InputError("label_space is not a mapping")
    _check_types("label space", values, _LABEL_SPACE)
    count = LabelSpace.from_dict(values).num_classes
    if count != num_classes:
        raise InputError(f"label_space has {count} classes, but the network has {num_classes}")


def _check_card(card: Mapping[str, Any]) -> None:
    _check_types("card", card, _CARD)
    temperature_of(card)
    source: Mapping[str, Any] = card.get("source") or {}
    _check_types("card's source", source, _SOURCE)
    for score in card.get("scores") or ():
        _check_types("card's score", score, _SCORE)
    for name, part, needed in (
        ("card's protocol", card.get("protocol"), _PROTOCOL),
        ("card's source.recalibrated", source.get("recalibrated"), _RECALIBRATED),
    ):
        if part is not None and not needed.keys() <= part.keys():
            raise InputError(f"the {name} lacks {' or '.join(needed)}")
        _check_types(name, part or {}, needed)


def _check_types(what: str, part: Mapping[str, Any], hints: Mapping[str, Any]) -> None:
    for name, hint in hints.items():
        if name in part and not fits(part[name], hint):
            raise InputError(f"the {what}'s {name} has the wrong type")
