"""`segkit infer`: segment pictures with a trained network; label map, colours, overlay and areas for each of them."""

import argparse
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from segkit.errors import InputError
from segkit.files import check_writable, write_json
from segkit.io import read_image, write_png
from segkit.visualization import colorize, occurring, overlay, with_legend

if TYPE_CHECKING:  # it needs PyTorch, which takes seconds to import, and `--help` does not
    from segkit.inference.segmenter import Segmenter

PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")

_DESCRIPTION = """\
Segment pictures of any size with a checkpoint that `segkit fit` wrote.

For each picture, written to DIR (folders inside a given folder are kept):
  NAME_labels.png   train ids, 8-bit grey, exactly the size of the picture
  NAME_color.png    the same in the colours of the classes
  NAME_overlay.png  the colours over the picture, with a legend
  NAME_area.json    pixels and share of each class that occurs

The EXIF orientation is applied; transparency is dropped. Files of an earlier run are replaced.
Exit code: 0 all done, 1 some pictures could not be read (the others are done), 2 nothing could be done."""


def main(args: list[str] | None = None) -> int:
    """Run `segkit infer`.

    Args:
        args: what follows `segkit infer` on the command line; None takes `sys.argv`.

    Returns:
        0: all pictures done. 1: some could not be read or written. 2: the command itself was wrong.
    """
    options = _parser().parse_args(args)
    try:
        return _run(options)
    except InputError as error:
        _complain(error)
        return 2


def find_pictures(inputs: Iterable[Path], output: Path) -> list[tuple[Path, Path]]:
    """Find pictures in files and folders, and name their results.

    Args:
        inputs: files are taken as they are, absent ones too; folders are searched, with the folders inside them, for
            the suffixes of pictures. Hidden files and those below `output` are left out.
        output: the folder of the results.

    Returns:
        (picture, name of its results relative to `output`), each picture once. The name is that of the picture without
        its suffix. Pictures that would share a name get their suffix into it (`a_jpg`, `a_png`), and if that is not
        enough a number.

    Raises:
        InputError: a folder holds no picture, or is the output folder itself.
    """
    named: dict[Path, Path] = {}  # resolved, so that a picture given twice counts once
    shown: dict[Path, Path] = {}
    for given in inputs:
        found = [(path, path.relative_to(given)) for path in _walk(given, output)] if given.is_dir() else []
        if given.is_dir() and not found:
            raise InputError(f"{given}: no pictures in this folder ({', '.join(PICTURE_SUFFIXES)} are looked for)")
        for path, name in found or [(given, Path(given.name))]:
            shown.setdefault(path.resolve(), path)
            named.setdefault(path.resolve(), name)
    return list(zip(shown.values(), _unique(list(named.values())), strict=True))


def _run(options: argparse.Namespace) -> int:
    pictures = find_pictures(options.pictures, options.output)
    check_writable(options.output)
    from segkit.inference.segmenter import load

    segmenter = load(options.checkpoint, options.device, options.protocol)
    start = time.perf_counter()
    failed = 0
    for path, name in tqdm(pictures, unit="picture", disable=len(pictures) == 1):
        try:
            segment(segmenter, path, options.output / name, options.alpha)
        except (InputError, OSError) as error:
            failed += 1
            _complain(error)
    _summarise(len(pictures) - failed, failed, time.perf_counter() - start, options.output, segmenter)
    return 1 if failed else 0


def segment(segmenter: "Segmenter", path: Path, stem: Path, alpha: float) -> None:
    """Segment one picture and write its four results, each in one step.

    Args:
        segmenter: the network.
        path: the picture.
        stem: the results' path up to `_labels.png`, `_color.png`, `_overlay.png` and `_area.json`.
        alpha: weight of the colours in the overlay, 0..1.

    Raises:
        InputError: the picture cannot be read.
        OSError: a result cannot be written.
    """
    image = read_image(path, apply_exif=True)
    labels = segmenter.predict(image)
    names, palette = segmenter.class_names, segmenter.palette
    mixed = with_legend(overlay(image, labels, palette, alpha), labels, names, palette)
    write_png(_suffixed(stem, "_labels.png"), labels)
    write_png(_suffixed(stem, "_color.png"), colorize(labels, palette))
    write_png(_suffixed(stem, "_overlay.png"), mixed)
    write_json(_suffixed(stem, "_area.json"), {"picture": str(path)} | _areas(segmenter, labels))


def _areas(segmenter: "Segmenter", labels: np.ndarray) -> dict[str, object]:
    counts = np.bincount(labels.ravel(), minlength=256)
    classes = [
        {"id": i, "name": segmenter.class_names[i], "pixels": int(counts[i]), "share": int(counts[i]) / labels.size}
        for i in occurring(labels)
    ]
    height, width = labels.shape
    return {"height": height, "width": width, "protocol": segmenter.protocol.to_dict(), "classes": classes}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "segkit infer", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pictures", nargs="+", type=Path, metavar="PICTURE", help="a picture, or a folder of pictures")
    parser.add_argument("--checkpoint", required=True, type=Path, metavar="FILE", help="written by `segkit fit`")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="made where it is absent")
    parser.add_argument("--protocol", default="whole", metavar="NAME", help="whole (default), window, ms-flip, ...")
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1, ...; default: the GPU where there is one")
    parser.add_argument("--alpha", type=_alpha, default=0.5, metavar="A", help="colours' weight in the overlay, 0..1")
    return parser


def _alpha(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number in 0..1")
    return value


def _walk(folder: Path, output: Path) -> Iterator[Path]:
    """Pictures in a folder, sorted; without the results of an earlier run, where the output folder lies inside."""
    if folder.resolve() == output.resolve():
        raise InputError(f"{folder}: is both input and output; give --output another folder")
    for root, folders, files in os.walk(folder):
        here = Path(root)
        folders[:] = sorted(f for f in folders if not f.startswith(".") and (here / f).resolve() != output.resolve())
        yield from (here / f for f in sorted(files) if _is_picture(f))


def _is_picture(name: str) -> bool:
    return name.lower().endswith(PICTURE_SUFFIXES) and not name.startswith(".")  # "._a.jpg" is no picture, but macOS's


def _unique(names: list[Path]) -> list[Path]:
    """Drop the suffix where the rest tells the names apart, without regard to case (macOS and Windows have none)."""
    short = [name.with_suffix("") for name in names]
    short = _replace_shared(short, [name.with_name(name.name.replace(".", "_")) for name in names])
    taken: dict[str, Path] = {}
    for name in short:
        number, candidate = 1, name
        while _key(candidate) in taken:
            number += 1
            candidate = name.with_name(f"{name.name}_{number}")
        taken[_key(candidate)] = candidate
    return list(taken.values())


def _replace_shared(names: list[Path], replacements: list[Path]) -> list[Path]:
    counts = Counter(map(_key, names))
    return [new if counts[_key(old)] > 1 else old for old, new in zip(names, replacements, strict=True)]


def _key(name: Path) -> str:
    return str(name).casefold()


def _suffixed(stem: Path, suffix: str) -> Path:
    return stem.with_name(stem.name + suffix)


def _summarise(done: int, failed: int, seconds: float, output: Path, segmenter: "Segmenter") -> None:
    pictures = f"{done} picture{'' if done == 1 else 's'}"
    failures = f", {failed} failed" if failed else ""
    how = f"protocol {segmenter.protocol.name}, {segmenter.device}"
    tqdm.write(f"{pictures} in {seconds:.1f} s{failures} ({how}): {output}")


def _complain(error: Exception) -> None:
    message = " ".join(str(error).split())
    tqdm.write(f"segkit infer: error: {message}", file=sys.stderr)  # above a progress bar that is being drawn
