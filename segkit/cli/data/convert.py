"""`segkit data convert`: an export of an annotation tool becomes a folder of images and masks."""

import argparse
from pathlib import Path

from segkit.cli.words import say
from segkit.data.convert import Conversion, ImageFiles, convert, settle_classes
from segkit.errors import InputError
from segkit.files import check_writable
from segkit.formats.guess import guess_format
from segkit.formats.names import FORMATS, read_annotations
from segkit.metadata.label_space import IGNORE_INDEX
from segkit.paths import looked_for
from segkit.text import aligned, counted, percent

_SHOWN = 5  # refused images


def run(options: argparse.Namespace) -> int:
    """Convert, and print what was found.

    Returns:
        0: all images are converted. 1: some are refused.

    Raises:
        InputError: The command or the export is wrong, or nothing in it is annotated.
    """
    export, folder = options.export, options.output
    if not export.exists():
        raise InputError(f"{export}: no such file or folder{looked_for(export)}; give an export")
    check_writable(folder)
    name = options.format or guess_format(export)
    if name is None:
        known = ", ".join(name for name, one in FORMATS.items() if one.reads)
        raise InputError(f"{export}: looks like no export that is known; give its --format: {known}")
    annotations = read_annotations(name, export)
    if not annotations.images:
        raise InputError(f"{export}: an export ({name}) without images; annotate at least one, and export again")
    files = _images(export, folder, options.images)
    conversion = Conversion(settle_classes(folder, options.classes, annotations.class_names))
    try:
        convert(annotations, files, folder, conversion, options.overwrite)
    finally:
        _report(conversion, f"{export} ({name}): {folder}")
    if not conversion.images and not conversion.refused:
        raise InputError(
            f"{export}: no region in its {counted(len(annotations.images), 'image')}; annotate at least one"
        )
    say(f"see it: segkit data check folder {folder}")
    return 1 if conversion.refused else 0


def _images(export: Path, folder: Path, given: Path | None) -> ImageFiles:
    """The images where they are said to be, or in the export, or beside it, also beside its folder `annotations`."""
    if given is not None:
        return ImageFiles(given, folder)
    places = [export] if export.is_dir() or export.suffix.lower() == ".zip" else []
    places += [export.parent, *([export.parent.parent] if export.parent.name == "annotations" else [])]
    for place in places:
        found = ImageFiles(place, folder)
        if found:
            break
    return found


def _report(done: Conversion, title: str) -> None:
    there = f" ({done.there} were there)" if done.there else ""
    say(f"{title}: {counted(done.images, 'image')}{there}, {counted(done.regions, 'region')}")
    names = dict(enumerate(done.class_names)) | {IGNORE_INDEX: "ignored"}
    total = max(int(done.pixels.sum()), 1)
    rows = [
        (str(value), name, str(done.pixels[value]), f"{percent(done.pixels[value] / total)}%", str(done.having[value]))
        for value, name in names.items()
    ]
    say(aligned([("value", "class", "pixels", "share", "images"), *rows], left=(1,)))
    for what, count in done.problems.items():
        say(f"warning: {count} {what}")
    for line in done.refused[:_SHOWN]:
        say(f"refused: {line}")
    if len(done.refused) > _SHOWN:
        say(f"refused: {len(done.refused) - _SHOWN} images more")
