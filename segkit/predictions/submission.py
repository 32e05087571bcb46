"""Submissions to the test servers of Cityscapes and ADE20K: the archive, and a validator that lists its problems."""

import io
import tempfile
import zipfile
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

from segkit.archives import read_members
from segkit.bars import Bar
from segkit.errors import InputError, printable
from segkit.files import write_bytes
from segkit.io import image_size
from segkit.machine import cores
from segkit.paths import read_file, walk_files
from segkit.predictions.label_files import (
    IdError,
    Ids,
    LabelPng,
    Server,
    WidthHeight,
    find_predictions,
    inspect_label_png,
    write_raw,
)

T = TypeVar("T")
R = TypeVar("R")

# kind          what it means and what to do; in the order of the report
KINDS = {
    "count":      "wrong number of label maps",
    "missing":    "images without a label map",
    "extra":      "label maps of no image of this split; remove them",
    "duplicate":  "images with more than one label map; leave one",
    "wrong name": "files whose name the server does not look for",
    "unreadable": "files that cannot be read; write them again",
    "format":     "not an 8-bit PNG with one grey channel; save one channel, 8 bits, no palette",
    "wrong ids":  "label maps that hold other ids than --prediction_ids says",
    "wrong size": "not of the image's size; predict at the image's own size",
    "unknown id": "values that are no id of this benchmark",
    "train ids":  "files that seem to hold train ids; `segkit submission make` turns them into the ids to upload",
}  # fmt: skip


@dataclass
class Problems:
    """The problems of a submission by kind (`KINDS`), one text for each file, image or value."""

    found: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    num_files: int = 0

    def add(self, kind: str, text: str) -> None:
        """Add one problem of this kind."""
        assert kind in KINDS
        self.found[kind].append(text)

    def __bool__(self) -> bool:
        """Whether there is any problem."""
        return any(self.found.values())

    def report(self, limit: int = 10) -> str:
        """One paragraph for each kind: its count, its meaning, and the first `limit` cases."""
        lines, limit = [], max(0, limit)
        for kind, meaning in KINDS.items():
            cases = self.found.get(kind, [])
            if cases:
                more = [f"  ... and {len(cases) - limit} more"] if len(cases) > limit else []
                lines += [
                    f"{kind} ({len(cases)}): {meaning}",
                    *(f"  {printable(case)}" for case in cases[:limit]),
                    *more,
                ]
        return "\n".join(lines)


@dataclass(frozen=True)
class Entry:
    """A file of a submission: its path inside the archive, and a function that reads its bytes."""

    name: str
    read: Callable[[], bytes]


def open_submission(path: Path) -> list[Entry]:
    """The files of a zip archive or a folder, in the order of their names.

    Raises:
        InputError: The path is neither, holds no file, or is a zip that no server should unpack (`read_members`).
    """
    if path.is_dir():
        files = walk_files(path)
        return _not_empty([Entry(p.relative_to(path).as_posix(), partial(read_file, p)) for p in files], path)
    if not path.is_file():
        raise InputError(f"{path}: no such file or folder; give the zip archive, or the folder that it is made of")
    members = sorted(read_members(path), key=lambda member: member.name)
    return _not_empty([Entry(member.name, member.read_bytes) for member in members], path)


def check_submission(
    entries: Sequence[Entry],
    server: Server,
    split: str = "test",
    sizes: Mapping[str, WidthHeight] | None = None,
) -> Problems:
    """Find everything that is wrong in one pass over all files, with a progress bar.

    Args:
        entries: The files, from `open_submission`.
        server: The server's rules.
        split: The split of the images.
        sizes: (width, height) of the split's images by name; None: only the number of images is checked.
    """
    problems = Problems(num_files=len(entries))
    maps = _check_names(entries, server, sizes, problems)
    _check_images([key for key, _ in maps], server, split, sizes, problems)
    jobs = [(entry, sizes.get(key) if sizes else server.size) for key, entry in maps]
    results = in_threads(lambda job: inspect_label_png(job[0].read, job[1]), jobs, "check")
    for (_, entry), result in zip(maps, results, strict=True):
        if result.problem is not None:
            problems.add(result.problem[0], f"{entry.name}: {result.problem[1]}")
    _check_ids([(entry.name, result) for (_, entry), result in zip(maps, results, strict=True)], server, problems)
    return problems


@dataclass(frozen=True)
class Made:
    """The result of `make_submission`: problems, which prevent writing, and the number of predictions left out."""

    problems: Problems
    left_out: int


def make_submission(
    predictions: Path, output: Path, server: Server, ids: Ids, split: str, sizes: Mapping[str, WidthHeight] | None
) -> Made:
    """Rewrite predictions in the server's ids, check the result, and write the archive if nothing is wrong.

    Args:
        predictions: Folder of label PNGs, named by image.
        output: The archive.
        server: The server whose rules apply.
        ids: The kind of ids in the predictions.
        split: The split of the images.
        sizes: See `check_submission`; predictions of other images are left out.

    Raises:
        InputError: There are no predictions.
    """
    found = find_predictions(predictions, server)
    wanted = {key: paths for key, paths in found.items() if sizes is None or key in sizes}
    with tempfile.TemporaryDirectory() as folder:
        failures = _convert(wanted, Path(folder), server, ids)
        entries = [Entry(path.name, path.read_bytes) for path in sorted(Path(folder).iterdir())]
        left = None if sizes is None else {key: size for key, size in sizes.items() if key not in failures}
        problems = check_submission(entries, server, split, left)
        for kind, failure in failures.values():
            problems.add(kind, failure)
        for key, paths in wanted.items():
            if len(paths) > 1:
                problems.add("duplicate", f"{key}: {paths[0]} and {paths[1]}")
        if not problems:
            write_archive(output, entries)
    return Made(problems, len(found) - len(wanted))


def image_sizes(server: Server, root: Path | None, split: str) -> Mapping[str, WidthHeight] | None:
    """Name and (width, height) of every image of a split; None without a data root.

    Raises:
        InputError: The root has no images of that split.
    """
    if root is None:
        return None
    tried = [root / folder for folder in server.folders[split]]
    folder = next((folder for folder in tried if folder.is_dir()), None)
    if folder is None:
        raise InputError(f"{root}: no {split} images here; looked for {', '.join(map(str, tried))}")
    files = walk_files(folder, (".png", ".jpg"))
    images = {key: path for path in files if (key := server.key(path.name)) is not None}
    if not images:
        raise InputError(f"{folder}: no image named as those of {server.name}; give another --data")
    return dict(zip(images, in_threads(image_size, list(images.values()), "images"), strict=True))


def write_archive(path: Path, entries: Sequence[Entry]) -> None:
    """Write a zip atomically; the same files always make the same bytes (names sorted, no times, PNGs stored as is)."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for entry in sorted(entries, key=lambda entry: entry.name):
            info = zipfile.ZipInfo(entry.name)  # its time is 1980-01-01, not now
            info.create_system, info.external_attr = 3, 0o644 << 16
            archive.writestr(info, entry.read())
    write_bytes(path, buffer.getvalue())


def in_threads(function: Callable[[T], R], items: Sequence[T], description: str) -> list[R]:
    """Results of `function` for all items in order, on all cores (decoding PNGs holds no lock), with a progress bar."""
    with ThreadPoolExecutor(min(16, cores())) as pool:
        return list(Bar(pool.map(function, items), desc=description, total=len(items), unit="file"))


def _convert(found: Mapping[str, list[Path]], folder: Path, server: Server, ids: Ids) -> dict[str, tuple[str, str]]:
    """Write the first label map of each image into `folder`, in the server's ids.

    Returns:
        By image, the kind of problem (`KINDS`) and its line.
    """

    def convert(key: str) -> tuple[str, str] | None:
        path = found[key][0]
        try:
            write_raw(path, folder / f"{key}{server.ending}", server, ids)
        except IdError as error:
            return "wrong ids", str(error)
        except InputError as error:
            return ("format" if _is_image(path) else "unreadable"), str(error)
        return None

    failures = in_threads(convert, list(found), "convert")
    return {key: failure for key, failure in zip(found, failures, strict=True) if failure is not None}


def _is_image(path: Path) -> bool:
    try:
        image_size(path)
    except InputError:
        return False
    return True


def _not_empty(entries: list[Entry], path: Path) -> list[Entry]:
    if not entries:
        raise InputError(f"{path}: holds no file; give the archive or folder with the label maps")
    return entries


def _check_names(
    entries: Sequence[Entry], server: Server, sizes: Mapping[str, WidthHeight] | None, problems: Problems
) -> list[tuple[str, Entry]]:
    """Pairs (image, file) of all files that belong to an image; others are noted as problems."""
    maps = []
    for entry in entries:
        key, base = server.key(entry.name), entry.name.rsplit("/", 1)[-1]
        if key is None:
            problems.add("wrong name", f"{entry.name}: expected is IMAGE{server.ending}")
            continue
        if not server.file.fullmatch(base):
            problems.add("wrong name", f"{entry.name}: call it {key}{server.ending}")
        elif server.flat and base != entry.name:
            problems.add("wrong name", f"{entry.name}: put it at the top of the archive, as {base}")
        if sizes is not None and key not in sizes:
            problems.add("extra", entry.name)
        else:
            maps.append((key, entry))
    return maps


def _check_images(
    keys: Sequence[str],
    server: Server,
    split: str,
    sizes: Mapping[str, WidthHeight] | None,
    problems: Problems,
) -> None:
    times = Counter(keys)
    for key, number in times.items():
        if number > 1:
            problems.add("duplicate", f"{key}: {number} files")
    if sizes is None:
        if len(times) != server.counts[split]:
            problems.add("count", f"{len(times)} images; the {split} split has {server.counts[split]}")
        return
    for key in sizes:
        if key not in times:
            problems.add("missing", f"{key}{server.ending}")


def _check_ids(results: Sequence[tuple[str, LabelPng]], server: Server, problems: Problems) -> None:
    """Note unknown ids, summed over all files, and files in train ids."""
    pixels: Counter[int] = Counter()
    files: dict[int, list[str]] = defaultdict(list)
    for name, result in results:
        for value, count in result.pixels.items():
            if value not in server.ids:
                pixels[value] += count
                files[value].append(name)
        if result.pixels and server.holds_train_ids(set(result.pixels)):
            problems.add("train ids", name)
    allowed = f"{server.ids[0]}..{server.ids[-1]}"
    for value, names in sorted(files.items()):
        where = f"{pixels[value]} pixels in {len(names)} files, first {names[0]}"
        problems.add("unknown id", f"{value} (allowed: {allowed}): {where}")
