"""The temperature by which a network's probabilities are scaled, as the card of its file has it."""

from collections.abc import Mapping
from typing import Any

from segkit.errors import InputError

LEAST, MOST = 1e-6, 1e6  # powers by these are finite in float32


def temperature_of(card: Mapping[str, Any]) -> float:
    """The temperature that `segkit weights calibrate` fitted; 1 where a card has none.

    Raises:
        InputError: It is no number, or out of range.
    """
    part = card.get("calibration")
    if part is None:
        return 1.0
    temperature: Any = part.get("temperature") if isinstance(part, Mapping) else None
    is_number = isinstance(temperature, int | float) and not isinstance(temperature, bool)
    if not is_number or not LEAST <= temperature <= MOST:
        raise InputError(f"the card's calibration has no temperature from {LEAST:g} to {MOST:g}; calibrate it again")
    return float(temperature)
