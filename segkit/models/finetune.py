"""Starting a network from another one's weights: what fits by name and shape, and a classifier's rows by class name."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from segkit.errors import InputError
from segkit.metadata.label_space import numbered_space
from segkit.models.checkpoint import is_counter, refuse_unusable
from segkit.models.norms import without_absent_statistics
from segkit.models.resnest import ResNeSt
from segkit.models.segmentation import SegmentationModel
from segkit.models.toolkits.foreign import TIMM_PREFIX
from segkit.models.weights import inspect, load_encoder_weights
from segkit.text import listed

_SHOWN = 3  # names in a line of the report


@dataclass(frozen=True)
class MatchReport:
    """What a network took from a file. Batch norms' counters are in none of these numbers and names.

    Attributes:
        source: The file.
        taken: Tensors of the network that were taken whole.
        total: Tensors of the network.
        kept: Classes whose rows of the head's classifier were taken, by name.
        fresh: Classes whose rows keep their initial values; "class 0", ... where the network's have no names.
        reason: Why all of them do, or "".
        missing: Tensors of the network that keep their initial values, classifiers left out.
        unused: Tensors of the file that fit nowhere, classifiers left out.
        warnings: What fits and is yet not the same, in words.
    """

    source: str
    taken: int
    total: int
    kept: tuple[str, ...]
    fresh: tuple[str, ...]
    reason: str = ""
    missing: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Two to four lines: tensors, classes, what did not fit, warnings."""
        lines = [f"{self.source}: {self.taken} of {self.total} tensors taken", f"classifier: {self._classes()}"]
        parts = [("of the network start anew", self.missing), ("of the file are not used", self.unused)]
        misfits = [f"{len(names)} {what} ({listed(names, _SHOWN)})" for what, names in parts if names]
        lines += [f"did not fit: {'; '.join(misfits)}"] if misfits else []
        lines += [f"warning: {'; '.join(self.warnings)}"] if self.warnings else []
        return "\n".join(lines)

    def _classes(self) -> str:
        if self.reason:
            return f"all {len(self.fresh)} classes start anew: {self.reason}"
        anew = f"; {len(self.fresh)} start anew ({listed(self.fresh, _SHOWN)})" if self.fresh else ""
        kept = listed(self.kept, _SHOWN)
        return f"{len(self.kept)} of {len(self.kept) + len(self.fresh)} classes kept by name ({kept}){anew}"


def load_matching(
    network: SegmentationModel, path: str | Path, class_names: Sequence[str] | None = None
) -> MatchReport:
    """Copy into a network what fits of any weight file that segkit reads, of a whole network or of an encoder.

    Tensors are copied where name and shape agree. Of the classifiers, in head and auxiliary head, the rows of classes
    of the same name (but for case and surrounding blanks) are copied to their place in the network. Other rows keep
    their initial values, and all do where the rest of the head does not fit, or where names are not known.

    Args:
        network: Changed in place; not at all if there is an error.
        path: The file.
        class_names: The network's classes, K names. None, or numbered ones ("class 0", ...), say nothing of them.

    Raises:
        InputError: The file cannot be read, no convolution of its encoder fits, or there are not K names.
    """
    if class_names is not None and len(class_names) != network.num_classes:
        raise InputError(
            f"class_names: {len(class_names)} names for a network of {network.num_classes} classes; give one each"
        )
    offer = _read(network, path)
    own = network.state_dict()  # shares memory with the network
    classifiers = _classifiers(network)
    whole = {
        name: t
        for name, t in offer.weights.items()
        if name not in classifiers and name in own and own[name].shape == t.shape
    }
    _require_encoder(network, offer, whole, path)
    heads = [name for name in classifiers if _head_fits(own, name, offer.weights, whole)]
    rows = _same_names(offer.class_names, _named(class_names))
    with torch.no_grad():
        for name, tensor in whole.items():
            own[name].copy_(tensor)
        for name in heads:
            own[name][list(rows)] = offer.weights[name][list(rows.values())].to(own[name])
    taken = {*whole, *(heads if len(rows) == network.num_classes else ())}
    if classifiers[0] not in heads:
        rows = {}
    names = class_names or numbered_space(network.num_classes).class_names
    return MatchReport(
        source=str(path),
        taken=len(_uncounted(taken)),
        total=len(_uncounted(own)),
        kept=tuple(names[row] for row in rows),
        fresh=tuple(name for row, name in enumerate(names) if row not in rows),
        reason="" if rows else _why_anew(offer, class_names, classifiers[0] in heads),
        missing=_uncounted(name for name in own if name not in taken and name not in classifiers),
        unused=_uncounted(name for name in offer.weights if name not in taken and name not in classifiers),
        warnings=_warnings(network, offer),
    )


@dataclass(frozen=True)
class _Offer:
    """What a file has.

    Attributes:
        weights: Under the network's names, where it has them.
        what: The network or encoder, in words.
        class_names: As `_named` returns them.
        arguments: Of the whole network that the file is of; empty of an encoder.
    """

    weights: dict[str, Tensor]
    what: str
    class_names: tuple[str, ...] = ()
    arguments: Mapping[str, Any] = field(default_factory=dict)


def _read(network: SegmentationModel, path: str | Path) -> _Offer:
    try:
        found = inspect(path)
    except InputError as error:
        return _other_encoder(network, path, error)
    refuse_unusable(found.unusable, str(path))
    if not found.is_network:
        prefix = "encoder." if isinstance(network.encoder, ResNeSt) else f"encoder.{TIMM_PREFIX}"
        weights = {prefix + name: tensor for name, tensor in found.weights.items()}
        return _Offer(without_absent_statistics(network, weights), f"an encoder ({found.config['name']})")
    arguments = found.config["init_args"]
    names = (found.label_space or {}).get("class_names") or ()
    return _Offer(
        weights=without_absent_statistics(network, found.weights),
        what=f"{found.config['class_path'].rsplit('.', 1)[-1]} over {arguments['encoder']}",
        class_names=_named(names) if len(names) == arguments["num_classes"] else (),
        arguments=arguments,
    )


def _other_encoder(network: SegmentationModel, path: str | Path, error: InputError) -> _Offer:
    """An encoder's file in none of the formats: it is loaded if it is of the network's own encoder.

    Raises:
        InputError: `error`, if it is not.
    """
    try:
        load_encoder_weights(network.encoder, path)
    except InputError:
        raise error from None
    weights = {f"encoder.{name}": tensor for name, tensor in network.encoder.state_dict().items()}
    return _Offer(weights, f"an encoder ({_encoder(network)})")


def _named(names: Sequence[str] | None) -> tuple[str, ...]:
    """Class names in one spelling; none where they are numbers only."""
    if not names or tuple(names) == numbered_space(len(names)).class_names:
        return ()
    return tuple(name.strip().casefold() for name in names)


def _same_names(theirs: Sequence[str], ours: Sequence[str]) -> dict[int, int]:
    """Our row -> their row, the first where they have a name twice."""
    places = {name: row for row, name in reversed(list(enumerate(theirs)))}
    return {row: places[name] for row, name in enumerate(ours) if name in places}


def _classifiers(network: SegmentationModel) -> tuple[str, ...]:
    """Names of weight and bias of the last convolution of each head."""
    names: list[str] = []
    for prefix in ("head", "aux_head"):
        head = getattr(network, prefix)
        convs = [name for name, m in head.named_modules() if isinstance(m, nn.Conv2d)] if head is not None else []
        names += [f"{prefix}.{conv}.{part}" for conv in convs[-1:] for part in ("weight", "bias")]
    return tuple(names)


def _head_fits(
    own: Mapping[str, Tensor], classifier: str, theirs: Mapping[str, Tensor], whole: Mapping[str, Tensor]
) -> bool:
    """Whether a classifier is in the file and each other convolution of its head was taken.

    A row means nothing over other features, even where it has the same length.
    """
    prefix, layer = classifier.split(".")[0], classifier.rsplit(".", 1)[0]
    others = [n for n in own if n.startswith(f"{prefix}.") and own[n].dim() == 4 and not n.startswith(f"{layer}.")]
    return (
        classifier in theirs
        and theirs[classifier].shape[1:] == own[classifier].shape[1:]
        and all(name in whole for name in others)
    )


def _require_encoder(network: SegmentationModel, offer: _Offer, whole: Mapping[str, Tensor], path: str | Path) -> None:
    # Norms fit by chance between encoders of other widths, and counters always: convolutions do not.
    if not any(name.startswith("encoder.") and tensor.dim() == 4 for name, tensor in whole.items()):
        raise InputError(
            f"{path}: holds {offer.what}, of which no convolution fits the network's encoder, {_encoder(network)}; "
            "give weights of that encoder, or build the network over the file's"
        )


def _why_anew(offer: _Offer, class_names: Sequence[str] | None, head_fits: bool) -> str:
    if not offer.arguments:
        return "the file holds an encoder only"
    if not head_fits:
        return f"the file's head is another one ({offer.what})"
    if not offer.class_names:
        return "the file has no class names"
    if not _named(class_names):
        return "the network's classes have no names"
    return f"none of them is among the file's ({listed(offer.class_names, _SHOWN)})"


def _warnings(network: SegmentationModel, offer: _Offer) -> tuple[str, ...]:
    theirs, ours = (args.get("dilation_convention") for args in (offer.arguments, network.config["init_args"]))
    dilated = network.output_stride < 32 and offer.arguments.get("output_stride", 32) < 32
    if not (dilated and isinstance(network.encoder, ResNeSt) and theirs != ours):
        return ()
    return (
        f"the file's encoder was dilated as {theirs} do and the network's is as {ours} do, so that the same weights "
        f"give other features: set dilation_convention: {theirs}",
    )


def _encoder(network: SegmentationModel) -> str:
    return str(network.config["init_args"]["encoder"])


def _uncounted(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(name for name in names if not is_counter(name))
