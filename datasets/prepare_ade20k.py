"""Get ADE20K (the scene parsing benchmark, ADEChallengeData2016): download, check, unpack.

    python datasets/prepare_ade20k.py                    0.97 GB to download, about 2.1 GB of disk while it unpacks
    python datasets/prepare_ade20k.py --zip FILE         unpack a zip that you have
    python datasets/prepare_ade20k.py --no-unpack        keep the zip as it is: segkit reads it

Whatever ends a run, the next one goes on from there. By using the data you accept its terms, see
http://groups.csail.mit.edu/vision/datasets/ADE20K/terms/. No image and no annotation is changed.
"""

import argparse
import hashlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from prepare_common import UNPACKED, Layout, check_space, check_zip, is_complete, names_in_zip, one_run, run, unpack

from segkit.errors import InputError
from segkit.models.download import bytes_of, fill

URL = "http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip"
NAME = "ADEChallengeData2016"


@dataclass(frozen=True)
class Archive:
    """What must arrive: bytes and SHA-1 of the zip, and what is in it."""

    size: int
    sha1: str
    layout: Layout


# The hash is the one that the ResNeSt authors' program asks for (PyTorch-Encoding, scripts/prepare_ade20k.py).
ADE20K = Archive(
    size=967_382_037,
    sha1="219e1696abb36c8ba3a3afe7fb2f4b4606a897c7",
    layout={
        NAME: {
            "images/training/*.jpg":        20210,
            "annotations/training/*.png":   20210,
            "images/validation/*.jpg":       2000,
            "annotations/validation/*.png":  2000,
        },
    },
)  # fmt: skip


def main(args: Sequence[str] | None = None, archive: Archive = ADE20K) -> int:
    """Run the program; return its exit code."""
    options = _parser().parse_args(args)
    return run(lambda: prepare(options, archive))


def prepare(options: argparse.Namespace, archive: Archive) -> None:
    """Do what is not done yet.

    Raises:
        InputError: The download broke off, the zip is not the right one or damaged, the disk is too small, or an
            incomplete data set is in the way.
    """
    home = options.root / NAME
    if not options.no_unpack and is_complete(options.root, archive.layout):
        print(f"{home}: complete already; nothing was done")
        return
    with one_run(options.root):
        kept, part = _zip_paths(options)
        path = kept if options.zip or kept.exists() else part
        if path is part:
            _download(options, archive, part)
        _check(path, archive, ours=path is part)
        if path is part and (options.no_unpack or options.keep_zip):
            os.replace(part, kept)
            path = kept
        if options.no_unpack:
            print(f"{path}: complete; --data.root {path} reads it")
            return
        unpack(path, archive.layout, options.root)
        part.unlink(missing_ok=True)
        print(f"{home}: complete; --data.root {home} reads it")


def _parser() -> argparse.ArgumentParser:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    root = Path(__file__).parent
    parser.add_argument("--root", type=Path, default=root, help=f"where {NAME} goes (default: the program's folder)")
    parser.add_argument("--zip", type=Path, help="a zip that you have; it is not removed")
    parser.add_argument("--url", default=URL, help="another place to get the same zip from (default: %(default)s)")
    parser.add_argument("--keep-zip", action="store_true", help="leave the downloaded zip beside what was unpacked")
    parser.add_argument("--no-unpack", action="store_true", help="only get and check the zip")
    return parser


def _zip_paths(options: argparse.Namespace) -> tuple[Path, Path]:
    """The user's zip, which is never removed, and the one that is this program's own until it is kept."""
    kept = options.root / f"{NAME}.zip"
    return options.zip or kept, kept.with_name(f"{kept.name}.part")


def _download(options: argparse.Namespace, archive: Archive, part: Path) -> None:
    unpacked = 0 if options.no_unpack else archive.size * UNPACKED
    check_space(options.root, max(archive.size - bytes_of(part), 0) + unpacked)
    fill(part, options.url, archive.size, "give another --url, or a --zip that you have", label=NAME)


def _check(path: Path, archive: Archive, ours: bool) -> None:
    """Compare size, SHA-1 and counts; remove a wrong zip if it is `ours`.

    Raises:
        InputError: Another file.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; give a zip as --zip, or leave it out to download")
    wrong = _what_is_wrong(path, archive)
    if wrong and ours:
        path.unlink()
        raise InputError(f"{path}: what arrived {wrong}; it was removed: run again, or give another --url")
    if wrong:
        raise InputError(f"{path}: {wrong}; give another --zip, or move this one away and run again to download")
    check_zip(path, archive.layout, contents=False)


def _what_is_wrong(path: Path, archive: Archive) -> str | None:
    size = path.stat().st_size
    if size != archive.size and any(name.endswith("_seg.png") for name in names_in_zip(path)):
        return f"is the full ADE20K (images with *_seg.png), not the benchmark's {NAME}.zip"
    if size != archive.size:
        return f"has {size} bytes, not {archive.size}: incomplete or another file"
    with path.open("rb") as file:
        sha1 = hashlib.file_digest(file, "sha1").hexdigest()
    return None if sha1 == archive.sha1 else f"has SHA-1 {sha1}, not {archive.sha1}: damaged or another file"


if __name__ == "__main__":
    sys.exit(main())
