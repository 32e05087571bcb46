"""`segkit infer` for millions of images: by fsspec's addresses, from a list or a bucket, in parts.

A stop loses the work on one part. Only one part of the list, and the images being worked on, are in memory.
"""

import argparse
import logging
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import chain
from typing import TYPE_CHECKING

from tqdm.contrib.logging import logging_redirect_tqdm

from segkit.bars import Bar
from segkit.cli.infer_inputs import lines_on_stdin, own_gpu, settings_of, wait_for_others
from segkit.cli.parser import Parser, whole_number
from segkit.cli.words import say_above_bar
from segkit.errors import InputError, about
from segkit.inference.kinds import ANNOTATIONS
from segkit.inference.shares import Rank, rank_of
from segkit.paths import Address, path_or_address
from segkit.text import counted

if TYPE_CHECKING:  # it needs PyTorch
    from segkit.inference.results import Wanted
    from segkit.inference.stream import Labeller
    from segkit.io.buckets import Bucket

PART = 1000  # images, without --shards: a stop loses at most the work on so many

_DESCRIPTION = """\
IMAGE and DIR may be addresses that fsspec reads: s3://bucket/images (pip install s3fs), gs://... (gcsfs),
zip://::images.zip. With one of them, --list or --shards, images are done in parts, and DIR/manifest/ notes each part
whose results are there: after a stop, the same command does the others. An image that cannot be read is noted, too, and
tried again only when its part's file there is deleted; a part whose images are all missing or refused ends the command.
Files are named by the whole name of the image, NAME.SUFFIX_labels.png. Processes of torchrun or srun share the parts of
a list, which must not change meanwhile. The names in one folder of a bucket are held in memory: give millions in one
folder as a --list."""


def add_many_options(parser: Parser) -> None:
    """Add the options for images that are done in parts."""
    group = parser.add_argument_group("many images", description=_DESCRIPTION)
    group.add_argument(
        "--list", type=path_or_address, metavar="FILE", help="addresses or paths, one a line, read as they are needed"
    )
    group.add_argument(
        "--shards",
        type=whole_number(1),
        metavar="N",
        help="results of N images each in a tar, DIR/out-000000.tar, as WebDataset reads it: KEY.labels.png, ..., "
        "KEY.json with the image's address",
    )


def are_many(options: argparse.Namespace) -> bool:
    """Whether images are to be done in parts."""
    addresses = any(isinstance(place, Address) for place in (options.output, *options.images))
    return addresses or options.list is not None or options.shards is not None


def run_many(
    options: argparse.Namespace,
    load: Callable[[], "Labeller"],
    wanted: "Wanted",
    complain: Callable[[Exception], None],
    note: Callable[[str], None],
) -> int:
    """Segment the images, and say how it went.

    Args:
        options: Those of the command.
        load: Gives the segmenter.
        wanted: What is written of each image.
        complain: Takes an error to be shown.
        note: Takes a line to be shown.

    Returns:
        0: all images are done. 1: some could not be read.

    Raises:
        InputError: An option has no effect here, there are no images, or a place cannot be read or written.
    """
    rank = rank_of(os.environ)
    _check(options, rank)
    if rank.count > 1:
        note(f"process {rank.index} of {rank.count} by {rank.launcher}: one part in {rank.count}")
        options.device = options.device or own_gpu(rank)
    start = time.perf_counter()
    counts = _segment(options, load, wanted, complain, note, rank)
    if counts["skipped"]:
        note(f"{counted(counts['skipped'], 'image')} of finished parts skipped; --overwrite begins anew")
    failures = f", {counts['failed']} failed (DIR/manifest says why)" if counts["failed"] else ""
    took = f"{time.perf_counter() - start:.1f} s"
    say_above_bar(f"{counted(counts['done'], 'image')} in {took}{failures}: {options.output}", sys.stdout)
    wait_for_others(rank)
    return 1 if counts["failed"] else 0


def _check(options: argparse.Namespace, rank: Rank) -> None:
    if of_many := [kind for kind in ANNOTATIONS if kind in options.output_kinds]:
        raise InputError(
            f"--output_kinds {' '.join(of_many)}: not of images that are done in parts, which are too many for one "
            "file; convert their labels, or segment a folder"
        )
    if options.pages or options.uncertain is not None:
        raise InputError("--pages and --uncertain: not for images that are done in parts; segment a folder")
    if options.overwrite and rank.count > 1:
        raise InputError("--overwrite: one process must begin anew; run it alone and stop it, or give a new --output")


def _segment(
    options: argparse.Namespace,
    load: Callable[[], "Labeller"],
    wanted: "Wanted",
    complain: Callable[[Exception], None],
    note: Callable[[str], None],
    rank: Rank,
) -> Counter[str]:
    """Do the parts of a rank; gives how many images are `done`, were `skipped`, or have `failed`, now or before."""
    from segkit.inference.parts import Manifest, parts
    from segkit.inference.shards import PartWriter
    from segkit.io.buckets import Bucket

    output, inputs = Bucket(str(options.output)), [Bucket(str(given)) for given in options.images]
    if any(given.address == output.address for given in inputs):
        raise InputError(f"{output.address}: is both input and output; give --output another folder")
    output.check_writable()
    root = inputs[0].address if len(inputs) == 1 and options.list is None else ""
    name_of = None if options.shards else lambda image: _name_below(image, root)

    def failed(image: str, error: Exception) -> None:
        complain(about(image, error))

    listed = parts(_listed(options, inputs, output.address, rank), options.shards or PART)
    if (first := next(listed, None)) is None:
        raise InputError(f"{options.list or inputs[0].address}: no images; check the address")
    segmenter, given = load(), {"images": [bucket.address for bucket in inputs], "list": str(options.list)}
    manifest = Manifest(output, settings_of(options) | given, options.overwrite)  # once nothing given is wrong
    counts = Counter[str]()
    with logging_redirect_tqdm([logging.getLogger("segkit")]), Bar(unit="image") as bar:
        writer = PartWriter(segmenter, wanted, output, name_of, failed, bar.update)
        for part in chain((first,), listed):
            if part.number % rank.count != rank.index:
                continue
            failures, what = manifest.failures(part), "skipped"
            if failures is None:
                failures, what = writer.write(part), "done"
                manifest.add(part, failures)
            counts[what] += len(part.images) - len(failures)
            counts["failed"] += len(failures)
    if (beyond := manifest.beyond(part.number)) and rank.index == 0:
        note(
            f"{output.address} has {counted(len(beyond), 'part')} of a longer list, from {beyond[0]} on; they are left"
        )
    return counts


def _listed(options: argparse.Namespace, inputs: list["Bucket"], output: str, rank: Rank) -> Iterator[str]:
    from segkit.io.buckets import read_lines

    given = options.list
    lines = () if given is None else lines_on_stdin(rank) if str(given) == "-" else read_lines(str(given))
    return chain(lines, *(bucket.images(output) for bucket in inputs))


def _name_below(image: str, root: str) -> str:
    """The name of an image's results: its address without the root, or with several roots all of it."""
    first = image.partition("::")[0]
    below = first.removeprefix(root.partition("::")[0]).lstrip("/") if root else re.sub("[:/]+", "/", image).lstrip("/")
    return below or first.rpartition("/")[2]
