"""Get Cityscapes: log in and download through cityscapesScripts, check, unpack.

    python datasets/prepare_cityscapes.py                images and fine annotations: 11 GB to download, 25 GB of disk
    python datasets/prepare_cityscapes.py --coarse       the coarse annotations and their images too: 45 GB more
    python datasets/prepare_cityscapes.py --no-unpack    only get and check the zips

An account is needed (https://www.cityscapes-dataset.com/register/); cityscapesScripts asks for it, or reads what it
stored. Zips that lie in --root already are used and left there. Whatever ends a run, the next one goes on from there.
No label file is changed or made: segkit reads the labelIds files as they are.
"""

import argparse
import contextlib
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cityscapesscripts.download import downloader
from prepare_common import UNPACKED, Layout, check_space, check_zip, is_complete, is_zip, one_run, run, unpack

from segkit.errors import InputError
from segkit.models.download import bytes_of, reason

SITE = "https://www.cityscapes-dataset.com"
FINE = {"train": 2975, "val": 500, "test": 1525}
EXTRA = {"train_extra": 19998}
COARSE = {"train": FINE["train"], "val": FINE["val"], **EXTRA}


@dataclass(frozen=True)
class Package:
    """One zip: its bytes as its site rounds them, which the disk must have room for, and what is in it."""

    size: float
    layout: Layout


def folders(kind: str, ending: str, counts: Mapping[str, int]) -> Layout:
    """The layout `kind/SPLIT/CITY/*ending`, with the number of files of each split."""
    return {f"{kind}/{split}": {f"*/*_{ending}.png": count} for split, count in counts.items()}


PACKAGES = {
    "gtFine_trainvaltest.zip":      Package(0.241e9, folders("gtFine", "gtFine_labelIds", FINE)),
    "leftImg8bit_trainvaltest.zip": Package(11e9, folders("leftImg8bit", "leftImg8bit", FINE)),
    "gtCoarse.zip":                 Package(1.3e9, folders("gtCoarse", "gtCoarse_labelIds", COARSE)),
    "leftImg8bit_trainextra.zip":   Package(44e9, folders("leftImg8bit", "leftImg8bit", EXTRA)),
}  # fmt: skip
DEFAULT = ["gtFine_trainvaltest.zip", "leftImg8bit_trainvaltest.zip"]
WITH_COARSE = ["gtCoarse.zip", "leftImg8bit_trainextra.zip"]


def main(args: Sequence[str] | None = None, packages: Mapping[str, Package] = PACKAGES) -> int:
    """Run the program; return its exit code."""
    options = _parser().parse_args(args)
    return run(lambda: prepare(options, packages))


def prepare(options: argparse.Namespace, packages: Mapping[str, Package]) -> None:
    """Do what is not done yet.

    Raises:
        InputError: No log-in, a download that broke off, a zip that is not the right one or damaged, a disk that is too
            small, or an incomplete data set that is in the way.
    """
    names = dict.fromkeys([*options.packages, *(WITH_COARSE if options.coarse else [])])  # each once
    wanted = {name: packages[name] for name in names}
    if not options.no_unpack:
        wanted = {name: package for name, package in wanted.items() if not is_complete(options.root, package.layout)}
    if not wanted:
        print(f"{options.root}: complete already; nothing was done")
        return
    with one_run(options.root):
        _download(options, wanted)
        for name, package in wanted.items():
            _finish(options, name, package)
        with contextlib.suppress(OSError):  # the zips of other packages may be in it
            _own(options.root).rmdir()
    print(f"{options.root}: complete" + ("" if options.no_unpack else f"; --data.root {options.root} reads it"))


def _parser() -> argparse.ArgumentParser:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    root = Path(__file__).parent / "cityscapes"
    parser.add_argument(
        "--root", type=Path, default=root, help="where leftImg8bit and gtFine go (default: %(default)s)"
    )
    help_text = f"what to get, of {', '.join(PACKAGES)} (default: {' '.join(DEFAULT)})"
    parser.add_argument("--packages", nargs="+", choices=PACKAGES, default=DEFAULT, metavar="ZIP", help=help_text)
    parser.add_argument("--coarse", action="store_true", help=f"get {' and '.join(WITH_COARSE)} too")
    parser.add_argument("--keep-zip", action="store_true", help="leave downloaded zips beside what was unpacked")
    parser.add_argument("--no-unpack", action="store_true", help="only get and check the zips")
    return parser


def _own(root: Path) -> Path:
    """Where zips are this program's own, until they are kept, or unpacked and removed; the user's are in `root`."""
    return root / "zips.part"


def _download(options: argparse.Namespace, wanted: Mapping[str, Package]) -> None:
    """Get the zips that are neither the user's nor got by an earlier run."""
    own = _own(options.root)
    absent = [name for name in wanted if not (options.root / name).exists() and not is_zip(own / name)]
    if not absent:
        return
    unpacked = 0 if options.no_unpack else sum(package.size for package in wanted.values()) * UNPACKED
    check_space(options.root, unpacked + sum(max(wanted[name].size - bytes_of(own / name), 0) for name in absent))
    own.mkdir(exist_ok=True)
    session = _log_in(options.root)
    for name in absent:
        _download_one(session, own / name)


def _log_in(root: Path) -> Any:
    """A session of cityscapesScripts, which asks for the account."""
    by_hand = f"an account is made at {SITE}/register/, and zips that are put into {root} are used without one"
    try:
        return downloader.login()
    except EOFError:
        raise InputError(f"{SITE}: no terminal to ask for the account; run once in a terminal; {by_hand}") from None
    except Exception as error:  # the downloader raises nothing narrower
        raise InputError(f"{SITE}: no log-in ({reason(error)}); {by_hand}") from error


def _download_one(session: Any, path: Path) -> None:
    """Go on with one zip to its end; the downloader compares its MD5 with the one that the site declares."""
    try:
        arguments = {"package_names": [path.name], "destination_path": str(path.parent)}
        downloader.download_packages(session=session, resume=path.exists(), **arguments)
    except Exception as error:  # the downloader raises nothing narrower
        if _is_hopeless(error):
            path.unlink(missing_ok=True)
            raise InputError(f"{path.name}: damaged on the way ({reason(error)}); it was removed: run again") from error
        raise InputError(f"{path.name}: broke off ({reason(error)}); run again to go on from there") from error


def _is_hopeless(error: Exception) -> bool:
    """Whether what there is must go: another MD5, or as long as the file (416: nothing follows) and yet not a zip."""
    return "MD5" in str(error) or getattr(getattr(error, "response", None), "status_code", None) == 416


def _finish(options: argparse.Namespace, name: str, package: Package) -> None:
    """Check one zip, and unpack it unless told not to; then keep it or remove it."""
    kept, own = options.root / name, _own(options.root) / name
    path = kept if kept.exists() else own
    if options.no_unpack:
        check_zip(path, package.layout, contents=True)
    else:
        unpack(path, package.layout, options.root)
    if path is own and (options.no_unpack or options.keep_zip):
        os.replace(own, kept)
    own.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())
