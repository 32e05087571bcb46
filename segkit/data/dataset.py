"""Pairs of image and mask as a map-style dataset of tensors, integers as stored, and their collation into batches."""

from collections.abc import Callable, Sequence
from typing import NotRequired, TypeAlias, TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from segkit.arrays import UInt8Array
from segkit.bands import BandArray
from segkit.data.layout.base import Sample
from segkit.data.samplers import Draw
from segkit.data.transforms import TrainTransform
from segkit.errors import InputError

Reader: TypeAlias = Callable[[Sample], tuple[BandArray, UInt8Array | None]]


class Item(TypedDict):
    """What the dataset yields; collated, it is the batch.

    `image` uint8 (3, H, W) RGB, or the data's bands (C, H, W), uint8, uint16 or float32, not normalised; `mask` uint8
    (H, W) train ids, 255 = ignore, absent if the sample has none; `name` the sample's. Images stay in memory as they
    were decoded, channels last, and so do batches.
    """

    image: Tensor
    mask: NotRequired[Tensor]
    name: str


class SampleError(InputError):
    """An InputError about one file that stays one line when a loader's worker raises it.

    The loader rebuilds the exception from the worker's whole traceback, of which only the last line is the message.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message.rstrip().rsplit("SampleError: ", 1)[-1])


class SegmentationDataset(Dataset[Item]):
    """Reads and transforms samples; yields `Item`s.

    The randomness of a sample is a pure function of (seed, epoch, index, repetition): workers and ranks do not matter.

    Args:
        samples: Samples to read.
        read: Returns image and train ids of a sample: a `PairReader` or `Cache.read`.
        transform: The training transform, or None for the image at its own size.
        seed: Seed of the random transforms.
    """

    def __init__(
        self, samples: Sequence[Sample], read: Reader, transform: TrainTransform | None = None, seed: int = 0
    ) -> None:
        self.samples = samples
        self.read = read
        self.transform = transform
        self.seed = seed

    def __len__(self) -> int:
        """The number of images."""
        return len(self.samples)

    def __getitem__(self, key: int | Draw) -> Item:
        """The sample at an index, or for a `Draw` of `TrainSampler`.

        Raises:
            SampleError: A file is unreadable, sizes disagree, or a raw label value is undeclared.
        """
        try:
            return self._load(key if isinstance(key, Draw) else Draw(key))
        except InputError as error:
            raise SampleError(str(error)) from None

    def _load(self, draw: Draw) -> Item:
        sample = self.samples[draw.index]
        image, mask = self.read(sample)
        if self.transform is not None and mask is not None:
            key = (self.seed, draw.epoch, draw.index, draw.repeat)
            image, mask = self.transform(image, mask, key, draw.wanted_class)
        item: Item = {"image": _tensor(image).permute(2, 0, 1), "name": sample.name}  # (H, W, C) -> (C, H, W)
        if mask is not None:
            item["mask"] = _tensor(mask)
        return item


def collate(items: Sequence[Item]) -> dict[str, object]:
    """Stack items into a batch; images stay channels last, as the network expects, so that nothing is transposed."""
    rows = [{**item, "image": item["image"].permute(1, 2, 0)} for item in items]
    batch: dict[str, object] = default_collate(rows)
    image = batch["image"]
    assert isinstance(image, Tensor)
    batch["image"] = image.permute(0, 3, 1, 2)  # (B, H, W, C) -> (B, C, H, W)
    return batch


def _tensor(array: BandArray) -> Tensor:
    """A tensor that shares the array's memory, or a copy if the array is a read-only view of a cache."""
    own = array if array.flags.writeable and array.flags.c_contiguous else np.array(array, order="C")
    return torch.from_numpy(own)
