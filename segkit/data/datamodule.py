"""Loaders, seeds and sizes that all data sets share; each data set adds its files and labels."""

import os
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

from pytorch_lightning.utilities import rank_zero_info
from torch.utils.data import DataLoader

from segkit.data.cache import writing
from segkit.data.cache.cache import find_cache
from segkit.data.crops import RandomLongSideCrop
from segkit.data.dataset import Item, Reader, SegmentationDataset
from segkit.data.layout.base import Layout, Sample, Split
from segkit.data.layout.files import size_of
from segkit.data.loader import LoaderOptions, TrainLoader
from segkit.data.samplers import EvalSampler, RareClassSampler, TrainSampler, check_one_batch
from segkit.data.statistics import Statistics, class_weights, statistics
from segkit.data.transforms import Augmentation, TrainTransform
from segkit.errors import InputError
from segkit.metadata.label_space import LabelSpace
from segkit.metadata.regroup import regrouped

_FITTED: tuple[Split, ...] = ("train", "val")  # splits that `fit` reads

PREFETCH = 4  # batches that each worker keeps ready in training


class SegmentationDataModule(Layout, LoaderOptions):
    """Base of all data sets: training crops, whole images for evaluation, uint8 batches.

    A batch is `image` uint8 (B, 3, H, W) RGB, or of the data's `bands`, channels last in memory, `mask` uint8 (B, H, W)
    train ids with 255 = ignore, `name` list of B strings. Training crops follow the authors' transform; validation,
    test and predict give one whole image at its own size at a time, each exactly once over all processes. Predict
    batches lack masks.

    A data set is a subclass with `label_space`, `parts`, and the class attributes of `Layout` and of this class that
    differ (docs/extending.md); it adds a constructor only for options of its own.

    Args:
        root: The data set's folder, or the zip file that it is published as.
        batch_size: Training crops PER PROCESS: two GPUs with 16 train on 32.
        base_size: Pixels of the long side at scale 1; two numbers bound long and short side, as mmsegmentation's scale.
            None: the default of the data set, as for `crop_size`.
        crop_size: Pixels, height and width of a training crop; two numbers are height, width.
        scale_range: Smallest and largest scale at which crops are cut; the authors' by default.
        flip: Probability that a crop is mirrored left and right.
        antialias: Whether shrinking an image smooths it, as in the authors' code; mmsegmentation does not smooth.
        cat_max_ratio: Largest share of a crop's valid pixels that one class may have; mmsegmentation's recipes take
            0.75, 1 takes any crop.
        augmentations: albumentations transforms applied to the finished crop; a `fill_mask` must be 255.
        sampling: "uniform": each image once an epoch. "rare_classes": draw a class, rare ones more often, then an image
            and a crop that contain it (DAFormer, Hoyer et al. 2022).
        sampling_temperature: Temperature of rare class sampling; lower ones draw rare classes more often.
        cache_dir: Folder of the cache of decoded images and masks, made before the first training. None: no cache.
        num_workers: Loader processes of each training process; None: cores / local processes, at most 8.
        seed: Seed of shuffling and transforms.
        predict_split: The split that `predict` reads; it needs no masks.
        merge: Classes to merge, under their new name: `{vehicle: [car, truck]}`.
        ignore: Classes to drop: their pixels are neither trained on nor scored.

    Attributes:
        own_base_size: The data set's default of `base_size`.
        own_crop_size: The data set's default of `crop_size`.
        is_predicted: Whether `predict` has already done the image of this name, and now skips it; None: skip none.

    Raises:
        InputError: A number is out of range, or an augmentation paints masks.
    """

    own_base_size: ClassVar[int | tuple[int, int]] = 520
    own_crop_size: ClassVar[int | tuple[int, int]] = 480

    def __init__(
        self,
        root: str | os.PathLike[str],
        batch_size: int = 16,
        base_size: int | tuple[int, int] | None = None,
        crop_size: int | tuple[int, int] | None = None,
        scale_range: tuple[float, float] = (0.5, 2.0),
        flip: float = 0.5,
        antialias: bool = True,
        cat_max_ratio: float = 1.0,
        augmentations: list[Augmentation] | None = None,
        sampling: Literal["uniform", "rare_classes"] = "uniform",
        sampling_temperature: float = 0.01,
        cache_dir: str | os.PathLike[str] | None = None,
        num_workers: int | None = None,
        seed: int = 0,
        predict_split: Split = "test",
        merge: dict[str, list[str]] | None = None,
        ignore: list[str] | None = None,
    ) -> None:
        LoaderOptions.__init__(self, num_workers)
        Layout.__init__(self, root)
        base_size = self.own_base_size if base_size is None else base_size
        crop_size = self.own_crop_size if crop_size is None else crop_size
        sizes = {"base_size": min(_pair(base_size)), "crop_size": min(_pair(crop_size))}
        _check_at_least(1, batch_size=batch_size, **sizes)
        _check_at_least(0, num_workers=num_workers or 0, seed=seed)
        _check_shares(flip, cat_max_ratio, sampling_temperature)
        _check_scales(*scale_range)
        if sampling not in ("uniform", "rare_classes"):
            raise InputError(f"sampling is {sampling!r}; allowed are uniform and rare_classes: set --data.sampling")
        self.batch_size = batch_size
        self.sampling = sampling
        self.sampling_temperature = sampling_temperature
        self.seed = seed
        self.cache_dir = None if cache_dir is None else Path(cache_dir)
        self.predict_split: Split = predict_split
        self.merge, self.ignore = merge or {}, ignore or []
        self.crop_size = _pair(crop_size)
        base = base_size if isinstance(base_size, int) else _pair(base_size)
        crop = RandomLongSideCrop(
            base, self.crop_size, (scale_range[0], scale_range[1]), flip, antialias, cat_max_ratio
        )
        self.transform = TrainTransform(crop, augmentations or ())
        self.datasets: dict[str, SegmentationDataset] = {}
        self.is_predicted: Callable[[str], bool] | None = None

    def __init_subclass__(cls) -> None:
        """Wrap the declared `label_space` so that `merge` and `ignore` apply wherever it is read."""
        super().__init_subclass__()
        if "label_space" in vars(cls):
            setattr(cls, "label_space", _Regrouped(vars(cls)["label_space"]))  # noqa: B010  (mypy knows the declared)

    @property
    def num_classes(self) -> int:
        """The number of classes, K."""
        return self.label_space.num_classes

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the K classes."""
        return self.label_space.class_names

    @cached_property
    def train_statistics(self) -> Statistics:
        """Pixels of each class in each training image, counted once and then kept beside the data.

        Raises:
            InputError: A mask is wrong, or the result cannot be kept.
        """
        self.prepare_data()
        return statistics(self, "train", say=rank_zero_info)

    def class_weights(self, kind: str) -> tuple[float, ...]:
        """Class weights for the loss from the training split; `kind` is "enet" or "median"."""
        return class_weights(self.train_statistics, kind)

    def prepare_data(self) -> None:
        """Make the caches that training reads; Lightning calls this in one process per machine, before `setup`."""
        if self.cache_dir is not None and (self.trainer is None or self.trainer.state.fn == "fit"):
            for split in _FITTED:
                self._reader(self.find_samples(split), split, make_cache=True)

    def setup(self, stage: str) -> None:
        """Find the files that `stage` (fit, validate, test, predict) needs.

        Raises:
            InputError: Files are absent or wrong.
        """
        splits: dict[str, dict[str, Split]] = {
            "fit": {split: split for split in _FITTED},
            "validate": {"val": "val"},
            "test": {"test": "test"},
            "predict": {"predict": self.predict_split},
        }
        if stage == "fit" and self.bands is not None:
            self.transform.take(self.bands)
        for key, split in splits[stage].items():
            samples = self.find_samples(split, with_masks=key != "predict")
            # A new cache pays only if images are read repeatedly; an existing one is always used.
            read = self._reader(samples, split, make_cache=stage == "fit")
            transform = self.transform if key == "train" else None
            self.datasets[key] = SegmentationDataset(samples, read, transform, self.seed)
        # Processes may finish at different times, because nothing is summed at the end, unlike in a test.
        self.allow_zero_length_dataloader_with_multiple_devices = stage == "predict"

    def train_dataloader(self) -> DataLoader[Item]:
        """Shuffled crops; an incomplete last batch is dropped.

        Raises:
            InputError: There are fewer images than one batch over all processes.
        """
        dataset = self.datasets["train"]
        check_one_batch(self.root, len(dataset), self.batch_size)
        sampler = self._train_sampler(dataset)
        options = self._worker_options(PREFETCH)
        return TrainLoader(dataset, self.batch_size, sampler=sampler, drop_last=True, **options)

    def val_dataloader(self) -> DataLoader[Item]:
        """Whole images of the validation split, one at a time."""
        return self._whole_images("val")

    def test_dataloader(self) -> DataLoader[Item]:
        """Whole images of the test split, one at a time."""
        return self._whole_images("test")

    def predict_dataloader(self) -> DataLoader[Item]:
        """Whole images of `predict_split`, one at a time, without masks; images that `is_predicted` are skipped."""
        done, samples = self.is_predicted, self.datasets["predict"].samples
        return self._whole_images("predict", None if done is None else lambda index: done(samples[index].name))

    def predict_images(self, stage: str = "predict") -> dict[str, int]:
        """Name and bytes of each image of a stage, including those that `is_predicted`; call it after `setup`."""
        return {sample.name: size_of(sample.image) for sample in self.datasets[stage].samples}

    def _cures(self) -> list[str]:
        return (
            ["set --data.cache_dir to a folder on a fast disk (images are then decoded once)"]
            if self.cache_dir is None
            else []
        )

    def _reader(self, samples: Sequence[Sample], split: Split, make_cache: bool) -> Reader:
        """The reader of these samples: their cache if there is one, otherwise the files."""
        if self.cache_dir is None:
            return self.reader
        if make_cache:
            return writing.make_cache(self.cache_dir, self, split, samples, say=rank_zero_info).read
        cache = find_cache(self.cache_dir, self, split, samples)
        return self.reader if cache is None else cache.read

    def _train_sampler(self, dataset: SegmentationDataset) -> TrainSampler:
        if self.sampling == "uniform":
            return TrainSampler(dataset, self.seed)
        areas = self.train_statistics.areas([sample.name for sample in dataset.samples])
        return RareClassSampler(areas, self.sampling_temperature, self.seed)

    def _whole_images(self, key: str, skip: Callable[[int], bool] | None = None) -> DataLoader[Item]:
        dataset = self.datasets[key]
        sampler = EvalSampler(dataset, skip=skip)
        return DataLoader(dataset, batch_size=1, sampler=sampler, **self._worker_options())


class _Regrouped:
    """The label space that a class declares, as an attribute or a property, with classes merged and dropped."""

    def __init__(self, declared: Any) -> None:
        self.declared = declared

    def __get__(self, module: SegmentationDataModule | None, owner: type) -> Any:
        """The label space of a data module, or of its class if there is no instance."""
        bind = getattr(type(self.declared), "__get__", None)
        space = self.declared if bind is None else bind(self.declared, module, owner)
        if module is None or not (module.merge or module.ignore):
            return space
        try:
            return regrouped(space, module.merge, module.ignore)
        except InputError as error:
            raise InputError(f"--data.{error}") from error

    def __set__(self, module: SegmentationDataModule, value: LabelSpace) -> None:
        """Refuse to be set, since otherwise a cached property would shadow this descriptor."""
        raise AttributeError("label_space is declared by the class of the data set")


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def _check_scales(low: float, high: float) -> None:
    if not 0 < low <= high:
        raise InputError(f"scale_range is [{low}, {high}]; give two positive numbers, the smaller one first")


def _check_shares(flip: float, cat_max_ratio: float, temperature: float) -> None:
    if not 0 <= flip <= 1:
        raise InputError(f"flip is {flip}; allowed is a probability, 0 to 1: set --data.flip")
    if not 0 < cat_max_ratio <= 1:
        raise InputError(
            f"cat_max_ratio is {cat_max_ratio}; allowed is a share, above 0 to 1: set --data.cat_max_ratio"
        )
    if not temperature > 0:
        raise InputError(f"sampling_temperature is {temperature}; allowed is more than 0")


def _check_at_least(least: int, **values: int) -> None:
    for name, value in values.items():
        if value < least:
            raise InputError(f"{name} is {value}; allowed is {least} or more: set --data.{name}")
