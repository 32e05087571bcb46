"""The arguments of `segkit data check | stats | cache | browse | convert`. Each command is imported when it runs."""

import argparse
import importlib
from collections.abc import Sequence
from pathlib import Path

from segkit.cli.parser import Parser, Switch, add_data_options, split_options, whole_number
from segkit.formats.names import FORMATS

_DESCRIPTION = """\
check   list everything that is wrong with a data set, and what its label values become
stats   pixels of each class, and the class weights that follow from them; range, mean and std of bands
cache   decode a data set once, into files that training maps into memory; go on, verify or list
browse  look at images and masks
convert make a data set of an annotation tool's export"""

_DATA = """\
NAME is a data set (ade20k, cityscapes, camvid, folder, ...), a data module of yours (my_module.MyDataModule), or a data
config or recipe (.yaml). ROOT is its folder or zip; a config may have one. Options of the data are those of `segkit
fit`, --data.KEY VALUE: --data.masks colors, --data.coarse true."""

_CHECK = """\
List everything that is wrong with a data set: images without mask and masks without image, sizes that differ,
damaged files, masks that are JPEG or RGB, values that the label table does not declare, numbers of images.
Exit code: 0 nothing wrong (warnings allowed), 1 problems, 2 wrong command or nothing there."""

_STATS = """\
Count the pixels of each class. Of declared bands (--data.bands, --data.range) also range, mean and standard deviation,
over the training images."""

_CACHE = """\
Decode a data set once. A stopped run resumes; a cache that exists and is right is kept. Caches that are no longer used
are named, never removed."""

_BROWSE = """\
Draw samples as the network sees them: each image beside its labels, ignored pixels hatched, and the share of the
pixels that each class covers. `train` shows the crops that the given epoch of `segkit fit` begins with, after all
augmentations; `val` and `test` show whole images, evenly spread over the split.

  segkit data browse camvid datasets/camvid
  segkit data browse ade20k/fcn_resnest50 --output sheet.html --count 48 --epoch 3
  segkit data browse folder my_images --data.crop_size 256 --data.masks colors"""

_CONVERT = """\
Make a data set of what an annotation tool exported: FOLDER/images (links or copies), FOLDER/labels (8-bit PNG, 255 is
ignored) and FOLDER/classes.txt, which `segkit data check folder FOLDER` and training read. Later regions lie above
earlier ones; pixels without a region are of the class "background", if there is one, else ignored, as crowds are.
What is in FOLDER already stays, so that a second run goes on where the first was stopped.
Exit code: 0 all converted, 1 some images were refused, 2 wrong command or nothing there.

  segkit data convert instances.json --images photos -o my_images
  segkit data convert job_12.zip --images photos -o my_images --classes classes.txt"""

_SPLITS = ("train", "val", "test")


def main(args: Sequence[str]) -> int:
    """Run `segkit data`.

    Args:
        args: What follows `segkit data` on the command line.

    Returns:
        0: nothing wrong. 1: the data or a cache are wrong; the problems are printed.

    Raises:
        InputError: The command itself is wrong.
    """
    own, of_data = split_options(args)
    options = _parser().parse_args(own)
    command = importlib.import_module(f"segkit.cli.data.{options.action}")
    if options.action == "convert":
        return int(command.run(options))
    command.check_options(options)  # before seconds are spent on imports
    from segkit.cli.data.source import named, open_data
    from segkit.formats.guess import refuse_export
    from segkit.recipes import is_recipe

    for place in (options.name, options.root):
        if place and not of_data and not is_recipe(place):
            refuse_export(Path(place))

    given = [*named(options.name, options.root), *of_data, *command.OWN_DATA_OPTIONS]
    code: int = command.run(options, open_data(given, f"segkit data {options.action}"))
    return code


def _parser() -> argparse.ArgumentParser:
    parser = Parser("segkit data", description=_DESCRIPTION)
    actions = parser.add_subparsers(dest="action", required=True, metavar="check | stats | cache | browse | convert")
    check = _add(actions, "check", "list what is wrong", _CHECK)
    check.add_argument("--json", type=Path, metavar="FILE", help="also write the full report")
    check.add_argument("--limit", type=whole_number(1), metavar="N", help="open N images of each split, evenly spread")
    stats = _add(actions, "stats", "pixels of each class, and class weights", _STATS)
    stats.add_argument("--images", action=Switch, help="mean and std of RGB, too; of declared bands they always are")
    stats.add_argument("-o", "--output", type=Path, metavar="FILE", help="keep them here (default: beside the data)")
    cache = _add(actions, "cache", "decode once, for fast training", _CACHE)
    cache.add_argument("--cache_dir", type=Path, required=True, metavar="DIR", help="as --data.cache_dir of training")
    cache.add_argument("--verify", action=Switch, help="compare all checksums of existing caches")
    cache.add_argument("--list", action=Switch, help="only list the caches of this data set")
    for command, splits in ((check, "all that there are"), (stats, "train"), (cache, "train val")):
        command.add_argument("--split", nargs="+", choices=_SPLITS, metavar="SPLIT", help=f"default: {splits}")
        command.add_argument(
            "--workers", type=whole_number(1), metavar="N", help="threads (default: one for each core)"
        )
    browse = _add(actions, "browse", "look at images and masks", _BROWSE)
    add = browse.add_argument
    add(
        "-o", "--output", metavar="FILE", type=Path, default=Path("sheet.png"), help=".png or .html; default: sheet.png"
    )
    add("--count", type=whole_number(1), default=12, metavar="N", help="samples; default: 12")
    add("--split", choices=_SPLITS, default="train", help="default: train")
    add("--epoch", type=int, default=0, metavar="N", help="of the training, from 0; default: 0")
    add(
        "--bands",
        nargs="+",
        default=(),
        metavar="BAND",
        help="one, or three shown as red, green and blue: names, or numbers from 1 (4 3 2); default: those of these "
        "names, or the first",
    )
    add("--overwrite", action=Switch, help="write over the output if it exists")
    _add_convert(actions)
    return parser


def _add_convert(actions: "argparse._SubParsersAction[Parser]") -> None:
    convert = actions.add_parser("convert", help="make a data set of an export", description=_CONVERT)
    add, formats = convert.add_argument, [name for name, one in FORMATS.items() if one.reads]
    add("export", type=Path, metavar="EXPORT", help="a file, a zip, or the folder that it was unpacked to")
    add("-o", "--output", type=Path, required=True, metavar="FOLDER", help="the data set, made or added to")
    add("--format", choices=formats, help=f"{', '.join(formats)}; default: as the export looks")
    add("--images", type=Path, metavar="DIR", help="folder or zip of the images; default: EXPORT, or what is beside it")
    add("--classes", type=Path, metavar="FILE", help="class names, one a line; default: FOLDER's, or the export's")
    add("--overwrite", action=Switch, help="replace masks that differ from the export's")


def _add(actions: "argparse._SubParsersAction[Parser]", name: str, short: str, long: str) -> Parser:
    """Add a command with the arguments that all of them share."""
    command = actions.add_parser(name, help=short, description=f"{long}\n\n{_DATA}")
    command.add_argument(
        "name", metavar="NAME", nargs="?", help="of the data set, or a .yaml; --data NAME does as well"
    )
    command.add_argument("root", metavar="ROOT", nargs="?", help="its folder or zip; --data.root ROOT does as well")
    add_data_options(command)
    return command
