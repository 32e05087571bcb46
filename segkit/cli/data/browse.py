"""`segkit data browse`: a sheet of samples as the network sees them, with their labels and how much each class covers.

The images come out of the very loader that `segkit fit` (or `validate`, `test`) would read, and in the order in which
the epoch draws them.
"""

import argparse
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segkit.cli.parser import Parser, Switch
from segkit.cli.words import say
from segkit.errors import InputError
from segkit.files import check_new_file, write_text

if TYPE_CHECKING:  # they need NumPy, PyTorch and Lightning, which take seconds to import, and `--help` does not
    from segkit.contact_sheet import Tile
    from segkit.data.datamodule import SegmentationDataModule

_DESCRIPTION = """\
Draw samples as the network sees them: each image beside its labels, ignored pixels hatched, and the share of the
pixels that each class covers. `train` shows the crops that the given epoch of `segkit fit` begins with, after all
augmentations; `val` and `test` show whole images, evenly spread over the split.

  segkit data browse camvid datasets/camvid
  segkit data browse configs/ade20k/fcn_resnest50.yaml --output sheet.html --count 48 --epoch 3
  segkit data browse folder my_images --data.crop_size 256 --data.masks colors

Options of the data are those of `segkit fit`: --data.KEY VALUE."""

_DATA = "--data."
# What changes how samples are read and not what they are. A batch of one lets small data sets be seen.
_READING = ("--data.batch_size", "1", "--data.num_workers", "0", "--data.cache_dir", "null")


def main(args: Sequence[str]) -> int:
    """Run `segkit data browse`.

    Args:
        args: What follows `segkit data browse` on the command line.

    Returns:
        0.

    Raises:
        InputError: What is wrong, in one line.
    """
    own, of_data = _split_options(args)
    options = _parser().parse_args(own)
    _check(options)
    from segkit.cli.data.source import describe_module, make_module

    cure = f"write `segkit data browse {options.data} ROOT`"
    described = describe_module(options.data, options.root, [*of_data, *_READING], cure)
    say(f"reading {options.data} ({options.split}) ...")
    data = make_module(described, "segkit data browse")
    samples, title = _draw(data, options)
    _write(options.output, samples, data, title)
    say(f"{title}: {options.output}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser("segkit data browse", description=_DESCRIPTION)
    parser.add_argument(
        "data", metavar="NAME_OR_CONFIG", help="ade20k, cityscapes, camvid, folder; or a recipe's .yaml"
    )
    parser.add_argument("root", metavar="ROOT", nargs="?", help="folder of the data; default: the config's")
    parser.add_argument(
        "-o", "--output", metavar="FILE", type=Path, default=Path("sheet.png"), help=".png or .html; default: sheet.png"
    )
    parser.add_argument("--count", type=int, default=12, help="samples; default: 12")
    parser.add_argument("--split", choices=("train", "val", "test"), default="train", help="default: train")
    parser.add_argument("--epoch", type=int, default=0, help="of the training, from 0; default: 0")
    parser.add_argument("--overwrite", action=Switch, help="write over the output if it exists")
    return parser


def _split_options(args: Sequence[str]) -> tuple[list[str], list[str]]:
    """(segkit's own arguments, those of the data with their values)."""
    own: list[str] = []
    of_data: list[str] = []
    rest = iter(args)
    for arg in rest:
        if not arg.startswith(_DATA):
            own.append(arg)
            continue
        of_data.append(arg)
        if "=" not in arg:
            of_data += islice(rest, 1)
    return own, of_data


def _check(options: argparse.Namespace) -> None:
    """Fail before seconds are spent on imports."""
    if options.output.suffix.lower() not in (".png", ".html"):
        raise InputError(f"{options.output}: what is written is PNG or HTML; give a name that ends in .png or .html")
    if options.count < 1:
        raise InputError(f"--count is {options.count}; allowed is 1 or more")
    if options.epoch < 0:
        raise InputError(f"--epoch is {options.epoch}; allowed is 0 or more")
    check_new_file(options.output, options.overwrite)


def _draw(data: "SegmentationDataModule", options: argparse.Namespace) -> tuple[list["Tile"], str]:
    """The samples, and a line that says what they are."""
    data.setup({"train": "fit", "val": "validate", "test": "test"}[options.split])
    loader: Any = getattr(data, f"{options.split}_dataloader")()
    loader.sampler.set_epoch(options.epoch)
    keys = list(loader.sampler)
    count = min(options.count, len(keys))
    is_train = options.split == "train"
    chosen = keys[:count] if is_train else [keys[i * len(keys) // count] for i in range(count)]
    samples = [_sample(loader.dataset[key], getattr(key, "wanted_class", -1), data.class_names) for key in chosen]
    of_epoch = f"epoch {options.epoch}, seed {data.seed}, " if is_train else ""
    of_split = f"{count} of {len(keys)} {options.split} {'crops' if is_train else 'images'}"
    return samples, f"{type(data).__name__.removesuffix('DataModule')}, {of_epoch}{of_split}"


def _sample(item: Any, wanted: int, class_names: Sequence[str]) -> "Tile":
    from segkit.contact_sheet import Tile

    image = item["image"].permute(1, 2, 0).numpy()  # (3, H, W) -> (H, W, 3)
    height, width = item["mask"].shape
    drawn_for = f", for {class_names[wanted]}" if wanted >= 0 else ""
    return Tile(image, item["mask"].numpy(), f"{item['name']}, {width}x{height}{drawn_for}")


def _write(path: Path, samples: Sequence["Tile"], data: "SegmentationDataModule", title: str) -> None:
    from segkit.cli.data.browse_page import page
    from segkit.contact_sheet import contact_sheet
    from segkit.io import write_png

    space = data.label_space
    if path.suffix.lower() == ".html":
        write_text(path, page(samples, space.class_names, space.palette, title))
    else:
        write_png(path, contact_sheet(samples, space.class_names, space.palette, title))
