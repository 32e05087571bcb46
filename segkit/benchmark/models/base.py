"""The interface of a model of any kind for scoring, and the conversion of its output into labels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from segkit.bands import BandArray
from segkit.errors import InputError
from segkit.inference.segmenter import Segmenter
from segkit.metadata.label_space import IGNORE_INDEX
from segkit.ops.upsample_argmax import upsample_argmax


class JudgedModel(ABC):
    """A model of any kind: an image in, labels in its own numbers out, in two steps of which the second is timed.

    Attributes:
        name: What to call it in messages: its file, id or function.
        class_names: By its own numbers; () where it has none.
        num_classes: Their number; None where only the labels could tell.
        preprocessing: What it does with an image before the network, as plain data for the row, in words or numbers.
        device: Where it runs; it is waited for at both ends of a timing.
        is_timed: Whether labelling takes a network's time.
        network: The network, whose parameters and FLOPs are counted; None where there is none to look into.
        segmenter: What runs it by any protocol; None where the model sees images in its own way.
    """

    class_names: tuple[str, ...] = ()
    num_classes: int | None = None
    network: nn.Module | None = None
    is_timed: ClassVar[bool] = True
    segmenter: Segmenter | None = None

    def __init__(self, name: str, preprocessing: Mapping[str, Any], device: torch.device | str = "cpu") -> None:
        self.name, self.preprocessing, self.device = name, dict(preprocessing), torch.device(device)

    @abstractmethod
    def prepare(self, image: BandArray, name: str) -> Any:
        """Preprocess one image; not timed.

        Args:
            image: uint8 RGB (H, W, 3), or the data's bands (H, W, C).
            name: Of the image in the data set.

        Raises:
            InputError: It cannot be.
        """

    @abstractmethod
    def label(self, prepared: Any, size: tuple[int, int]) -> Tensor:
        """Label what `prepare` made of one image; timed.

        Returns:
            Integers (H, W) of `size`, on any device: the model's own numbers, or 255 = no class.

        Raises:
            InputError: What the model returns is neither labels nor logits of the image.
        """

    def labels(self, image: BandArray, name: str) -> Tensor:
        """Prepare and label one image; see `prepare` and `label`."""
        return self.label(self.prepare(image, name), (image.shape[0], image.shape[1]))

    def expect(self, names: Sequence[str]) -> None:
        """Be told the images to come, by name, before the first of them.

        Raises:
            InputError: There are none of the labels of some.
        """
        return

    def read(self, output: Any, size: tuple[int, int], align: bool = False) -> Tensor:
        """`labels_of` what the model returned; the first logits tell the number of classes where nothing else does."""
        labels, count = labels_of(output, size, self.name, self.num_classes, align)
        self.num_classes = self.num_classes or count
        return labels

    def variants(self) -> Mapping[str, JudgedModel]:
        """The model with another preprocessing that may be the right one, by what that would mean."""
        return {}


class Altered(JudgedModel):
    """A model that gets its images changed; by default, with the channels in reverse order."""

    def __init__(self, model: JudgedModel, change: Callable[[BandArray], BandArray] | None = None) -> None:
        super().__init__(model.name, model.preprocessing, model.device)
        self.model, self._change = model, change or (lambda image: np.ascontiguousarray(image[..., ::-1]))

    def prepare(self, image: BandArray, name: str) -> Any:
        """See base class."""
        return self.model.prepare(self._change(image), name)

    def label(self, prepared: Any, size: tuple[int, int]) -> Tensor:
        """See base class."""
        return self.model.label(prepared, size)


def labels_of(
    output: Any, size: tuple[int, int], name: str, num_classes: int | None, align: bool = False
) -> tuple[Tensor, int | None]:
    """Convert the output of any model for one image into labels.

    Args:
        output: Integer labels (H, W), or floating point logits (K, h, w), which are resized bilinearly; a batch of one
            of either, as a tensor or an array.
        size: (H, W) of the image.
        name: Of the model, for messages.
        num_classes: K; None: not known.
        align: `align_corners` of the resizing.

    Returns:
        Integers (H, W), and the number of logits, or None.

    Raises:
        InputError: It is neither, not of the image's size or classes, or not finite.
    """
    found = torch.from_numpy(np.ascontiguousarray(output)) if isinstance(output, np.ndarray) else output
    if not isinstance(found, Tensor):
        raise InputError(f"{name}: returned {type(output).__name__}; {_WANTED}")
    shape = f"{str(found.dtype).removeprefix('torch.')} {tuple(found.shape)}"
    is_logits = found.is_floating_point()
    if found.ndim == 3 + is_logits and len(found) == 1:
        found = found[0]
    if found.dtype == torch.bool or found.is_complex() or found.ndim != 2 + is_logits or not found.numel():
        raise InputError(f"{name}: returned {shape} for an image of {size[0]} x {size[1]} pixels; {_WANTED}")
    if is_logits:
        if num_classes is not None and len(found) != num_classes:
            raise InputError(f"{name}: returned logits {shape}, but has {num_classes} classes; {_WANTED}")
        if not bool(found.isfinite().all()):
            raise InputError(f"{name}: returned NaN or infinite logits; look at its preprocessing and precision")
        return upsample_argmax(found[None], size, align)[0], len(found)
    if tuple(found.shape) != tuple(size):
        raise InputError(
            f"{name}: returned labels {shape} for an image of {size[0]} x {size[1]} pixels; resize them by nearest "
            "neighbour to the image's own size, or return the logits"
        )
    return found, None


def in_data_ids(labels: Tensor, table: Tensor, name: str, image: str) -> Tensor:
    """The data's train ids for a model's own numbers.

    Args:
        labels: Integers (H, W).
        table: uint8 (K,) on the labels' device, see `segkit.metadata.class_match.ClassMatch`.
        name: Of the model, for messages.
        image: Name of the image, likewise.

    Raises:
        InputError: A number is neither 0..K-1 nor 255.
    """
    numbers = labels.long()
    outside = (numbers < 0) | ((numbers >= len(table)) & (numbers != IGNORE_INDEX))
    if bool(outside.any()):
        value = int(numbers[outside][0])
        raise InputError(
            f"{name}: labels {int((numbers == value).sum())} pixels of {image} {value}, but its classes are "
            f"0..{len(table) - 1} (255: none); if they are the raw values of the data's masks, say so: --classes raw"
        )
    return torch.where(numbers < len(table), table[numbers.clamp(max=len(table) - 1)], IGNORE_INDEX)


_WANTED = "needed are integer labels (H, W), or floating point logits (K, h, w), of one image"
