"""Reads the card of an exported file, which anyone may have written, and checks it without PyTorch."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from segkit.bands import Bands
from segkit.errors import InputError
from segkit.metadata.label_space import LabelSpace
from segkit.metadata.temperature import temperature_of
from segkit.models.signatures import fits

_MOST_CARD = 10_000_000  # characters

_Part = dict[str, Any]
# part             its type
_PARTS = {
    "network":       _Part,
    "num_classes":   int,
    "output_stride": int,
    "align_corners": bool,
    "normalization": _Part,
    "label_space":   _Part | None,
    "precision":     str,
    "outputs":       Literal["both", "labels", "logits"],
    "input":         Literal["float32", "uint8"],
}  # fmt: skip
_NORMALIZATION = {"mean": list[float], "std": list[float], "bands": _Part | None}
_BANDS = {"names": list[str], "dtype": str, "low": list[float], "high": list[float]}


def parse_card(text: str | None, path: Path) -> Mapping[str, Any]:
    """The card of a file; {} where it has none.

    Raises:
        InputError: It is damaged.
    """
    if not text:
        return {}
    try:
        card = json.loads(text[:_MOST_CARD])
    except (ValueError, RecursionError):
        card = None
    try:
        _check_card(card)
    except InputError as error:
        raise InputError(f"{path}: its card is damaged ({error}): export it again") from error
    checked: dict[str, Any] = card
    return checked


def _check_card(card: Any) -> None:
    """Refuse a card that lacks what is needed to run the file, before anything is built by it.

    Raises:
        InputError: Says what is missing or wrong.
    """
    if not isinstance(card, dict):
        raise InputError("not a mapping in JSON")
    _check_types("", card, _PARTS)
    temperature_of(card)
    for name in ("num_classes", "output_stride"):
        if card[name] < 1:
            raise InputError(f"{name} is {card[name]}")
    normalization, space = card["normalization"], card.get("label_space")
    _check_types("normalization.", normalization, _NORMALIZATION)
    channels, bands = len(normalization["mean"]), normalization.get("bands")
    if not channels == len(normalization["std"]) > 0 or min(normalization["std"]) <= 0:
        raise InputError("normalization needs a mean and a std above 0 for each channel")
    if bands is not None:
        _check_types("normalization.bands.", bands, _BANDS)
        if bands.keys() != _BANDS.keys() or len(Bands.from_dict(bands).names) != channels:
            raise InputError(f"normalization.bands must be {', '.join(_BANDS)} of {channels} bands")
    if space is not None and LabelSpace.from_dict(space).num_classes != card["num_classes"]:
        raise InputError(f"label_space is not of the network's {card['num_classes']} classes")


def _check_types(where: str, part: dict[str, Any], hints: Mapping[str, Any]) -> None:
    for name, hint in hints.items():
        if not fits(part.get(name), hint):
            raise InputError(f"{where}{name} is missing or of the wrong type")
