"""What `segkit infer` is given: its options for inputs, this process's share of them, and what is left of it to do."""

import argparse
import os
import sys
from codecs import BOM_UTF8
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

from segkit.cli.parser import Parser, Switch
from segkit.errors import InputError
from segkit.inference.finished import Finished
from segkit.inference.inputs import STDIN, expanded, find_images, is_live
from segkit.inference.kinds import ANNOTATIONS
from segkit.inference.pages import Pages
from segkit.inference.shares import Rank, rank_of
from segkit.paths import path_or_address
from segkit.text import counted

# Options that change no result, or which images there are.
_NOT_SETTINGS = {"images", "list", "output", "device", "memory", "compile", "overwrite", "pages"}

_DESCRIPTION = """\
Images that an earlier run with the same settings finished in DIR are skipped, by the lines of its hidden files
.finished.*.jsonl; those that are new or changed, or whose files are gone, are done, and all of them for files that hold
many images. Processes of torchrun or srun share the images: each takes every N-th one, on a GPU of its own."""


def add_input_options(parser: Parser) -> None:
    """Add what is given, and which of it is done."""
    group = parser.add_argument_group("inputs", description=_DESCRIPTION)
    group.add_argument(
        "images",
        nargs="*",
        type=path_or_address,
        metavar="IMAGE",
        help="an image, a folder of images, a video, a quoted pattern ('shots/**/*.jpg'), or -: paths on standard "
        "input, one a line",
    )
    group.add_argument(
        "--pages", action=Switch, help="all pages of TIFFs and frames of GIF, PNG and WebP, as images NAME_p0001, ..."
    )
    group.add_argument("--overwrite", action=Switch, help="do images again that are finished")


class Inputs:
    """The images of this process.

    Args:
        options: Those of the command; without a `device`, a rank gets a GPU of its own.
        failed: Called for each entry of a folder that cannot be read.
        note: Called with a line on what is left out.

    Attributes:
        stems: Where the results of each image go that is to be done.
        pages: Those of them that are pages of files.
        rank: Which of several processes this is.

    Raises:
        InputError: There are no images, or the launcher's variables are wrong.
    """

    def __init__(
        self, options: argparse.Namespace, failed: Callable[[Path, InputError], None], note: Callable[[str], None]
    ) -> None:
        self.rank, output = rank_of(os.environ), options.output
        of_many = [kind for kind in ANNOTATIONS if kind in options.output_kinds]
        if self.rank.count > 1 and (one := [kind for kind in of_many if ANNOTATIONS[kind].target != "."]):
            raise InputError(
                f"--output_kinds {' '.join(one)}: one file of all images, which {self.rank.count} processes of "
                f"{self.rank.launcher} cannot write together; run it in one process, or leave it out"
            )
        if self.rank.count > 1 and options.uncertain is not None:
            raise InputError("--uncertain: chooses among all images, which processes share; run it in one process")
        given = expanded(options.images, output, map(Path, lines_on_stdin(self.rank)))
        images = find_images(given, output, failed, note)
        self.pages = Pages()
        if options.pages:
            images = self.pages.expanded(images)
        mine = [(path, output / name) for path, name in self.rank.share(images)]
        self._finished = Finished(output, settings_of(options), self.rank.index)
        is_new = [options.overwrite or bool(of_many) or not self._has(*image) for image in mine]
        self.stems = {path: stem for (path, stem), new in zip(mine, is_new, strict=True) if new}
        done = len(mine) - len(self.stems)
        if self.rank.count > 1:
            share = f"{counted(len(mine), 'image')} of {len(images)}"
            note(f"process {self.rank.index} of {self.rank.count} by {self.rank.launcher}: {share}")
            options.device = options.device or own_gpu(self.rank)
        if done:
            note(f"{counted(done, 'image')} finished by an earlier run {'is' if done == 1 else 'are'} skipped; "
                 "--overwrite does them again")  # fmt: skip

    def finish(self, path: Path) -> None:
        """Note that an image is done; raises `InputError` if that cannot be written."""
        self._finished.add(self.pages.file(path), self.stems[path])

    def _has(self, path: Path, stem: Path) -> bool:
        return not is_live(path) and self._finished.has(self.pages.file(path), stem)


def settings_of(options: argparse.Namespace) -> dict[str, object]:
    """What the results of an image depend on."""
    settings = {name: value for name, value in vars(options).items() if name not in _NOT_SETTINGS}
    if (path := Path(options.checkpoint)).exists():
        settings |= {"checkpoint": path.resolve(), "size": path.stat().st_size, "time": path.stat().st_mtime_ns}
    return settings


def lines_on_stdin(rank: Rank) -> Iterator[str]:
    """The lines that are not empty, as names of files."""
    if rank.count > 1 and rank.launcher == "torchrun":  # srun gives each task the whole of it
        raise InputError(f"{STDIN}: torchrun's processes share one standard input; give folders or a quoted pattern")
    if sys.stdin is None:
        return
    for line in sys.stdin.buffer:
        if text := line.rstrip(b"\r\n").removeprefix(BOM_UTF8):
            yield os.fsdecode(text)


def own_gpu(rank: Rank) -> str | None:
    """The GPU of a rank, if there is one."""
    import torch

    return f"cuda:{rank.local % torch.cuda.device_count()}" if torch.cuda.is_available() else None


def wait_for_others(rank: Rank) -> None:
    """Wait until all ranks have come here: torchrun ends all of them as soon as one ends with an error."""
    if rank.count > 1 and "TORCHELASTIC_RUN_ID" in os.environ:
        import torch.distributed as dist

        dist.init_process_group("gloo", timeout=timedelta(days=30))
        dist.barrier()
        dist.destroy_process_group()
