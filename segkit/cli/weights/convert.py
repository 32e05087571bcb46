"""`segkit weights convert`: writing what was read as segkit's own file. `weights recalibrate` writes the same way."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segkit import __version__
from segkit.errors import InputError
from segkit.files import check_new_file, write_bytes

if TYPE_CHECKING:  # they need PyTorch, which takes seconds to import, and `--help` does not
    from segkit.models.checkpoint import Checkpoint
    from segkit.models.toolkits.foreign import Inspection


def check_output(output: Path, force: bool) -> None:
    """Fail before seconds are spent on reading.

    Raises:
        InputError: The file is to be of another kind, exists, or cannot be written.
    """
    if output.suffix != ".safetensors":
        raise InputError(f"{output}: what is written is safetensors; give --output a name that ends in .safetensors")
    check_new_file(output, force)


def write_inspected(output: Path, inspection: "Inspection", file: Path, allow_unmatched: tuple[str, ...]) -> None:
    """Write a network as a model file, an encoder as its bare weights.

    Args:
        output: The file to write.
        inspection: What was read.
        file: From where.
        allow_unmatched: See `Choices`.

    Raises:
        InputError: Something does not match, is missing of an encoder, or is no number to compute with.
    """
    from safetensors.torch import save

    from segkit.models.checkpoint import refuse_unusable

    refuse_unusable(inspection.unusable, str(file))
    if inspection.is_network:
        write_network(output, inspection.checkpoint(str(file), allow_unmatched), file, {})
        return
    lacking = [*inspection.keys.missing, *inspection.keys.clashing]
    if lacking:
        raise InputError(f"{file}: an encoder without {lacking[0]} could not be loaded again; nothing written")
    write_bytes(output, save({name: value.clone() for name, value in inspection.weights.items()}))


def write_network(output: Path, checkpoint: "Checkpoint", file: Path, done: Mapping[str, Any]) -> None:
    """Write a model file whose card says from which file, and by which versions, it was made.

    Args:
        output: The file to write.
        checkpoint: The network, with the card it had.
        file: From which it was read.
        done: What else the card's source is to say: what was done to the weights.
    """
    from segkit.evaluation.results import versions
    from segkit.models.weight_files import file_sha256, write_model_file

    source = {**(checkpoint.card.get("source") or {}), "sha256": file_sha256(file), **done}
    card = {**checkpoint.card, "segkit": __version__, "versions": versions(), "source": source}
    write_model_file(output, replace(checkpoint, card=card))
