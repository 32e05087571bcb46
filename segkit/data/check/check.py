"""Lists everything that is wrong with a data set, in one pass over all files that does not stop at the first error.

A mask is checked as training would read it: by the layout's own reader, then the label table. A split that the layout
refuses as a whole (another archive, a wrong list of names) counts as one problem.
"""

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from typing import TypeVar

import numpy as np

from segkit.bars import Bar
from segkit.data.check.pair import Look, Pair, inspect_pair
from segkit.data.check.report import Report, SplitReport, absent_classes
from segkit.data.layout.base import SPLITS, Layout, Part, Split
from segkit.data.layout.files import Source
from segkit.data.layout.masks import CONVERTED, MASK_SUFFIXES
from segkit.errors import InputError
from segkit.machine import cores
from segkit.metadata.label_space import UNDECLARED, LabelSpace
from segkit.paths import looked_for
from segkit.text import percent

T = TypeVar("T")
R = TypeVar("R")


def splits_of(layout: Layout) -> list[Split]:
    """The splits that a data set has: train, val, and test if it differs from val."""
    try:
        own_test = layout.has_split("test") and layout.parts("test") != layout.parts("val")
    except InputError:
        own_test = False  # reported when the other splits are checked
    return [split for split in SPLITS if split != "test" or own_test]


def check(
    report: Report,
    splits: Sequence[Split],
    workers: int | None = None,
    limit: int | None = None,
) -> None:
    """Check every file of these splits, and add all findings to `report`.

    Args:
        report: The report of the data set, which this function fills.
        splits: Splits to check.
        workers: Threads that decode; None: one for each core.
        limit: Images to open in each split, evenly spread; None: all.

    Raises:
        InputError: The folder of the data set is absent or empty.
    """
    if not report.layout.root.exists():
        root = report.layout.root
        raise InputError(f"{root}: no such data folder or archive{looked_for(root)}; give another ROOT")
    _require_images(report.layout, splits)
    if report.label_space is None:
        _note_label_space(report)
        return
    seen: set[str] = set()  # mask folders, which several splits may share
    images: dict[bytes, tuple[Split, str]] = {}  # split and name of the first image of each content
    for split in splits:
        pairs = _list_files(report, split, seen)
        _open_files(report, pairs if limit is None else _spread(pairs, limit), workers, images)


def _require_images(layout: Layout, splits: Sequence[Split]) -> None:
    """Refuse a root without a folder of images; a root that the layout refuses is a problem to report."""
    try:
        if any(layout.has_split(split) for split in splits):
            return
    except InputError:
        return
    layout.images_of(layout.parts(splits[0])[0])  # raises, and says which folder is missing


def _note_label_space(report: Report) -> None:
    try:
        _ = report.layout.label_space  # raises, and says what is wrong with it
    except InputError as error:
        report.findings.add("data set", str(error))


def _list_files(report: Report, split: Split, seen: set[str]) -> list[Pair]:
    """Images of a split with their masks; images without masks and masks without images are noted."""
    layout, findings = report.layout, report.findings
    found = SplitReport(split, layout.counts.get(split), is_labelled=split not in layout.scored_as)
    report.splits.append(found)
    try:
        parts = layout.parts(split)
        everything = [layout.images_of(replace(part, names=None)) for part in parts]
    except InputError as error:
        if str(error) not in findings.found.get("data set", ()):
            findings.add("data set", str(error))
        return []
    found.is_labelled &= all(part.masks is not None for part in parts)
    pairs: list[Pair] = []
    for part, images in zip(parts, everything, strict=True):
        if found.is_labelled and str(part.masks) not in seen:
            seen.add(str(part.masks))
            _note_lone_masks(report, part, images)
        pairs += _pairs(report, part, _named(report, part, images), found.is_labelled)
    found.images, found.masks = len(pairs), sum(pair.mask is not None for pair in pairs)
    if found.official not in (None, found.images):
        findings.add("count", f"{split}: {found.images} images; {layout.title} has {found.official}")
    return pairs


def _named(report: Report, part: Part, images: dict[str, Source]) -> dict[str, Source]:
    """The images that the part's list names; names without an image are noted."""
    for name in part.names or ():
        if name not in images:
            report.findings.add("not found", f"{part.list_file}: {name}")
    return images if part.names is None else {name: images[name] for name in part.names if name in images}


def _pairs(report: Report, part: Part, images: dict[str, Source], is_labelled: bool) -> list[Pair]:
    if not is_labelled:
        return [Pair(image, None) for image in images.values()]
    layout = report.layout
    try:
        masks = layout.masks_of(part, list(images))
    except InputError as error:
        report.findings.add("data set", str(error))
        return []
    without = [name for name, mask in masks.items() if mask is None]
    why = f" ({layout.why_no_mask(part, without[0])})" if without else ""  # only for the first, as it reads a folder
    for name in without:
        expected = layout.files.describe(part.mask_path(name))
        report.findings.add("no mask", f"{images[name]}: expected is {expected}{why}")
        why = ""
    return [Pair(image, masks[name]) for name, image in images.items()]


def _note_lone_masks(report: Report, part: Part, images: dict[str, Source]) -> None:
    """Note masks of the whole folder without an image; an image in another split's list counts."""
    if not report.layout.files.has(part.mask.folder):  # each image is already reported as lacking its mask
        return
    wanted = {part.mask_path(name).rpartition(".")[0] for name in images}
    for relative, file in report.layout.files.below(part.mask.folder, MASK_SUFFIXES):
        name = relative.with_suffix("").as_posix().removesuffix(CONVERTED)  # mmsegmentation's copies are not lone
        # Where masks have names of their own, as in Cityscapes, other files may lie beside them.
        is_mask = part.mask.matches(name) and not (name in images and images[name] == file)
        if is_mask and "/".join(filter(None, (part.mask.folder, name))) not in wanted:
            report.findings.add("no image", str(file))


def _spread(pairs: Sequence[Pair], limit: int) -> list[Pair]:
    count = min(limit, len(pairs))
    return [pairs[i * len(pairs) // count] for i in range(count)]


def _open_files(
    report: Report, pairs: Sequence[Pair], workers: int | None, images: dict[bytes, tuple[Split, str]]
) -> None:
    found, layout = report.splits[-1], report.layout
    found.wanted = len(pairs)
    bar = Bar(total=len(pairs), desc=f"check {layout.title} {found.split}", unit="image", disable=not pairs)
    outside: list[float] = []
    with bar, closing(in_threads(lambda pair: inspect_pair(layout, pair), pairs, workers)) as results:
        for pair, look in zip(pairs, results, strict=True):
            _take_in(report, found, look)
            _note_twin(report, found.split, pair, look.digest, images)
            outside += [] if look.outside is None else [look.outside]
            bar.update()
    if any(outside):
        text = f"{found.split}: {percent(sum(outside) / len(outside), 2)}% of the values of {len(outside)} images"
        report.findings.add("clipped", f"{text}, at most {percent(max(outside), 2)}% of one's")
    if found.masks:
        _note_absences(report, found, layout.label_space)


def _note_absences(report: Report, found: SplitReport, space: LabelSpace) -> None:
    """Note classes that are in no mask of the split, and whether at most one class is left."""
    where, names = f"{found.split} ({found.opened} masks): ", absent_classes(found, space)
    ids = {space.table[value] for value in np.flatnonzero(found.pixels)}
    note = space.note_of_absence(ids) if ids and UNDECLARED not in ids else None
    if note is not None:
        report.findings.add("0/255 masks" if space.looks_binary(ids) else "one class", where + note)
    elif names and ids:  # if no mask could be read, that is the problem
        report.findings.add("absent class", where + ", ".join(names))


def _take_in(report: Report, found: SplitReport, look: Look) -> None:
    for kind, text in look.notes:
        report.findings.add(kind, text)
    if look.counts is not None:
        found.pixels += look.counts
        found.having += look.counts > 0
    found.opened += 1


def _note_twin(
    report: Report, split: Split, pair: Pair, digest: bytes | None, images: dict[bytes, tuple[Split, str]]
) -> None:
    """Note an image that is also in another split, under any name."""
    if digest is None:
        return
    other, name = images.setdefault(digest, (split, str(pair.image)))
    if other != split:
        twin = f"also in {other}" if name == str(pair.image) else f"the same as {name} of {other}"
        report.findings.add("two splits", f"{pair.image} of {split}: {twin}")


def in_threads(function: Callable[[T], R], items: Sequence[T], workers: int | None) -> Generator[R, None, None]:
    """Results in order; work that has not started when the caller stops is cancelled."""
    pool = ThreadPoolExecutor(workers or cores())
    try:
        yield from pool.map(function, items)
    finally:
        pool.shutdown(cancel_futures=True)
