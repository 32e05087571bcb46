"""What a model file says of where it comes from, and writing what was read of another toolkit as segkit's own."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors.torch import save

from segkit.errors import InputError
from segkit.files import write_bytes
from segkit.models.checkpoint import Checkpoint, refuse_unusable
from segkit.models.toolkits.foreign import Inspection
from segkit.models.weight_files import file_sha256, write_model_file


def without_aux(checkpoint: Checkpoint) -> Checkpoint:
    """The same network without its auxiliary head, which only training needs: logits are the same."""
    network = checkpoint.network
    network = {**network, "init_args": {**network["init_args"], "aux": False}}
    return replace(
        checkpoint,
        hyper_parameters={**checkpoint.hyper_parameters, "network": network},
        state_dict={k: v for k, v in checkpoint.state_dict.items() if not k.startswith("aux_head.")},
    )


def sourced(
    checkpoint: Checkpoint, file: Path, versions: Mapping[str, str], done: Mapping[str, Any] | None = None
) -> Checkpoint:
    """Add to the card from which file, by which versions and how the model was made.

    Args:
        checkpoint: With the card that it had.
        file: From which it was read.
        versions: As `segkit.evaluation.results.versions` gives them.
        done: What else the card's source is to say: what was done to the weights.
    """
    source = {**(checkpoint.card.get("source") or {}), "file": file.name, "sha256": file_sha256(file), **(done or {})}
    card = {**checkpoint.card, "segkit": versions["segkit"], "versions": dict(versions), "source": source}
    return replace(checkpoint, card=card)


def write_inspected(
    output: Path,
    inspection: Inspection,
    file: Path,
    versions: Mapping[str, str],
    allow_unmatched: tuple[str, ...] = (),
) -> None:
    """Write what `segkit.models.weights.inspect` found: a network as a model file, an encoder as its bare weights.

    Args:
        output: The file to write.
        inspection: What was read.
        file: From where.
        versions: See `sourced`.
        allow_unmatched: See `Choices`.

    Raises:
        InputError: Something does not match, is missing of an encoder, or is no number to compute with.
    """
    refuse_unusable(inspection.unusable, str(file))
    if inspection.is_network:
        write_model_file(output, sourced(inspection.checkpoint(str(file), allow_unmatched), file, versions))
        return
    lacking = [*inspection.keys.missing, *inspection.keys.clashing]
    if lacking:
        raise InputError(f"{file}: an encoder without {lacking[0]} could not be loaded again; nothing written")
    write_bytes(output, save({name: value.clone() for name, value in inspection.weights.items()}))
