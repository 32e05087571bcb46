"""Finds the images that a command line names, in folders too, and names their results."""

import glob
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path

from segkit.errors import InputError
from segkit.inference.kinds import ENDINGS
from segkit.paths import IMAGE_SUFFIXES, walk_files

STDIN = Path("-")
VIDEO_SUFFIXES = (".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".wmv")
STREAM = re.compile(r"(rtsps?|rtmp|udp|tcp|srt):/+")  # a Path has one slash
CAMERA = re.compile(r"/dev/video\d+")


def is_live(path: Path) -> bool:
    """Whether a path is the address of a camera or stream, which has no end."""
    return bool(STREAM.match(str(path)) or CAMERA.fullmatch(str(path)))


def is_video(path: Path) -> bool:
    """Whether a path is that of a video, by its name."""
    return is_live(path) or path.suffix.lower() in VIDEO_SUFFIXES


def expanded(given: Iterable[Path], output: Path, lines: Iterable[Path]) -> list[Path]:
    """Replace patterns by the paths that match them, and `-` by the paths of a list.

    Args:
        given: Paths. One with `*`, `?` or `[` that does not exist is a pattern; `**` stands for any folders.
        output: The folder of the results; no pattern matches what is in it.
        lines: The list, which is read where `-` is.

    Raises:
        InputError: Nothing matches a pattern, or the list is empty.
    """
    paths: list[Path] = []
    for path in given:
        if path == STDIN:
            found = list(lines)
        elif glob.has_magic(str(path)) and not os.path.lexists(path) and not is_live(path):
            real_output = Path(os.path.realpath(output))
            matches = (Path(name) for name in sorted(glob.glob(str(path), recursive=True)))
            found = [
                match for match in matches if real_output not in (real := Path(os.path.realpath(match)), *real.parents)
            ]
        else:
            found = [path]
        if not found:
            what = "no paths on standard input, one a line" if path == STDIN else "nothing matches this pattern"
            raise InputError(f"{path}: {what}; give images or folders of them")
        paths += found
    return paths


def find_images(
    inputs: Iterable[Path],
    output: Path,
    failed: Callable[[Path, InputError], None] | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> list[tuple[Path, Path]]:
    """Find images in files and folders, and name their results.

    Args:
        inputs: Files, kept even if they do not exist, and folders, which are searched by `walk_files`.
        output: The folder of the results; everything below it is left out.
        failed: Called for each entry of a folder that cannot be read; without it, the first such error is raised.
        say: Called with a line on images that are left out because they are below `output` and not results.

    Returns:
        (image, name of its results relative to `output`), each image once. The name is that of the image without
        its suffix. Images that would share a name get their suffix added to it (`a_jpg`, `a_png`), and a number if
        that is not enough.

    Raises:
        InputError: A folder has no images, or is the output folder itself.
    """
    named: dict[str, Path] = {}  # by real path, so that an image given twice counts once
    shown: dict[str, Path] = {}
    for given in inputs:
        found = [(path, path.relative_to(given)) for path in _search(given, output, failed, say)]
        for path, name in found or [(given, Path(given.name))]:
            real = os.path.realpath(path)
            shown.setdefault(real, path)
            named.setdefault(real, name)
    return list(zip(shown.values(), _unique(list(named.values())), strict=True))


def _search(
    folder: Path, output: Path, failed: Callable[[Path, InputError], None] | None, say: Callable[[str], None]
) -> list[Path]:
    """Images in a folder, except those in an output folder inside it; none for a file."""
    if not folder.is_dir():
        return []
    if os.path.realpath(folder) == os.path.realpath(output):
        raise InputError(f"{folder}: is both input and output; give --output another folder")
    found = walk_files(folder, IMAGE_SUFFIXES, failed)
    left_out = set(_below(found, folder, output))
    inputs = [path for path in sorted(left_out) if not path.name.endswith(ENDINGS)]
    if inputs:
        say(
            f"{inputs[0]} and all else in {output} is left out ({len(inputs)} images), because results go there; give "
            "--output a folder outside of the input to have them segmented"
        )
    images = [path for path in found if path not in left_out]
    if not images:
        raise InputError(f"{folder}: no images in this folder ({', '.join(IMAGE_SUFFIXES)} are looked for)")
    return images


def _below(found: Iterable[Path], folder: Path, output: Path) -> Iterable[Path]:
    """The paths that lead from `folder` through the output folder, links followed."""
    real_output = os.path.realpath(output)

    @cache
    def is_inside(parent: Path) -> bool:
        return parent != folder and (os.path.realpath(parent) == real_output or is_inside(parent.parent))

    return (path for path in found if is_inside(path.parent))


def _unique(names: list[Path]) -> list[Path]:
    """Drop the suffix where names remain distinct, ignoring case as macOS and Windows do."""
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
