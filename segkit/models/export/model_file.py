"""Records where a model comes from in its card, and writes another toolkit's weights as a segkit file."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from segkit.errors import InputError
from segkit.files import write_bytes
from segkit.models.checkpoint import Checkpoint, refuse_unusable
from segkit.models.toolkits.backwards import Target, give_back
from segkit.models.toolkits.inspection import Inspection
from segkit.models.weight_files import file_sha256, write_model_file


def without_aux(checkpoint: Checkpoint) -> Checkpoint:
    """Remove the auxiliary head, which only training needs; the logits do not change."""
    network = checkpoint.network
    if "aux" not in network["init_args"]:
        return checkpoint
    network = {**network, "init_args": {**network["init_args"], "aux": False}}
    return replace(
        checkpoint,
        hyper_parameters={**checkpoint.hyper_parameters, "network": network},
        state_dict={k: v for k, v in checkpoint.state_dict.items() if not k.startswith("aux_head.")},
    )


def sourced(
    checkpoint: Checkpoint, file: Path, versions: Mapping[str, str], done: Mapping[str, Any] | None = None
) -> Checkpoint:
    """Record in the card which file and versions the model was made from, and how.

    Args:
        checkpoint: The checkpoint with its card so far.
        file: The file from which it was read.
        versions: The result of `segkit.evaluation.results.versions`.
        done: Further entries for the card's source: what was done to the weights.
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
        inspection: The result of `inspect`.
        file: The file that was inspected.
        versions: See `sourced`.
        allow_unmatched: See `Choices`.

    Raises:
        InputError: Weights do not match, are missing from an encoder, or cannot be computed with.
    """
    refuse_unusable(inspection.unusable, str(file))
    if inspection.is_network:
        write_model_file(output, sourced(inspection.checkpoint(str(file), allow_unmatched), file, versions))
        return
    lacking = [*inspection.keys.missing, *inspection.keys.clashing]
    if lacking:
        raise InputError(f"{file}: an encoder without {lacking[0]} could not be loaded again; nothing was written")
    _write(output, inspection.weights)


def write_given_back(output: Path, inspection: Inspection, file: Path, toolkit: Target) -> str:
    """Write what `inspect` found under another toolkit's names; see `give_back`.

    Returns:
        The line of Python that builds the network for it.

    Raises:
        InputError: The toolkit has no such network, or the weights cannot be computed with.
    """
    refuse_unusable(inspection.unusable, str(file))
    weights, line = give_back(inspection, toolkit, str(file))
    _write(output, weights)
    return line


def _write(output: Path, weights: Mapping[str, Tensor]) -> None:
    # Files of torch keep a tensor's strides, and safetensors has none.
    write_bytes(output, save({n: value.clone(memory_format=torch.contiguous_format) for n, value in weights.items()}))
