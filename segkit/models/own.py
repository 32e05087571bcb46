"""A user's own network: any `torch.nn.Module` that satisfies the contract of `OwnNetwork`, without subclassing."""

import inspect
import json
import pydoc
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from segkit.errors import InputError, did_you_mean, one_line
from segkit.models.encoders import padded_to
from segkit.models.segmentation import NETWORKS, SegmentationModel, class_path
from segkit.ops.meta import meta_image, on_meta

CLASS_COUNTS = ("num_classes", "classes")  # arguments that the data fills in

_ARGUMENTS = "_arguments_of_segkit"  # the attribute of a module that keeps its constructor's arguments

_MULTIPLES = (1, 2, 4, 8, 16, 32, 64, 128)  # multiples that a network may require of an image's sides
_SIDE = 256


class OwnNetwork(SegmentationModel):
    """Wraps a user's module as the network that is trained, tested, exported and run.

    The contract: the module maps a normalised float image `(B, C, H, W)` to logits `(B, K, h, w)`, or to a mapping with
    them as "out" and, in training, further logits as "aux". K is the number of classes, the same for every image; h
    and w are H and W, or a whole fraction of both, because they are upsampled afterwards (with its attribute
    `align_corners`, False if it has none). If it requires sides that are multiples of 2, 4, ... 128, images are padded
    at the right and bottom with zeros, the mean colour, and the logits cropped. All of this is found by running it on
    images without values. Its constructor's arguments must be plain data; `num_classes` (or `classes`) and
    `in_channels` are filled in from the data, if it has them. All parameters learn at `model.optim.lr`,
    whatever `head_lr_mult` is.

    A weight file records the class, but never imports it: the user names it (`--network my.module.Net`, in Python
    `segkit.load(path, network=Net)`).

    Raises:
        InputError: The module breaks the contract; the message says where.
    """

    own_class: ClassVar[type[nn.Module]]

    def __init__(self, **arguments: Any) -> None:
        self.stand_around(build_module(self.own_class, arguments), arguments)

    def stand_around(self, module: nn.Module, arguments: dict[str, Any]) -> None:
        """Set all attributes; `arguments` are those with which the module was constructed."""
        nn.Module.__init__(self)
        name = class_path(type(self))
        try:
            json.dumps(arguments)
        except (TypeError, ValueError) as error:
            raise InputError(f"network {name}: no file can keep its arguments ({error}); give plain data") from error
        self.config = {"class_path": name, "init_args": arguments}
        self.encoder, self.head, self.aux_head = module, nn.Identity(), None
        self.align_corners = bool(getattr(module, "align_corners", False))
        self.in_channels = int(arguments.get("in_channels") or _default(self.own_class, "in_channels") or 3)
        self.multiple, self.num_classes, self.output_stride = _facts(module, name, self.in_channels)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return logits at the network's own stride."""
        height, width = x.shape[-2:]
        outputs = _outputs(self.encoder(padded_to(x, self.multiple)), class_path(type(self)))
        rows, columns = -(-height // self.output_stride), -(-width // self.output_stride)
        names = ("out", "aux") if self.training else ("out",)
        return {name: outputs[name][..., :rows, :columns] for name in names if name in outputs}


del NETWORKS[class_path(OwnNetwork)]  # files name the wrapped class instead


def build_module(kind: Any, arguments: dict[str, Any]) -> nn.Module:
    """Construct a user's module, which keeps its arguments for `around`.

    Raises:
        InputError: Its constructor raises an error.
    """
    try:
        module: nn.Module = kind(**arguments)
    except InputError:
        raise
    except Exception as error:  # whatever the user's code raises
        given = ", ".join(f"{name}={value!r:.40}" for name, value in arguments.items())
        name = f"{kind.__module__}.{kind.__qualname__}"
        raise InputError(f"{name}({given}): {type(error).__name__}: {one_line(error, 200)}") from error
    object.__setattr__(module, _ARGUMENTS, arguments)
    return module


def around(module: nn.Module) -> SegmentationModel:
    """The network that wraps a module; a network of segkit is returned as it is.

    Raises:
        InputError: The module was not made by `build_module`, or breaks the contract.
    """
    if isinstance(module, SegmentationModel):
        return module
    kind, arguments = type(module), getattr(module, _ARGUMENTS, None)
    if arguments is None:
        raise InputError(
            f"network {kind.__name__}: its arguments are unknown, by which a checkpoint rebuilds it: give "
            f"own_network({kind.__name__})(...) of segkit.models.own"
        )
    network = own_network(kind).__new__(own_network(kind))
    assert isinstance(network, OwnNetwork)
    network.stand_around(module, arguments)
    return network


def own_network(given: str | type[nn.Module]) -> type[SegmentationModel]:
    """The network type that wraps a user's class; from then on weight files may refer to it, too.

    Args:
        given: The class, or its path, `my.module.Net`.

    Raises:
        InputError: There is no such class, or it is no `torch.nn.Module`.
    """
    found = imported(given, "--network") if isinstance(given, str) else given
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        cure = "give the path of one, such as my.module.Net"
        if inspect.isroutine(found):
            cure = (
                "it is a function, so wrap it: class Net(torch.nn.Module), whose __init__(self, num_classes) calls "
                "super().__init__() and self.net = FUNCTION(...), and whose forward(self, x) returns self.net(x)"
            )
        raise InputError(f"--network {given}: no class of a torch.nn.Module; {cure}")
    if SegmentationModel in found.__mro__ or found.__module__.startswith("segkit."):
        return found  # type: ignore[return-value]
    known = NETWORKS.get(class_path(found))  # type: ignore[arg-type]
    if known is not None and getattr(known, "own_class", None) is found:
        return known
    init = lambda self, **arguments: OwnNetwork.__init__(self, **arguments)  # noqa: E731  (one for each class)
    init.__signature__ = inspect.signature(found.__init__)  # type: ignore[attr-defined]
    return type(found.__name__, (OwnNetwork,), {"own_class": found, "__init__": init, "__module__": found.__module__})


def imported(path: str, where: str) -> Any:
    """What a path of the user's, `my.module.Net`, names in a module of this folder or of what is installed.

    Args:
        path: The path.
        where: The option that gave it, for messages.

    Raises:
        InputError: There is no such thing, or its module cannot be imported.
    """
    module, _, name = path.rpartition(".")
    try:
        found = pydoc.locate(path) if module else None
        inside = pydoc.locate(module) if module and found is None else None
    except pydoc.ErrorDuringImport as error:
        raise InputError(f"{where} {path}: cannot be imported: {one_line(error, 200)}") from error
    if found is None:
        hint = did_you_mean(name, dir(inside)) if inside is not None else f"there is no module {module or path!r}; "
        raise InputError(
            f"{where} {path}: no such name; {hint}it is looked for in this folder and among what is installed"
        )
    return found


def _facts(module: nn.Module, name: str, channels: int) -> tuple[int, int, int]:
    """The multiple that a module requires of an image's sides, its number of classes, and its stride."""
    shapes, error = on_meta(module), None
    for multiple in _MULTIPLES:
        sides = (
            [(_SIDE, 2 * _SIDE)]
            if multiple == _MULTIPLES[-1]
            else [(_SIDE, 2 * _SIDE), (_SIDE + multiple, _SIDE - multiple)]
        )
        try:
            with torch.no_grad():
                found = {_fact(shapes, name, channels, size, batch) for batch, size in zip((2, 1), sides, strict=False)}
        except InputError:
            raise
        except Exception as wrong:  # whatever the user's code raises
            error = wrong
            continue
        if len(found) > 1:
            raise InputError(
                f"network {name}: gives other classes or strides for another size or batch: {sorted(found)}"
            )
        return multiple, *found.pop()
    raise InputError(
        f"network {name} does not run on a float image (2, {channels}, {_SIDE}, {2 * _SIDE}): "
        f"{type(error).__name__}: {one_line(error or ValueError(), 200)}"
    )


def _fact(module: nn.Module, name: str, channels: int, size: tuple[int, int], batch: int) -> tuple[int, int]:
    """The number of classes and the stride for one image size."""
    out = _outputs(module(meta_image(module, (batch, channels, *size))), name)["out"]
    strides = [side / cells for side, cells in zip(size, out.shape[2:], strict=True)]
    if len(out) != batch or strides[0] < 1 or round(strides[0]) != round(strides[1]):
        raise InputError(
            f"network {name}: of images {(batch, channels, *size)} it makes logits {tuple(out.shape)}; needed are "
            f"({batch}, K, H / stride, W / stride) with one whole stride of 1 or more"
        )
    stride = round(strides[0])
    if tuple(out.shape[2:]) != tuple(-(-side // stride) for side in size):  # mostly due to a pooling that rounds down
        raise ValueError(f"of {size[0]} x {size[1]} pixels the last ones are in no cell of stride {stride}")
    return out.shape[1], stride


def _outputs(made: Any, name: str) -> Mapping[str, Tensor]:
    outputs = {"out": made} if isinstance(made, Tensor) else made
    if not isinstance(outputs, Mapping) or "out" not in outputs:
        raise InputError(
            f"network {name}: returns a {type(made).__name__}; needed are logits (B, K, h, w), or a dict with these as "
            "'out'"
        )
    for key in ("out", "aux"):
        value = outputs.get(key)
        if value is not None and (not isinstance(value, Tensor) or value.ndim != 4 or not value.is_floating_point()):
            shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise InputError(f"network {name}: its {key!r} is {shape}; needed are logits (B, K, h, w), floating point")
    return outputs


def _default(owner: type, name: str) -> Any:
    parameter = inspect.signature(owner.__init__).parameters.get(name)  # type: ignore[misc]
    return None if parameter is None or parameter.default is parameter.empty else parameter.default
