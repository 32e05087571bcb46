"""Loaders, seeds and sizes that every data set shares; a data set adds where its files are."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import cv2
import torch
from pytorch_lightning import LightningDataModule
from torch.utils.data import DataLoader

from segkit.data.dataset import Item, Sample, SegmentationDataset
from segkit.data.samplers import EvalSampler, TrainSampler, replicas_and_rank
from segkit.data.transforms import Augmentation, Pipeline, train_transform
from segkit.errors import InputError
from segkit.metadata.label_space import LabelSpace

Split = Literal["train", "val", "test"]

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")


class SegmentationDataModule(LightningDataModule):
    """Base of all data sets: training crops, whole pictures for evaluation, uint8 batches.

    A batch is `image` uint8 (B, 3, H, W) RGB, `mask` uint8 (B, H, W) train ids with 255 = ignore, `name` list of B
    strings. Training crops follow the authors' transform; validation, test and predict give one whole picture at its
    own size at a time, each exactly once over all processes. Predict batches may lack masks.

    A subclass gives `label_space` and `find_samples`.

    Args:
        root: The data set's folder; its layout is told by the subclass.
        batch_size: Training crops PER PROCESS: two GPUs with 16 train on 32.
        base_size: Pixels of the long side at scale 1.
        crop_size: Pixels, height and width of a training crop.
        num_workers: Loader processes of each training process; None: cores / local processes, at most 8.
        augmentations: albumentations transforms applied to the finished crop; a `fill_mask` must be 255.
        scale_range: Smallest and largest scale at which crops are cut; the authors' by default.
        seed: Of shuffling and transforms.
        predict_split: Whose pictures `predict` reads; masks are not needed.

    Attributes:
        is_predicted: Tells the pictures, by name, that `predict` has done before and now leaves out; None: none.

    Raises:
        InputError: A number is out of range, or an augmentation paints masks.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        batch_size: int = 16,
        base_size: int = 520,
        crop_size: int = 480,
        num_workers: int | None = None,
        augmentations: list[Augmentation] | None = None,
        scale_range: tuple[float, float] = (0.5, 2.0),
        seed: int = 0,
        predict_split: Split = "test",
    ) -> None:
        super().__init__()
        _check_at_least(1, batch_size=batch_size, base_size=base_size, crop_size=crop_size)
        _check_at_least(0, num_workers=num_workers or 0, seed=seed)
        self.root = Path(root)
        self.batch_size = batch_size
        self.base_size = base_size
        self.crop_size = crop_size
        self.num_workers = num_workers
        self.seed = seed
        self.predict_split: Split = predict_split
        _check_scales(*scale_range)
        self.transform = train_transform(base_size, crop_size, augmentations or (), (scale_range[0], scale_range[1]))
        self.datasets: dict[str, SegmentationDataset] = {}
        self.is_predicted: Callable[[str], bool] | None = None

    @property
    def label_space(self) -> LabelSpace:
        """Classes, colours and label table."""
        raise NotImplementedError

    @property
    def num_classes(self) -> int:
        """K."""
        return self.label_space.num_classes

    @property
    def class_names(self) -> tuple[str, ...]:
        """K names."""
        return self.label_space.class_names

    def find_samples(self, split: Split, with_masks: bool) -> list[Sample]:
        """The samples of a split, in a fixed order; the masks are None without `with_masks`.

        Raises:
            InputError: Folders or masks are absent, or there is no picture.
        """
        raise NotImplementedError

    def setup(self, stage: str) -> None:
        """Find the files that `stage` (fit, validate, test, predict) needs.

        Raises:
            InputError: As `find_samples`, in one line.
        """
        if not self.root.is_dir():
            raise InputError(f"{self.root}: no such data folder; set --data.root (layouts: datasets/README.md)")
        if stage == "fit":
            self._add("train", "train", self.transform)
        if stage in ("fit", "validate"):
            self._add("val", "val")
        if stage == "test":
            self._add("test", "test")
        if stage == "predict":
            self._add("predict", self.predict_split)
        # One process may be done while others are not; nothing has to be summed at the end, as it has in a test.
        self.allow_zero_length_dataloader_with_multiple_devices = stage == "predict"

    def train_dataloader(self) -> DataLoader[Item]:
        """Shuffled crops; an incomplete last batch is dropped.

        Raises:
            InputError: There are fewer pictures than one batch over all processes.
        """
        dataset = self.datasets["train"]
        world, _ = replicas_and_rank()
        if len(dataset) < self.batch_size * world:
            raise InputError(
                f"{self.root}: {len(dataset)} training pictures are fewer than one batch "
                f"(batch_size {self.batch_size} x {world} processes); lower --data.batch_size"
            )
        sampler = TrainSampler(dataset, self.seed)
        return DataLoader(dataset, self.batch_size, sampler=sampler, drop_last=True, **self._worker_options())

    def val_dataloader(self) -> DataLoader[Item]:
        """Whole pictures of the validation split, one at a time."""
        return self._whole_pictures("val")

    def test_dataloader(self) -> DataLoader[Item]:
        """Whole pictures of the test split, one at a time."""
        return self._whole_pictures("test")

    def predict_dataloader(self) -> DataLoader[Item]:
        """Whole pictures of `predict_split`, one at a time, without masks; those that `is_predicted` are left out."""
        done, samples = self.is_predicted, self.datasets["predict"].samples
        return self._whole_pictures("predict", None if done is None else lambda index: done(samples[index].name))

    def predict_pictures(self) -> dict[str, Path]:
        """Name and file of each picture that `predict` is for, the ones that `is_predicted` too; after `setup`."""
        return {sample.name: sample.image for sample in self.datasets["predict"].samples}

    def _add(self, key: str, split: Split, transform: Pipeline | None = None) -> None:
        samples = self.find_samples(split, with_masks=key != "predict")
        self.datasets[key] = SegmentationDataset(samples, self.label_space, transform, self.seed)

    def _whole_pictures(self, key: str, skip: Callable[[int], bool] | None = None) -> DataLoader[Item]:
        dataset = self.datasets[key]
        sampler = EvalSampler(dataset, skip=skip)
        return DataLoader(dataset, batch_size=1, sampler=sampler, **self._worker_options())

    def _worker_options(self) -> dict[str, Any]:
        workers = self._default_workers() if self.num_workers is None else self.num_workers
        return {
            "num_workers": workers,
            "persistent_workers": workers > 0,
            "pin_memory": torch.cuda.is_available(),
            "worker_init_fn": init_worker,
        }

    def _default_workers(self) -> int:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        local_ranks = self.trainer.num_devices if self.trainer is not None else 1
        return max(1, min(8, cores // local_ranks))


def init_worker(worker_id: int) -> None:
    """Keep a loader worker to one thread: many workers times many threads stall a machine, or hang it."""
    cv2.setNumThreads(0)
    cv2.ocl.setUseOpenCL(False)
    torch.set_num_threads(1)


def find_pictures(folder: Path, suffixes: Sequence[str] = IMAGE_SUFFIXES) -> dict[str, Path]:
    """Pictures anywhere below `folder`, by name: the relative path without extension. Hidden files are left out.

    Raises:
        InputError: The folder is absent or has no picture, or two pictures have one name.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; check --data.root and the layout (datasets/README.md)")
    pictures: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() not in suffixes or path.name.startswith("."):
            continue
        name = path.relative_to(folder).with_suffix("").as_posix()
        if name in pictures:
            raise InputError(f"{pictures[name]} and {path} have the same name; rename or remove one of them")
        pictures[name] = path
    if not pictures:
        raise InputError(f"{folder}: no pictures here; allowed endings are {', '.join(suffixes)}")
    return pictures


def pair(images: dict[str, Path], masks: dict[str, Path] | None) -> list[Sample]:
    """Samples in the order of `images`; `masks` maps the same names to where the mask must be (None: not needed).

    Raises:
        InputError: Masks are missing; names the first and the count.
    """
    if masks is None:
        return [Sample(path, None, name) for name, path in images.items()]
    missing = [name for name in images if not masks[name].is_file()]
    if missing:
        raise InputError(
            f"{masks[missing[0]]}: no mask for picture {images[missing[0]]} ({len(missing)} of {len(images)} pictures "
            "lack theirs); add the masks or remove the pictures"
        )
    return [Sample(path, masks[name], name) for name, path in images.items()]


def _check_scales(low: float, high: float) -> None:
    if not 0 < low <= high:
        raise InputError(f"scale_range is [{low}, {high}]; give two positive numbers, the smaller one first")


def _check_at_least(least: int, **values: int) -> None:
    for name, value in values.items():
        if value < least:
            raise InputError(f"{name} is {value}; allowed is {least} or more: set --data.{name}")
