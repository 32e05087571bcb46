"""The options of `segkit infer`, and what they ask for."""

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING

from segkit.cli.infer_inputs import add_input_options
from segkit.cli.infer_many import add_many_options
from segkit.cli.infer_video import add_video_options
from segkit.cli.parser import Parser, Switch, add_network_option, number, whole_number
from segkit.errors import InputError, install_extra
from segkit.inference.kinds import ANNOTATIONS, AREA_TABLE, DEFAULT, KINDS, OF_IMAGE
from segkit.paths import path_or_address

if TYPE_CHECKING:
    from segkit.inference.results import Wanted
    from segkit.inference.sureness import Sureness

_DESCRIPTION = f"""\
Segment images of any size with a checkpoint that `segkit fit` wrote.

A folder is searched with all folders inside it, links followed; hidden ones and those of file servers are left out.

For each image, written to DIR (folders inside a given folder are kept), as --output_kinds names them:
  labels        NAME_labels.png        train ids, 8-bit grey, exactly the size of the image
  color         NAME_color.png         the same in the colours of the classes
  overlay       NAME_overlay.png       the colours over the image, with a legend
  area          NAME_area.json         pixels and share of each class that occurs
  side_by_side  NAME_side_by_side.png  the image beside its overlay
  geojson       NAME.geojson           polygons in pixels, or in the coordinates of a georeferenced image
and for all images
  coco         coco.json         run lengths            cvat         cvat.zip          "Segmentation mask 1.1"
  panoptic     panoptic.json     and a folder of PNGs   labelstudio  labelstudio.json  predictions; .xml: their labels
  yolo         yolo/             polygons, data.yaml    labelme      labelme/          polygons
  area.csv     area.csv          pixels, share and, where the image is georeferenced, m2
Polygons and run lengths need {install_extra("annotations")}.
And on request
  NAME_confidence.png     the probability of each label, 8-bit grey, value / 255 (its PNG says so, too)
  NAME_probabilities.npz  "probabilities" of all classes, float16 (H, W, K): np.load(FILE)["probabilities"]
Both are scaled by the temperature of a file that `segkit weights calibrate` wrote. Probabilities are written row by
row: for 150 classes at 12 megapixels they take 0.4 GB besides what the network takes, and a file of 3.6 GB.

The EXIF orientation is applied; transparency is dropped. Of 16 bits the upper 8 are read, and of several pages or
frames the first, which stderr says; 16 bits that hold 10, 12 or 14 are refused.

An image that needs more than --memory is seen in overlapping tiles, and stderr says so. One that is too large to be
held at all (of --memory, or more than SEGKIT_MAX_PIXELS of the environment, 500 million by default) is read in tiles,
too, by rasterio ({install_extra("large-images")}), and gives instead of labels, color and side_by_side:
  NAME_labels.tif   a tiled GeoTIFF with the image's georeference and the classes' colours, always
  NAME_overlay.png  at most 2048 pixels a side
Its protocol must be whole or another one of scale 1 without windows; its EXIF orientation is not applied, and there is
no confidence.

Exit code: 0 all done, 1 some images could not be read (the others are done), 2 nothing could be done."""


def infer_parser() -> Parser:
    """The parser of `segkit infer`."""
    parser = Parser("segkit infer", description=_DESCRIPTION)
    add_input_options(parser)
    add_many_options(parser)
    parser.add_argument(
        "--checkpoint",
        required=True,
        type=Path,
        metavar="FILE",
        help="of `segkit fit` or any toolkit, exported, or hf://owner/name",
    )
    add_network_option(parser)
    parser.add_argument("--output", required=True, type=path_or_address, metavar="DIR", help="created if it is absent")
    parser.add_argument("--protocol", default="whole", metavar="NAME", help="whole (default), window, ms-flip, ...")
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda:1, ...; default: the GPU if there is one")
    parser.add_argument(
        "--memory",
        metavar="SIZE",
        help="what an image may take, its network included, such as 8GB, 500MB or 16GiB; PyTorch itself takes about "
        "1 GB besides, and a CPU's memory manager keeps up to a third more; default: 0.7 of what is free",
    )
    parser.add_argument(
        "--precision",
        choices=("auto", "bfloat16", "float32", "exact"),
        default="auto",
        help="auto (default): bfloat16 where the processor is fast at it, else float32; exact: the network as it was "
        "trained, no bit of it changed",
    )
    parser.add_argument(
        "--compile",
        action=Switch,
        help="compile the network for the first 8 sizes of its input: a minute each, worth it for many images",
    )
    parser.add_argument(
        "--alpha",
        type=number(lambda a: 0 <= a <= 1, "in 0..1"),
        default=0.5,
        metavar="A",
        help="colours' weight in the overlay, 0..1",
    )
    _add_kind_options(parser)
    add_video_options(parser)
    _add_sureness_options(parser)
    return parser


def _add_kind_options(parser: Parser) -> None:
    parser.add_argument(
        "--output_kinds",
        nargs="+",
        choices=KINDS,
        default=DEFAULT,
        metavar="KIND",
        help=f"what is written, of {', '.join(KINDS)}; default: {' '.join(DEFAULT)}",
    )
    parser.add_argument(
        "--tolerance",
        type=number(lambda t: 0 <= t < math.inf, "from 0"),
        default=0.0,
        metavar="PIXELS",
        help="how far polygons may leave the edges of pixels, to have fewer corners; 0 (default) is exact",
    )
    parser.add_argument(
        "--uncertain",
        type=whole_number(1),
        metavar="N",
        help="annotation files get only the N images with the lowest mean confidence, which uncertain.txt lists",
    )


def _add_sureness_options(parser: Parser) -> None:
    sure = parser.add_argument_group("how sure the network is")
    sure.add_argument("--confidence", action=Switch, help="write NAME_confidence.png, the probability of each label")
    sure.add_argument("--probabilities", action=Switch, help="write NAME_probabilities.npz, those of all classes")
    sure.add_argument(
        "--threshold",
        type=number(lambda t: 0 <= t <= 1, "in 0..1"),
        metavar="T",
        help="pixels with less confidence get the label 255, no class, are not coloured, and are counted as such",
    )


def what_is_wanted(options: argparse.Namespace) -> "Wanted":
    """What is to be written.

    Raises:
        InputError: An option has no effect on it, or a package is missing.
    """
    from segkit.inference.annotation_files import AnnotationFiles
    from segkit.inference.results import Wanted

    kinds = options.output_kinds
    of_many = [kind for kind in ANNOTATIONS if kind in kinds]
    polygons = [kind for kind, about in ANNOTATIONS.items() if about.outlines]
    if options.tolerance and not set(polygons) & set(of_many):
        raise InputError(f"--tolerance simplifies polygons: add {' or '.join(polygons)} to --output_kinds, or leave it")
    if options.uncertain is not None and not set(of_many) - {AREA_TABLE}:
        able = ", ".join(kind for kind in ANNOTATIONS if kind != AREA_TABLE)
        raise InputError(f"--uncertain chooses images for annotation files: add one of {able} to --output_kinds")
    how = (options.tolerance, options.uncertain)
    files = AnnotationFiles(options.output, of_many, *how) if of_many else None
    return Wanted(set(kinds) & set(OF_IMAGE), options.alpha, _how_sure(options), files)


def _how_sure(options: argparse.Namespace) -> "Sureness":
    """What is wanted of the confidence."""
    from segkit.inference.sureness import Sureness

    return Sureness(options.confidence, options.probabilities, options.threshold, options.uncertain is not None)
