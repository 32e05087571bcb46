"""How fast training data are made, on one core, against what other toolkits do: prints Markdown tables.

    python scripts/benchmark_data.py

Transform: from a decoded image and mask in memory to a training crop. PIL restates PyTorch-Encoding's
`_sync_transform` (encoding/datasets/base.py): mirror, resize the whole image, pad, crop. albumentations is its own
RandomScale, PadIfNeeded, RandomCrop, HorizontalFlip. mmsegmentation runs where it can be imported. All draw the same
distribution of scales. "to uint8 tensor" ends there; "normalised" goes on to float32, as those toolkits do in the
worker, while segkit normalises on the device.

Reading: from files of Cityscapes' size and kind to a crop of 512, with and without the cache; and what decoding costs.

Every contestant runs once in each round, one after the other, and a ratio is the median over the rounds of the ratios
within a round: a machine that others use too is then equally slow for all.
"""

import argparse
import itertools
import os
import random
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import cv2
import numpy as np
import rasterio
import torch
from benchmark_common import header, measure, times_table
from PIL import Image
from torchvision.transforms import functional as VF

from segkit.arrays import UInt8Array
from segkit.data.albumentations import A
from segkit.data.cache.writing import make_cache
from segkit.data.crops import RandomLongSideCrop
from segkit.data.dataset import SegmentationDataset
from segkit.data.layout.base import Layout
from segkit.data.samplers import Draw
from segkit.data.sets.ade20k import ADE20KDataModule
from segkit.data.sets.cityscapes import CityscapesDataModule
from segkit.data.sets.folder import FolderDataModule
from segkit.data.street.scene import draw_scene
from segkit.data.transforms import TrainTransform
from segkit.io import read_image, read_label, write_png

PACKAGES = ("segkit", "python", "torch", "torchvision", "albumentations", "numpy", "opencv-python-headless", "pillow")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Case:
    """A recipe's sizes, and an image of its data set."""

    name: str
    image: UInt8Array
    mask: UInt8Array
    base_size: int
    crop_size: int

    @property
    def scales(self) -> tuple[float, float]:
        """Smallest and largest factor of the image's own size."""
        return 0.5 * self.base_size / max(self.mask.shape), 2.0 * self.base_size / max(self.mask.shape)


def main() -> None:
    """Measure and print."""
    options = parse()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    print(header(PACKAGES))
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        title = "Reading bands, 8 MB an image: four of 8 bits, 2048 x 1024, or of 16 bits, 1024 x 1024; crop 512"
        print(per_sample(title, bands(Path(folder), options.images), options.rounds, options.images))
    if options.only_bands:
        return
    if mmseg_pipeline(cases()[0]) is None:
        print(
            "mmsegmentation is not installed and is left out: `uv run --group mmseg python scripts/benchmark_data.py`"
        )
    for case in cases():
        contestants = transforms(case, options.crops)
        print(per_sample(f"Transform, {case.name}", contestants, options.rounds, options.crops))
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        contestants = readers(Path(folder), options.images)
        print(per_sample("Reading, 2048 x 1024 PNG, crop 512", contestants, options.rounds, options.images))
        contestants = archives(Path(folder), 4 * options.images)
        print(per_sample("Reading, ADE20K, crop 480", contestants, options.rounds, 4 * options.images))


def per_sample(title: str, contestants: dict[str, Callable[[], object]], rounds: int, samples: int) -> str:
    """Measure, and show milliseconds a sample."""
    return times_table(title, "ms", measure(contestants, rounds), lambda seconds: 1e3 * seconds / samples, 2)


def parse() -> argparse.Namespace:
    """Sizes and rounds."""
    parser = argparse.ArgumentParser(description="Speed of the data path.")
    parser.add_argument("--crops", type=int, default=40, help="in a round of the transform tables")
    parser.add_argument("--images", type=int, default=16, help="in a round of the reading tables")
    parser.add_argument("--only_bands", action="store_true", help="only the table of 8 and 16 bits")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--folder", type=Path, default=None, help="where temporary files go")
    return parser.parse_args()


def scene(seed: int, height: int, width: int) -> tuple[UInt8Array, UInt8Array]:
    """A drawn street scene with noise, and its label ids."""
    return draw_scene(np.random.default_rng(seed), height, width)


def cases() -> list[Case]:
    """On an image of the usual size: ADE20K as its authors, and at 0.5 to 2 times the image; Cityscapes."""
    return [
        Case("ADE20K 683 x 512, crop 480 of long side 260 to 1040", *scene(0, 512, 683), 520, 480),
        Case("ADE20K 683 x 512, crop 480 of long side 341 to 1366", *scene(0, 512, 683), 683, 480),
        Case("Cityscapes 2048 x 1024, crop 768 of long side 1024 to 4096", *scene(0, 1024, 2048), 2048, 768),
    ]


def transforms(case: Case, count: int) -> dict[str, Callable[[], object]]:
    """Contestants, each making `count` crops; the first is what the others are compared with."""
    ours, plain = (
        TrainTransform(RandomLongSideCrop(case.base_size, case.crop_size, antialias=smooth)) for smooth in (True, False)
    )
    library, normalised = (albumentations_pipeline(case, normalise) for normalise in (False, True))
    pillow, label = Image.fromarray(case.image), Image.fromarray(case.mask)

    def segkit_crop(transform: TrainTransform, i: int) -> object:
        image, mask = transform(case.image, case.mask, (0, 0, i, 0))
        return torch.from_numpy(image), torch.from_numpy(mask)

    found: dict[str, Callable[[int], object]] = {
        "segkit, to uint8 tensor": lambda i: segkit_crop(ours, i),
        "segkit, antialias: false": lambda i: segkit_crop(plain, i),
        "albumentations, to uint8 tensor": lambda i: library(image=case.image, mask=case.mask),
        "albumentations, normalised": lambda i: normalised(image=case.image, mask=case.mask),
        "PIL, to uint8 tensor": lambda i: pil_crop(pillow, label, case, False),
        "PIL, normalised": lambda i: pil_crop(pillow, label, case, True),
    }
    mmseg = mmseg_pipeline(case)
    if mmseg is not None:
        found["mmsegmentation, uint8"] = lambda i: mmseg(case.image, case.mask)
    return {name: repeated(crop, count) for name, crop in found.items()}


def repeated(make: Callable[[int], object], count: int) -> Callable[[], object]:
    """`make` of 0, 1, ...; nothing is kept, as a loader keeps nothing of a batch that it has handed over."""

    def run() -> None:
        for i in range(count):
            make(i)

    return run


def albumentations_pipeline(case: Case, normalise: bool) -> Any:
    """RandomScale, pad, crop, flip, as albumentations offers them."""
    low, high = case.scales
    size = {"height": case.crop_size, "width": case.crop_size}
    padding = {"min_height": case.crop_size, "min_width": case.crop_size, "border_mode": 0, "fill_mask": 255}
    steps = [
        A.RandomScale((low - 1, high - 1), p=1.0),
        A.PadIfNeeded(**padding, position="top_left"),
        A.RandomCrop(**size),
        A.HorizontalFlip(p=0.5),
    ]
    return A.Compose([*steps, *([A.Normalize(MEAN, STD)] if normalise else []), A.ToTensorV2()])


def pil_crop(image: Image.Image, label: Image.Image, case: Case, normalise: bool) -> object:
    """PyTorch-Encoding's training transform, restated."""
    if random.random() < 0.5:
        image, label = (im.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for im in (image, label))
    long = random.randint(int(0.5 * case.base_size), int(2.0 * case.base_size))
    width, height = image.size
    factor = long / max(width, height)
    size = int(width * factor + 0.5), int(height * factor + 0.5)
    image, label = image.resize(size, Image.Resampling.BILINEAR), label.resize(size, Image.Resampling.NEAREST)
    padded = max(size[0], case.crop_size), max(size[1], case.crop_size)
    if padded != size:
        image, label = image.crop((0, 0, *padded)), label.crop((0, 0, *padded))
    left, top = (random.randint(0, side - case.crop_size) for side in padded)
    box = (left, top, left + case.crop_size, top + case.crop_size)
    image, label = image.crop(box), label.crop(box)
    mask = torch.from_numpy(np.array(label))
    if normalise:
        return VF.normalize(VF.to_tensor(image), list(MEAN), list(STD)), mask.long()
    return VF.pil_to_tensor(image), mask


def mmseg_pipeline(case: Case) -> Callable[[UInt8Array, UInt8Array], object] | None:
    """mmsegmentation's RandomResize, RandomCrop, RandomFlip; None where it cannot be imported."""
    try:
        from mmcv.transforms import RandomFlip, RandomResize
        from mmseg.datasets.transforms import RandomCrop
    except (ImportError, AssertionError):
        return None
    scale = max(case.mask.shape), min(case.mask.shape)
    steps = [RandomResize(scale, case.scales, keep_ratio=True), RandomCrop((case.crop_size,) * 2), RandomFlip(0.5)]

    def run(image: UInt8Array, mask: UInt8Array) -> object:
        data: dict[str, Any] = {"img": image, "gt_seg_map": mask, "seg_fields": ["gt_seg_map"], "img_shape": mask.shape}
        for step in steps:
            data = step(data)
        return data

    return run


def readers(folder: Path, count: int) -> dict[str, Callable[[], object]]:
    """Crops from PNG files, and from the cache of the same files."""
    root = folder / "cityscapes"
    for i in range(count):
        image, mask = scene(i, 1024, 2048)
        stem = f"train/street/street_{i:06d}_000000"
        Image.fromarray(image).save(_made(root / f"leftImg8bit/{stem}_leftImg8bit.png"))
        Image.fromarray(mask).save(_made(root / f"gtFine/{stem}_gtFine_labelIds.png"))
    layout = CityscapesDataModule(root)
    files, cached = datasets(layout, folder / "cache", 2048, 512)
    samples = files.samples
    return {
        "segkit, from the cache": crops_of(cached),
        "segkit, from the files": crops_of(files),
        "of it: decoding images": repeated(lambda i: read_image(samples[i].image), count),
        "of it: decoding masks": repeated(lambda i: read_label(samples[i].mask), count),
        "of it: decoding, and the label table": repeated(lambda i: layout.read(samples[i]), count),
    }


def bands(folder: Path, count: int) -> dict[str, Callable[[], object]]:
    """Crops from images of as many bytes in 8 and in 16 bits: the ratio is the one of the time for a byte."""
    made: dict[str, Callable[[], object]] = {}
    for suffix, deep in itertools.product((".tif", ".png"), (False, True)):
        root = folder / f"{suffix[1:]}{deep}"
        for i in range(count):
            image, mask = scene(i, 1024, 1024 if deep else 2048)
            four = image[..., [0, 1, 2, 1]]
            if deep:  # 12 bits and a bit, as satellites' reflectances
                four = four.astype(np.uint16) * 39 + np.random.default_rng(i).integers(0, 39, four.shape, np.uint16)
            path = _made(root / f"images/train/{i}{suffix}")
            if suffix == ".tif":
                form = {"width": four.shape[1], "height": 1024, "count": 4, "dtype": four.dtype, "compress": "deflate"}
                with rasterio.open(path, "w", driver="GTiff", **form) as file:
                    file.write(np.moveaxis(four, -1, 0))
            else:
                cv2.imwrite(str(path), four)
            Image.fromarray(mask % 2).save(_made(root / f"labels/train/{i}.png"))
        (root / "classes.txt").write_text("a\nb\n")
        layout = FolderDataModule(root, bands=4, range=(0, 10000) if deep else None)
        files, cached = datasets(layout, folder / "cache", 2048, 512)
        name = f"{suffix[1:].upper()} of {16 if deep else 8} bits"
        made[f"{name}, decoded"] = repeated(lambda i, f=files, m=layout: m.reader.image(f.samples[i].image), count)
        if suffix == ".tif":
            made[f"{name}, crops from the files"] = crops_of(files)
            made[f"{name}, crops from the cache"] = crops_of(cached)
    return made


def archives(folder: Path, count: int) -> dict[str, Callable[[], object]]:
    """Crops from JPEG files in ADE20K's layout, from their zip, and from the cache."""
    root = folder / "ADEChallengeData2016"
    for i in range(count):
        image, mask = scene(i, 512, 683)
        Image.fromarray(image).save(_made(root / f"images/training/ADE_train_{i:08d}.jpg"), quality=92)
        write_png(root / f"annotations/training/ADE_train_{i:08d}.png", mask)
    packed = folder / "ADEChallengeData2016.zip"
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(root.rglob("*.*")):
            archive.write(path, path.relative_to(folder))
    files, cached = datasets(ADE20KDataModule(root), folder / "cache", 520, 480)
    zipped = datasets(ADE20KDataModule(packed), None, 520, 480)[0]
    return {
        "segkit, from the cache": crops_of(cached),
        "segkit, from the files": crops_of(files),
        "segkit, from the zip": crops_of(zipped),
    }


def datasets(
    layout: Layout, cache: Path | None, base: int, crop: int
) -> tuple[SegmentationDataset, SegmentationDataset]:
    """The training split as files, and as cache (or as files again)."""
    samples = layout.find_samples("train")
    transform = TrainTransform(RandomLongSideCrop(base, crop))
    read = layout.read if cache is None else make_cache(cache, layout, "train", samples).read
    return SegmentationDataset(samples, layout.read, transform), SegmentationDataset(samples, read, transform)


def crops_of(dataset: SegmentationDataset) -> Callable[[], object]:
    """One crop of each image; other ones in each round."""
    epochs = itertools.count()

    def run() -> None:
        epoch = next(epochs)
        for i in range(len(dataset)):
            dataset[Draw(i, epoch)]

    return run


def _made(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


if __name__ == "__main__":
    main()
