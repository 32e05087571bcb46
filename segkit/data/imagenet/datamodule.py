"""Loaders of ImageNet, and of other data with a class for each image."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from segkit.data.dataset import SampleError
from segkit.data.imagenet.augment import TrainCrop
from segkit.data.imagenet.crops import CentreCrop
from segkit.data.imagenet.images import ClassImage, ImageFolders
from segkit.data.loader import LoaderOptions, TrainLoader
from segkit.data.samplers import Draw, EvalSampler, TrainSampler, check_one_batch
from segkit.errors import InputError
from segkit.io import read_image


class ClassDataset(Dataset[Any]):
    """Items `image` uint8 (3, S, S) RGB, not normalised, `label` its class, and `name`.

    Args:
        samples: Images to read.
        crop: Makes an image of S x S pixels; in training, by a key that determines its randomness.
        seed: Seed of the random crops.
    """

    def __init__(self, samples: Sequence[ClassImage], crop: CentreCrop | TrainCrop, seed: int = 0) -> None:
        self.samples, self.crop, self.seed = samples, crop, seed

    def __len__(self) -> int:
        """The number of images."""
        return len(self.samples)

    def __getitem__(self, key: int | Draw) -> dict[str, Any]:
        """The item at an index, or for a `Draw` of `TrainSampler`.

        Raises:
            SampleError: The image is unreadable.
        """
        draw = key if isinstance(key, Draw) else Draw(key)
        sample = self.samples[draw.index]
        try:
            image = Image.fromarray(read_image(sample.file))
        except InputError as error:
            raise SampleError(str(error)) from None
        if isinstance(self.crop, CentreCrop):
            cropped = self.crop(image)
        else:
            cropped = self.crop(image, (self.seed, draw.epoch, draw.index, draw.repeat))
        pixels = torch.from_numpy(np.array(cropped))  # (S, S, 3)
        return {"image": pixels.permute(2, 0, 1), "label": sample.label, "name": sample.name}


class ImageNetDataModule(LoaderOptions):
    """ImageNet-1k, or any folders of images, one for each class; see `ImageFolders`.

    A batch is `image` uint8 (B, 3, S, S) RGB, `label` int64 (B,), `name` B strings. `validate` and `test` both read
    the validation images, each exactly once over all processes: the test images have no public classes.

    Args:
        root: The data set's folder, or a zip of it.
        num_classes: The required number of classes.
        batch_size: Images PER PROCESS: two GPUs with 64 train on 128.
        crop_size: Pixels of the side of a training crop, and of a test image where the protocol names no size.
        rand_augment: Operations and their strength, (2, 12) in the authors' recipe; (0, 0): none.
        color_jitter: Most by which brightness, contrast and saturation change, as a share.
        num_workers: Loader processes of each training process; None: cores / local processes, at most 8.
        seed: Seed of shuffling and augmentation.

    Attributes:
        protocol: The centre crop of validation and test, complete, to be set before they are set up.

    Raises:
        InputError: A number is out of range.
    """

    label_space = None  # pixels have no classes

    def __init__(
        self,
        root: str | os.PathLike[str],
        num_classes: int = 1000,
        batch_size: int = 64,
        crop_size: int = 224,
        rand_augment: tuple[int, int] = (2, 12),
        color_jitter: float = 0.4,
        num_workers: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(num_workers)
        least = {"num_classes": (num_classes, 1), "batch_size": (batch_size, 1), "crop_size": (crop_size, 1)}
        for name, (value, lowest) in (least | {"num_workers": (num_workers or 0, 0), "seed": (seed, 0)}).items():
            if value < lowest:
                raise InputError(f"{name} is {value}; allowed is {lowest} or more: set --data.{name}")
        self.root, self.num_classes, self.batch_size, self.seed = Path(root), num_classes, batch_size, seed
        self.crop_size = (crop_size, crop_size)
        self.folders = ImageFolders(self.root, num_classes)
        self.crop = TrainCrop(crop_size, rand_augment, color_jitter)
        self.protocol = CentreCrop(size=crop_size)
        self.datasets: dict[str, ClassDataset] = {}

    @property
    def class_names(self) -> tuple[str, ...]:
        """K names, sorted: of ImageNet WordNet ids."""
        return self.folders.class_names

    def setup(self, stage: str) -> None:
        """Find the images that `stage` (fit, validate, test) needs.

        Raises:
            InputError: They are absent, or their classes are wrong.
        """
        if stage == "fit":
            self.datasets["train"] = ClassDataset(self.folders.find("train"), self.crop, self.seed)
        self.datasets["test" if stage == "test" else "val"] = ClassDataset(self.folders.find("val"), self.protocol)

    def train_dataloader(self) -> DataLoader[Any]:
        """Shuffled crops; an incomplete last batch is dropped."""
        dataset = self.datasets["train"]
        check_one_batch(self.root, len(dataset), self.batch_size)
        sampler = TrainSampler(dataset, self.seed)
        return TrainLoader(dataset, self.batch_size, sampler=sampler, drop_last=True, **self._worker_options(4))

    def val_dataloader(self) -> DataLoader[Any]:
        """Centre crops of the validation images."""
        return self._centre_crops("val")

    def test_dataloader(self) -> DataLoader[Any]:
        """Centre crops of the validation images, also for `test`."""
        return self._centre_crops("test")

    def _centre_crops(self, key: str) -> DataLoader[Any]:
        dataset = self.datasets[key]
        return DataLoader(dataset, self.batch_size, sampler=EvalSampler(dataset), **self._worker_options())
