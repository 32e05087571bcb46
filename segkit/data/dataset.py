"""Pairs of picture and label map as a map-style dataset of uint8 tensors."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NotRequired, TypedDict

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from segkit.data.transforms import Pipeline, reseed
from segkit.errors import InputError
from segkit.io import read_image, read_label
from segkit.metadata.label_space import LabelSpace

UInt8Array = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Sample:
    """One picture. `name` is its path below the split's image folder without extension, '/' kept."""

    image: Path
    mask: Path | None
    name: str


class Item(TypedDict):
    """What the dataset yields; stacked, it is the batch.

    `image` uint8 (3, H, W) RGB, not normalised; `mask` uint8 (H, W) train ids, 255 = ignore, absent where the sample
    has none; `name` the sample's.
    """

    image: Tensor
    mask: NotRequired[Tensor]
    name: str


class SampleError(InputError):
    """An InputError about one file that stays one line when a loader worker passes it on.

    The loader builds the exception again from the worker's whole traceback; only its last line is the message.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message.rstrip().rsplit("SampleError: ", 1)[-1])


class SegmentationDataset(Dataset[Item]):
    """Reads, maps, transforms; see `Item` for what comes out.

    The randomness of a sample is a pure function of (seed, epoch, index): workers and ranks do not matter.

    Args:
        samples: What to read.
        label_space: Maps raw label values to train ids, before the transform, so that padding is 255.
        transform: An albumentations pipeline, or None for the picture at its own size.
        seed: Of the random transforms.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        label_space: LabelSpace,
        transform: Pipeline | None = None,
        seed: int = 0,
    ) -> None:
        self.samples = samples
        self.label_space = label_space
        self.transform = transform
        self.seed = seed

    def __len__(self) -> int:
        """The number of pictures."""
        return len(self.samples)

    def __getitem__(self, key: int | tuple[int, int]) -> Item:
        """The sample of `key`: an index, or (index, epoch) as `TrainSampler` gives it.

        Raises:
            SampleError: A file is unreadable, sizes disagree, or a raw label value is undeclared.
        """
        index, epoch = key if isinstance(key, tuple) else (key, 0)
        try:
            return self._load(index, epoch)
        except InputError as error:
            raise SampleError(str(error)) from None

    def _load(self, index: int, epoch: int) -> Item:
        sample = self.samples[index]
        image = read_image(sample.image)  # EXIF not applied: masks carry no such tag
        if sample.mask is None:
            return {"image": _to_chw(image), "name": sample.name}
        mask = self.label_space.map_labels(read_label(sample.mask), str(sample.mask))
        if image.shape[:2] != mask.shape:
            raise InputError(
                f"{sample.image} is {image.shape[1]}x{image.shape[0]} but its mask {sample.mask} is "
                f"{mask.shape[1]}x{mask.shape[0]}; export both at the same size"
            )
        if self.transform is not None:
            image, mask = self._augment(image, mask, (self.seed, epoch, index))
        return {"image": _to_chw(image), "mask": torch.from_numpy(np.ascontiguousarray(mask)), "name": sample.name}

    def _augment(self, image: UInt8Array, mask: UInt8Array, key: tuple[int, int, int]) -> tuple[UInt8Array, UInt8Array]:
        assert self.transform is not None
        reseed(self.transform, *key)
        out = self.transform(image=image, mask=mask)
        image, mask = out["image"], out["mask"]
        for array in (image, mask):
            if getattr(array, "dtype", None) != np.uint8:
                made = getattr(array, "dtype", type(array).__name__)
                raise InputError(
                    f"the augmentations made {made} of uint8 pictures; batches stay uint8 and are normalised on the "
                    "device: leave out Normalize, ToFloat and ToTensorV2"
                )
        if image.shape[:2] != mask.shape:
            raise InputError(
                f"the augmentations made an image of {image.shape[:2]} and a mask of {mask.shape}; "
                "use transforms that treat both alike"
            )
        return image, mask


def _to_chw(image: UInt8Array) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))  # (H, W, 3) -> (3, H, W)
