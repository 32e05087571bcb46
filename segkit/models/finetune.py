"""Starts a network from another one's weights, by name and shape, and its classifier's rows by class name."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from segkit.errors import InputError
from segkit.metadata.label_space import numbered_space
from segkit.models.checkpoint import is_counter, refuse_unusable
from segkit.models.decoders import encoder_stride
from segkit.models.norms import without_absent_statistics
from segkit.models.resnest import ResNeSt
from segkit.models.segmentation import SegmentationModel
from segkit.models.toolkits.foreign import TIMM_PREFIX
from segkit.models.weights import adapt_input, inspect, load_encoder_weights
from segkit.text import listed

_SHOWN = 3  # names in a line of the report


@dataclass(frozen=True)
class MatchReport:
    """The tensors that a network took from a file. Counts and names leave out the counters of batch norms.

    Attributes:
        source: The file.
        taken: Number of the network's tensors that were taken whole.
        total: Number of the network's tensors.
        kept: Names of the classes whose rows of the head's classifier were taken.
        fresh: Names of the classes whose rows keep their initial values; "class 0", ... if the network has no names.
        reason: Why all rows keep their initial values, or "".
        missing: Tensors of the network that keep their initial values, except classifiers.
        unused: Tensors of the file that fit nowhere, except classifiers.
        warnings: Descriptions of weights that fit but do not mean the same.
        adapted: Descriptions of what was taken after a change.
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
    adapted: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Two to five lines: tensors, classes, what was adapted, what did not fit, warnings."""
        lines = [f"{self.source}: {self.taken} of {self.total} tensors taken", f"classifier: {self._classes()}"]
        lines += self.adapted
        parts = [("of the network start afresh", self.missing), ("of the file are not used", self.unused)]
        misfits = [f"{len(names)} {what} ({listed(names, _SHOWN)})" for what, names in parts if names]
        lines += [f"did not fit: {'; '.join(misfits)}"] if misfits else []
        lines += [f"warning: {'; '.join(self.warnings)}"] if self.warnings else []
        return "\n".join(lines)

    def _classes(self) -> str:
        if self.reason:
            return f"all {len(self.fresh)} classes start afresh: {self.reason}"
        anew = f"; {len(self.fresh)} start afresh ({listed(self.fresh, _SHOWN)})" if self.fresh else ""
        kept = listed(self.kept, _SHOWN)
        return f"{len(self.kept)} of {len(self.kept) + len(self.fresh)} classes kept by name ({kept}){anew}"


def load_matching(
    network: SegmentationModel,
    path: str | Path,
    class_names: Sequence[str] | None = None,
    file_names: Sequence[str] = (),
) -> MatchReport:
    """Copy fitting tensors into a network from any weight file that segkit reads, of a whole network or an encoder.

    Tensors are copied if name and shape agree; RGB weights are adapted to other bands, as `adapt_input` does. In the
    classifiers of head and auxiliary head, the rows of classes with the same name (ignoring case and surrounding
    blanks) are copied to their place in the network. Other rows keep their initial values; all do if the rest of the
    head does not fit or the names are unknown.

    Args:
        network: The network, changed in place; left unchanged on an error.
        path: The weight file.
        class_names: K names of the network's classes. None, or numbered names ("class 0", ...), match no class.
        file_names: Names of the file's classes, for one that lacks them.

    Raises:
        InputError: The file cannot be read, no convolution of its encoder fits, or there are not K names.
    """
    if class_names is not None and len(class_names) != network.num_classes:
        raise InputError(
            f"class_names: {len(class_names)} names for a network of {network.num_classes} classes; give one per class"
        )
    adapted: list[str] = []
    offer = _read(network, path, file_names, adapted.append)
    own = network.state_dict()  # shares memory with the network
    offer = replace(offer, weights=adapt_input(offer.weights, own, adapted.append))
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
        adapted=tuple(adapted),
    )


@dataclass(frozen=True)
class _Offer:
    """The weights that a file offers.

    Attributes:
        weights: The tensors, under the network's names if it has them.
        what: The network or encoder, in words.
        class_names: The result of `_named`.
        arguments: The file's network's constructor arguments; empty for an encoder alone.
    """

    weights: dict[str, Tensor]
    what: str
    class_names: tuple[str, ...] = ()
    arguments: Mapping[str, Any] = field(default_factory=dict)


def _read(
    network: SegmentationModel, path: str | Path, file_names: Sequence[str], say: Callable[[str], None]
) -> _Offer:
    try:
        found = inspect(path)
    except InputError as error:
        return _other_encoder(network, path, error, say)
    refuse_unusable(found.unusable, str(path))
    if not found.is_network:
        prefix = "encoder." if isinstance(network.encoder, ResNeSt) else f"encoder.{TIMM_PREFIX}"
        weights = {prefix + name: tensor for name, tensor in found.weights.items()}
        return _Offer(without_absent_statistics(network, weights), f"an encoder ({found.config['name']})")
    arguments = found.config["init_args"]
    names = (found.label_space or {}).get("class_names") or file_names
    return _Offer(
        weights=without_absent_statistics(network, found.weights),
        what=f"{found.config['class_path'].rsplit('.', 1)[-1]} over {arguments.get('encoder', 'its own')}",
        class_names=_named(names) if len(names) == arguments.get("num_classes", arguments.get("classes")) else (),
        arguments=arguments,
    )


def _other_encoder(
    network: SegmentationModel, path: str | Path, error: InputError, say: Callable[[str], None]
) -> _Offer:
    """Read an encoder's file that has none of the known formats but fits the network's own encoder.

    Raises:
        InputError: `error`, if it does not fit.
    """
    try:
        load_encoder_weights(network.encoder, path, say)
    except InputError:
        raise error from None
    weights = {f"encoder.{name}": tensor for name, tensor in network.encoder.state_dict().items()}
    return _Offer(weights, f"an encoder ({_encoder(network)})")


def _named(names: Sequence[str] | None) -> tuple[str, ...]:
    """Class names in one spelling; none if they are only numbers."""
    if not names or tuple(names) == numbered_space(len(names)).class_names:
        return ()
    return tuple(name.strip().casefold() for name in names)


def _same_names(theirs: Sequence[str], ours: Sequence[str]) -> dict[int, int]:
    """Map our rows to theirs; a name that they have twice maps to its first row."""
    places = {name: row for row, name in reversed(list(enumerate(theirs)))}
    return {row: places[name] for row, name in enumerate(ours) if name in places}


def _classifiers(network: SegmentationModel) -> tuple[str, ...]:
    """Names of the weight and bias of each head's last convolution."""
    names: list[str] = []
    for prefix in ("head", "aux_head"):
        head = getattr(network, prefix)
        convs = [name for name, m in head.named_modules() if isinstance(m, nn.Conv2d)] if head is not None else []
        names += [f"{prefix}.{conv}.{part}" for conv in convs[-1:] for part in ("weight", "bias")]
    if not names:  # a network of the user's own is all encoder
        convs = [name for name, m in network.named_modules() if isinstance(m, nn.Conv2d)]
        names = [f"{conv}.{part}" for conv in convs[-1:] for part in ("weight", "bias")]
    return tuple(names)


def _head_fits(
    own: Mapping[str, Tensor], classifier: str, theirs: Mapping[str, Tensor], whole: Mapping[str, Tensor]
) -> bool:
    """Whether a classifier is in the file and every other convolution of its head was taken.

    A row means nothing on top of other features, even if it has the same length.
    """
    prefix, layer = classifier.split(".")[0], classifier.rsplit(".", 1)[0]
    others = [n for n in own if n.startswith(f"{prefix}.") and own[n].dim() == 4 and not n.startswith(f"{layer}.")]
    return (
        classifier in theirs
        and theirs[classifier].shape[1:] == own[classifier].shape[1:]
        and all(name in whole for name in others)
    )


def _require_encoder(network: SegmentationModel, offer: _Offer, whole: Mapping[str, Tensor], path: str | Path) -> None:
    # Norms of different encoders may fit by chance, and counters always fit; convolutions do not.
    if not any(name.startswith("encoder.") and tensor.dim() == 4 for name, tensor in whole.items()):
        raise InputError(
            f"{path}: holds {offer.what}, none of whose convolutions fits the network's encoder, {_encoder(network)}; "
            "give weights of that encoder, or build the network with the file's"
        )


def _why_anew(offer: _Offer, class_names: Sequence[str] | None, head_fits: bool) -> str:
    if not offer.arguments:
        return "the file holds only an encoder"
    if not head_fits:
        return f"the file's head is a different one ({offer.what})"
    if not offer.class_names:
        return "the file has no class names"
    if not _named(class_names):
        return "the network's classes have no names"
    return f"none of them is among the file's ({listed(offer.class_names, _SHOWN)})"


def _warnings(network: SegmentationModel, offer: _Offer) -> tuple[str, ...]:
    theirs, ours = (args.get("dilation_convention") for args in (offer.arguments, network.config["init_args"]))
    dilated = network.output_stride < 32 and encoder_stride(offer.arguments) < 32
    if not (dilated and isinstance(network.encoder, ResNeSt) and theirs != ours):
        return ()
    return (
        f"the file's encoder was dilated with the convention {theirs!r} and the network's is with {ours!r}, so the "
        f"same weights give different features: set dilation_convention: {theirs}",
    )


def _encoder(network: SegmentationModel) -> str:
    return str(network.config["init_args"].get("encoder", network.config["class_path"]))


def _uncounted(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(name for name in names if not is_counter(name))
