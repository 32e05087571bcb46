"""Compares the parameters of a file with those of a network, name by name."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from segkit.errors import InputError
from segkit.models.checkpoint import is_counter, mismatch

Shape = tuple[int, ...]


@dataclass(frozen=True)
class KeyReport:
    """How each name of the file ("theirs") was matched with one of the network ("ours").

    Attributes:
        same: Names that matched unchanged.
        renamed: Their names that matched, mapped to ours.
        dropped: Their names of an ImageNet classifier, which no segmentation network has.
        filled: Our names of batch norm counters that the file lacks; they are zero, and no output depends on them.
        missing: Our names that are not in the file.
        unexpected: Their names that are not in the network.
        clashing: Their names, mapped to (shape in the file, shape in the network).
    """

    same: tuple[str, ...]
    renamed: dict[str, str]
    dropped: tuple[str, ...]
    filled: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    clashing: dict[str, tuple[Shape, Shape]]

    def require_match(self, source: str, allowed: Sequence[str] = ()) -> None:
        """Refuse names that did not match, except those that fit a shell pattern of `allowed`.

        Raises:
            InputError: Names are missing, unexpected or of another shape; the message counts each kind.
        """

        def left(names: Iterable[str]) -> list[str]:
            return [name for name in names if not any(fnmatchcase(name, pattern) for pattern in allowed)]

        shapes = self.clashing
        misshapen = [f"{n} {shapes[n][0]} where {shapes[n][1]} is needed" for n in left(shapes)]
        problems = mismatch(left(self.missing), left(self.unexpected), misshapen)
        if problems:
            raise InputError(
                f"{source}: {problems}; `segkit weights inspect` lists them, and "
                "`segkit weights convert --allow_unmatched PATTERN` accepts those whose names fit a pattern"
            )


def place(
    theirs: Mapping[str, Tensor], names: Mapping[str, str], ours: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], KeyReport]:
    """Put the file's tensors under the network's names.

    Args:
        theirs: The file's tensors.
        names: Their names, mapped to ours, where there is a counterpart.
        ours: The network's parameters and buffers; they may be on the meta device.

    Returns:
        The tensors that fit, under the network's names and in its dtypes, with counters filled in; and the report.
    """
    fitting: dict[str, Tensor] = {}
    renamed: dict[str, str] = {}
    clashing: dict[str, tuple[Shape, Shape]] = {}
    dropped, unexpected = [], []
    left = set(ours)
    for name, tensor in theirs.items():
        target = names.get(name, name)
        if target.startswith(("encoder.fc.", "encoder.encoder.model.fc.")) and target not in ours:
            dropped.append(name)
        elif target not in left:
            unexpected.append(name)
        else:
            renamed[name] = target
            left.remove(target)
            if tensor.shape != ours[target].shape:
                clashing[name] = (tuple(tensor.shape), tuple(ours[target].shape))
            else:
                fitting[target] = tensor if tensor.is_complex() else tensor.to(ours[target].dtype)
    filled = [name for name in ours if name in left and is_counter(name)]
    fitting |= {name: torch.zeros((), dtype=torch.int64) for name in filled}
    matched = {name: target for name, target in renamed.items() if name not in clashing}
    return fitting, KeyReport(
        same=tuple(name for name, target in matched.items() if name == target),
        renamed={name: target for name, target in matched.items() if name != target},
        dropped=tuple(dropped),
        filled=tuple(filled),
        missing=tuple(name for name in ours if name in left and not is_counter(name)),
        unexpected=tuple(unexpected),
        clashing=clashing,
    )
