"""Guesses where the images and masks of a folder are, for a message that names the options to read them."""

import re
from collections import defaultdict
from collections.abc import Iterator
from difflib import SequenceMatcher

from segkit.data.layout.files import Files
from segkit.data.layout.masks import MASK_SUFFIXES
from segkit.paths import IMAGE_SUFFIXES

_SPLITS = ("train", "val", "test")
_MASK_WORDS = ("mask", "label", "gt", "truth", "annot", "seg")  # tell the masks' folder


def guess_paths(files: Files) -> tuple[str, str] | None:
    """The path templates that pair the most images with a mask; None if no rule is found.

    A rule is that both names share a part: `img/{name}.jpg` and `gt/{name}_mask.png`. Folders named like a split become
    `{split}`.
    """
    stems = defaultdict[tuple[str, str], set[str]](set)
    for path, _ in files.below("", IMAGE_SUFFIXES) if files.has("") else ():
        folder = "".join("{split}/" if part in _SPLITS else f"{part}/" for part in path.parts[:-1])
        stems[folder, path.suffix].add(path.stem)
    rules = [
        (count, _looks_like_masks(masks) - _looks_like_masks(images), images, masks)
        for image_place, image_stems in stems.items()
        for mask_place, mask_stems in stems.items()
        if mask_place[1].lower() in MASK_SUFFIXES
        for count, images, masks in _rules(image_place, image_stems, mask_place, mask_stems)
    ]
    best = max(rules, default=None, key=lambda rule: rule[:2])
    return best and best[2:]


def _rules(
    image_place: tuple[str, str], image_stems: set[str], mask_place: tuple[str, str], mask_stems: set[str]
) -> Iterator[tuple[int, str, str]]:
    """The number of images that each rule fits, and its templates."""
    image = min(image_stems, key=lambda stem: (len(stem), stem))
    others = sorted(mask_stems - {image} if image_place == mask_place else mask_stems)
    partners = [stem for stem in others if image in stem][:1]
    partners += [stem for stem in others if re.findall(r"\d+", stem) == re.findall(r"\d+", image)][:2] or others[:1]
    for mask in partners:
        shared = _shared(image, mask)
        if not shared:
            continue
        (before, behind), (front, back) = (stem.split(shared, 1) for stem in (image, mask))
        names = {
            stem[len(before) : len(stem) - len(behind)]
            for stem in image_stems
            if stem.startswith(before) and stem.endswith(behind)
        }
        fits = sum(front + name + back in mask_stems for name in names)
        if 2 * fits >= len(names):
            templates = (f"{before}{{name}}{behind}", f"{front}{{name}}{back}")
            if image_place != mask_place or templates[0] != templates[1]:
                yield fits, image_place[0] + templates[0] + image_place[1], mask_place[0] + templates[1] + mask_place[1]


def _shared(image: str, mask: str) -> str:
    """The longest part that both names share, cut to whole words."""
    start, at, size = SequenceMatcher(None, image, mask, autojunk=False).find_longest_match()
    shared = image[start : start + size]
    if any(behind[:1].isalpha() for behind in (image[start + size :], mask[at + size :])):
        shared = re.sub(r"[^\W\d_]+$", "", shared).rstrip("_-. ") or shared
    if any(before[-1:].isalpha() for before in (image[:start], mask[:at])):
        shared = re.sub(r"^[^\W\d_]+", "", shared).lstrip("_-. ") or shared
    return shared


def _looks_like_masks(path: str) -> bool:
    return any(word in path.lower() for word in _MASK_WORDS)
