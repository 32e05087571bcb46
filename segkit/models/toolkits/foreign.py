"""Reads networks and encoders of other toolkits as segkit's own: identifies them and renames their weights.

`formats.py` has the toolkits' names, `recognise.py` identifies the encoder by its shapes, `keys.py` compares names.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from segkit.errors import InputError
from segkit.models.checkpoint import unusable
from segkit.models.decoders import EncoderDecoder, encoder_stride
from segkit.models.encoders import build_encoder, encoder_normalization, timm_network
from segkit.models.segmentation import SegmentationModel, build_network, class_path
from segkit.models.toolkits.formats import CLASSIFIERS, TOOLKITS, Format, find_format, rename
from segkit.models.toolkits.inspection import Choices, Inspection, label_space_in
from segkit.models.toolkits.keys import KeyReport, place
from segkit.models.toolkits.recognise import EncoderGuess, Shapes, recognise_encoder
from segkit.models.toolkits.smp import decoder_configs, unseen
from segkit.models.toolkits.timm_names import timm_encoder_name, timm_names
from segkit.ops.meta import ShapesOnly
from segkit.ops.normalize import IMAGENET

TIMM_PREFIX = "encoder.model."  # where TimmEncoder keeps timm's network
_CLASSIFIER_OF_DPT = "head.segmentation_head.head.4.weight"


def inspect_foreign(
    path: Path, tensors: Mapping[str, Tensor], beside: Mapping[str, Any], choices: Choices
) -> Inspection:
    """Recognise another toolkit's weights and compare every name and shape with their network.

    Args:
        path: The file; its name may tell a "fast" ResNeSt from a plain one.
        tensors: The file's weights.
        beside: The plain data stored with them; mmsegmentation keeps the classes there.
        choices: What the file does not say.

    Raises:
        InputError: The toolkit, head or encoder is unknown; the message begins with the path.
    """
    try:
        return replace(_inspect(path, tensors, beside, choices), unusable=unusable(tensors))
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def encoder_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Keep the encoder's part of a file of any toolkit, under the authors' names.

    Raises:
        InputError: The toolkit is unknown.
    """
    if plain := timm_names(_shapes(tensors)):
        return {new: tensors[name] for name, new in plain.items()}
    names = rename(find_format(tensors).rules, tensors)
    found = {new.removeprefix("encoder."): tensors[name] for name, new in names.items() if new.startswith("encoder.")}
    plain = timm_names(_shapes(found))
    return {plain.get(name, name): tensor for name, tensor in found.items()}


def _inspect(path: Path, tensors: Mapping[str, Tensor], beside: Mapping[str, Any], choices: Choices) -> Inspection:
    try:
        form = find_format(tensors)
    except InputError:
        alone = _timm_file(tensors, choices.encoder)
        if alone is None:
            raise
        return alone
    names = rename(form.rules, tensors)
    shapes = {new: tuple(tensors[name].shape) for name, new in names.items()}
    inside = {name.removeprefix("encoder."): shape for name, shape in shapes.items() if name.startswith("encoder.")}
    guess = _guess(inside, path.name, choices.encoder)
    if not guess.is_resnest and choices.dilation_convention not in (None, "timm"):
        raise InputError(f"--dilation_convention has no effect: {guess.name} is dilated as timm does; leave it out")
    if form.network is None:
        return _encoder_file(tensors, names, guess)
    if not guess.is_resnest:
        names = {name: re.sub(r"^encoder\.", f"encoder.{TIMM_PREFIX}", new) for name, new in names.items()}
    network, weights, keys = _fitting(tensors, names, _configs(form, guess, shapes, choices))
    arguments = network.config["init_args"]
    _check_dilation(form, guess, tensors, arguments)
    label_space, notes = label_space_in(beside, network.num_classes)
    if form.toolkit == "smp" and (words := unseen(arguments["decoder"])):
        notes = (*notes, words)
    source = {
        "toolkit": form.toolkit,
        "file": path.name,
        "dilation_convention": arguments["dilation_convention"] if guess.is_resnest else None,
        "align_corners": network.align_corners,
        "notes": [*guess.notes, *notes],
    }
    return Inspection(
        toolkit=form.toolkit,
        config=dict(network.config),
        is_network=True,
        weights=weights,
        keys=keys,
        notes=(*guess.notes, *notes),
        label_space=label_space,
        # smp's preprocessing is that of the encoder's weights
        normalization=(encoder_normalization(guess.name) if form.toolkit == "smp" else IMAGENET).to_dict(),
        card={"source": source},
    )


def _guess(inside: Shapes, file_name: str, given: str | None) -> EncoderGuess:
    """The encoder that was given, or else the one that the shapes indicate.

    Raises:
        InputError: It is not recognised.
    """
    if given is not None:
        return EncoderGuess(given.removeprefix("tu-"))
    if timm_names(inside):
        raise InputError(
            "a network over smp's own EfficientNet, whose features differ from timm's; segkit supports only the "
            "encoders that smp calls tu-tf_efficientnet_b0, ..."
        )
    name = timm_encoder_name(inside)
    if name is None and not any(name.startswith("layer1.") for name in inside):
        raise InputError(
            f"the encoder cannot be recognised from its parameters ({', '.join(list(inside)[:2])}, ...); give timm's "
            "name of it, as in --encoder convnext_tiny"
        )
    return recognise_encoder(inside, file_name) if name is None else EncoderGuess(name)


def _fitting(
    tensors: Mapping[str, Tensor], names: Mapping[str, str], configs: Iterable[dict[str, Any]]
) -> tuple[SegmentationModel, dict[str, Tensor], KeyReport]:
    """The first of these networks that has the file's names and shapes, else the first of all, and what fits it."""
    found = []
    for config in configs:
        with ShapesOnly():
            network = build_network(config)
        weights, keys = place(tensors, names, network.state_dict())
        if isinstance(network, EncoderDecoder):  # smp's own encoders keep stages that a decoder does not use
            over = tuple(name for name in keys.unexpected if names.get(name, "").startswith("encoder."))
            rest = tuple(name for name in keys.unexpected if name not in over)
            keys = replace(keys, dropped=(*keys.dropped, *over), unexpected=rest)
        found.append((network, weights, keys))
        if not (keys.missing or keys.clashing or keys.unexpected):
            return found[-1]
    return found[0]


def _timm_file(tensors: Mapping[str, Tensor], given: str | None) -> Inspection | None:
    """A file of a whole timm network or of EfficientNet-PyTorch, if it is one and its encoder is known or given."""
    shapes = _shapes(tensors)
    names = timm_names(shapes)
    name = given or timm_encoder_name(shapes)
    if name is None:
        return None
    shapes = {names.get(key, key): shape for key, shape in shapes.items()}
    with ShapesOnly():
        network = timm_network(name.removeprefix("tu-"), shapes)
    weights, keys = place(tensors, names, network.state_dict())
    channels = next((shape[1] for shape in shapes.values() if len(shape) == 4), len(IMAGENET.mean))
    return Inspection(
        toolkit=f"encoder file ({'EfficientNet-PyTorch' if names else 'timm'})",
        config={"name": name, "in_channels": channels, "overrides": {}},
        is_network=False,
        weights=weights,
        keys=keys,
        normalization=encoder_normalization(name).to_dict(),
    )


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _encoder_file(tensors: Mapping[str, Tensor], names: Mapping[str, str], guess: EncoderGuess) -> Inspection:
    arguments: dict[str, Any] = {"name": guess.name, "in_channels": guess.in_channels, "overrides": guess.overrides}
    with ShapesOnly():
        encoder = build_encoder(**arguments)
    ours = {f"encoder.{name.removeprefix(TIMM_PREFIX)}": value for name, value in encoder.state_dict().items()}
    weights, keys = place(tensors, names, ours)
    # Names in an encoder's file have no prefix: one that merely gained it counts as unchanged.
    same = tuple(name for name, new in keys.renamed.items() if new == f"encoder.{name}")
    plain = {name: new.removeprefix("encoder.") for name, new in keys.renamed.items() if name not in same}
    keys = replace(keys, same=same, renamed=plain)
    whose = "mmsegmentation" if any(name.startswith("stem.") for name in tensors) else "the authors, timm"
    return Inspection(
        toolkit=f"encoder file ({whose if guess.is_resnest else 'torchvision, timm'}: one set of names)",
        config=arguments,
        is_network=False,
        weights={name.removeprefix("encoder."): value for name, value in weights.items()},
        keys=keys,
        notes=guess.notes,
    )


def _configs(form: Format, guess: EncoderGuess, shapes: Shapes, choices: Choices) -> Iterator[dict[str, Any]]:
    """Yield possible configs by what the toolkit implies, the shapes show and the user says, most likely first."""
    toolkit = TOOLKITS[form.toolkit]
    classifier = CLASSIFIERS[form.network or ""]
    classifier = _CLASSIFIER_OF_DPT if _CLASSIFIER_OF_DPT in shapes else classifier
    if classifier not in shapes:
        raise InputError(f"the number of classes is unknown without the head's last convolution ({classifier})")
    if guess.in_channels != len(IMAGENET.mean):
        raise InputError(f"a network for {guess.in_channels} input channels, whose normalisation is unknown")
    arguments: dict[str, Any] = {
        "encoder": guess.name,
        "num_classes": shapes[classifier][0],
        "output_stride": choices.output_stride,
        "dilation_convention": choices.dilation_convention or toolkit.convention,
        "aux": any(name.startswith("aux_head.") for name in shapes),
        "encoder_args": guess.overrides or None,
    }
    if form.toolkit == "smp":
        theirs = {name.removeprefix("head."): shape for name, shape in shapes.items()}
        for decoder, given in decoder_configs(theirs):
            own = {**arguments, "decoder": decoder, "decoder_args": given or None}
            yield {"class_path": class_path(EncoderDecoder), "init_args": own}
        return
    arguments |= {"output_stride": choices.output_stride or 8, "align_corners": toolkit.align_corners}
    yield {"class_path": f"segkit.models.segmentation.{form.network}", "init_args": arguments}


def _check_dilation(
    form: Format, guess: EncoderGuess, tensors: Mapping[str, Tensor], arguments: Mapping[str, Any]
) -> None:
    """Refuse encoders that their toolkit dilates differently from timm, whose encoders segkit uses.

    Raises:
        InputError: The network has such an encoder.
    """
    if guess.is_resnest:
        return
    own = form.toolkit == "smp" and not any(name.startswith("encoder.model.") for name in tensors)
    if own and encoder_stride(arguments) < 32:
        raise InputError(
            f"a {arguments['decoder']} over smp's own {guess.name}, which dilates every convolution of a dilated "
            f"stage, including its first block's; segkit supports only the one that smp calls tu-{guess.name}"
        )
    if form.toolkit in ("PyTorch-Encoding", "mmsegmentation") and re.search(r"\dd(_|$)", guess.name):
        raise InputError(
            f"a network of {form.toolkit} over {guess.name}, whose dilated shortcuts have no pool there, but a 2x2 "
            "pool in timm; segkit supports only timm's"
        )
