"""Lists of picture names, as data sets come with them: one name a line, without extension."""

import os

from segkit.data.layouts.files import IMAGE_SUFFIXES, Source
from segkit.errors import InputError
from segkit.metadata.class_files import read_text


def read_names(list_file: Source) -> tuple[str, ...]:
    """The names in a list, in its order; an extension of a picture is left out.

    Raises:
        InputError: It is not UTF-8, names nothing, or names a picture twice.
    """
    names = [_without_image_suffix(line.strip()) for line in read_text(list_file).split("\n") if line.strip()]
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise InputError(f"{list_file}: names {name} twice; every picture counts once: remove one line")
        seen.add(name)
    if not names:
        raise InputError(f"{list_file}: names no picture; write one name a line")
    return tuple(names)


def _without_image_suffix(name: str) -> str:
    stem, suffix = os.path.splitext(name)
    return stem if suffix.lower() in IMAGE_SUFFIXES else name
