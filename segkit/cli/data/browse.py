"""`segkit data browse`: a sheet of samples as the network sees them, with their labels and the share of each class.

The images come from the same loader that `segkit fit` (or `validate`, `test`) reads, in the order in which the epoch
draws them.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segkit.cli.words import say
from segkit.errors import InputError
from segkit.files import check_new_file, write_text

if TYPE_CHECKING:  # they need NumPy, PyTorch and Lightning, which take seconds to import
    from segkit.contact_sheet.sheet import Tile
    from segkit.data.datamodule import SegmentationDataModule

# These change how samples are read, not what they are. A batch of one also works for small data sets.
OWN_DATA_OPTIONS = ("--data.batch_size", "1", "--data.num_workers", "0", "--data.cache_dir", "null")


def run(options: argparse.Namespace, data: "SegmentationDataModule") -> int:
    """Draw the sheet.

    Returns:
        0.

    Raises:
        InputError: The command or the data are wrong.
    """
    say(f"reading {data.title} ({options.split}) ...")
    samples, title = _draw(data, options)
    _write(options.output, samples, data, title)
    say(f"{title}: {options.output}")
    return 0


def check_options(options: argparse.Namespace) -> None:
    """Refuse an output that cannot be written."""
    if options.output.suffix.lower() not in (".png", ".html"):
        raise InputError(f"{options.output}: the sheet is PNG or HTML; give a name that ends in .png or .html")
    if options.epoch < 0:
        raise InputError(f"--epoch is {options.epoch}; allowed is 0 or more")
    check_new_file(options.output, options.overwrite)


def _draw(data: "SegmentationDataModule", options: argparse.Namespace) -> tuple[list["Tile"], str]:
    """The samples, and a line that describes them."""
    if data.bands is not None:
        data.bands.index(options.bands)
    elif options.bands:
        raise InputError("--bands: these images are RGB of 8 bits; declare their bands to choose: --data.bands")
    data.setup({"train": "fit", "val": "validate", "test": "test"}[options.split])
    loader: Any = getattr(data, f"{options.split}_dataloader")()
    loader.sampler.set_epoch(options.epoch)
    keys = list(loader.sampler)
    count = min(options.count, len(keys))
    is_train = options.split == "train"
    chosen = keys[:count] if is_train else [keys[i * len(keys) // count] for i in range(count)]
    samples = [_sample(loader.dataset[key], getattr(key, "wanted_class", -1), data, options.bands) for key in chosen]
    of_epoch = f"epoch {options.epoch}, seed {data.seed}, " if is_train else ""
    of_split = f"{count} of {len(keys)} {options.split} {'crops' if is_train else 'images'}"
    return samples, f"{type(data).__name__.removesuffix('DataModule')}, {of_epoch}{of_split}"


def _sample(item: Any, wanted: int, data: "SegmentationDataModule", shown: Sequence[str]) -> "Tile":
    from segkit.contact_sheet.sheet import Tile

    image = item["image"].permute(1, 2, 0).numpy()  # (C, H, W) -> (H, W, C)
    image = image if data.bands is None else data.bands.as_rgb(image, shown)
    height, width = item["mask"].shape
    drawn_for = f", for {data.class_names[wanted]}" if wanted >= 0 else ""
    return Tile(image, item["mask"].numpy(), f"{item['name']}, {width}x{height}{drawn_for}")


def _write(path: Path, samples: Sequence["Tile"], data: "SegmentationDataModule", title: str) -> None:
    from segkit.contact_sheet.page import page
    from segkit.contact_sheet.sheet import contact_sheet
    from segkit.io import write_png

    space = data.label_space
    if path.suffix.lower() == ".html":
        write_text(path, page(samples, space.class_names, space.palette, title))
    else:
        write_png(path, contact_sheet(samples, space.class_names, space.palette, title))
