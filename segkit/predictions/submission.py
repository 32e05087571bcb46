"""Submissions to the test servers of Cityscapes and ADE20K: a validator that lists all that is wrong; the archive."""

import io
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
from segkit.machine import cores
from segkit.paths import read_file, walk_files
from segkit.predictions.label_files import LabelPng, inspect_label_png
from segkit.predictions.submission_rules import Benchmark, Size

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
    "wrong ids":  "label maps that hold other ids than --ids says",
    "wrong size": "not of the image's size; predict at the image's own size",
    "unknown id": "values that are no id of this benchmark",
    "train ids":  "files that seem to hold train ids; `segkit submission make` turns them into the ids to upload",
}  # fmt: skip


@dataclass
class Problems:
    """What is wrong with a submission: by kind (`KINDS`), one text for each file, image or value."""

    found: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    num_files: int = 0

    def add(self, kind: str, text: str) -> None:
        """Note one problem."""
        assert kind in KINDS
        self.found[kind].append(text)

    def __bool__(self) -> bool:
        """Whether there is any."""
        return any(self.found.values())

    def report(self, limit: int = 10) -> str:
        """One paragraph a kind: its count, its meaning, and the first `limit` cases."""
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
    """A file of a submission: its path inside the archive, and how to get its bytes."""

    name: str
    read: Callable[[], bytes]


def open_submission(path: Path) -> list[Entry]:
    """The files of a zip archive or a folder, in the order of their names.

    Raises:
        InputError: It is neither, or holds no file, or is a zip that no server should unpack (`read_members`).
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
    benchmark: Benchmark,
    split: str = "test",
    sizes: Mapping[str, Size] | None = None,
) -> Problems:
    """Find everything that is wrong in one pass over all files, with a progress bar.

    Args:
        entries: the files, from `open_submission`.
        benchmark: the server's rules.
        split: of the images.
        sizes: image name to (width, height) of that split; None: only the number of images is checked.
    """
    problems = Problems(num_files=len(entries))
    maps = _check_names(entries, benchmark, sizes, problems)
    _check_images([key for key, _ in maps], benchmark, split, sizes, problems)
    jobs = [(entry, sizes.get(key) if sizes else benchmark.size) for key, entry in maps]
    results = in_threads(lambda job: inspect_label_png(job[0].read, job[1]), jobs, "check")
    for (_, entry), result in zip(maps, results, strict=True):
        if result.problem is not None:
            problems.add(result.problem[0], f"{entry.name}: {result.problem[1]}")
    _check_ids([(entry.name, result) for (_, entry), result in zip(maps, results, strict=True)], benchmark, problems)
    return problems


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
    """`function` of every item, in order, on all cores: decoding PNGs holds no lock; a progress bar on the way."""
    with ThreadPoolExecutor(min(16, cores())) as pool:
        return list(Bar(pool.map(function, items), desc=description, total=len(items), unit="file"))


def _not_empty(entries: list[Entry], path: Path) -> list[Entry]:
    if not entries:
        raise InputError(f"{path}: holds no file; give the archive or folder with the label maps")
    return entries


def _check_names(
    entries: Sequence[Entry], benchmark: Benchmark, sizes: Mapping[str, Size] | None, problems: Problems
) -> list[tuple[str, Entry]]:
    """(image, file) for every file that can be told to belong to an image."""
    maps = []
    for entry in entries:
        key, base = benchmark.key(entry.name), entry.name.rsplit("/", 1)[-1]
        if key is None:
            problems.add("wrong name", f"{entry.name}: expected is IMAGE{benchmark.ending}")
            continue
        if not benchmark.file.fullmatch(base):
            problems.add("wrong name", f"{entry.name}: call it {key}{benchmark.ending}")
        elif benchmark.flat and base != entry.name:
            problems.add("wrong name", f"{entry.name}: put it at the top of the archive, as {base}")
        if sizes is not None and key not in sizes:
            problems.add("extra", entry.name)
        else:
            maps.append((key, entry))
    return maps


def _check_images(
    keys: Sequence[str],
    benchmark: Benchmark,
    split: str,
    sizes: Mapping[str, Size] | None,
    problems: Problems,
) -> None:
    times = Counter(keys)
    for key, number in times.items():
        if number > 1:
            problems.add("duplicate", f"{key}: {number} files")
    if sizes is None:
        if len(times) != benchmark.counts[split]:
            problems.add("count", f"{len(times)} images; the {split} split has {benchmark.counts[split]}")
        return
    for key in sizes:
        if key not in times:
            problems.add("missing", f"{key}{benchmark.ending}")


def _check_ids(results: Sequence[tuple[str, LabelPng]], benchmark: Benchmark, problems: Problems) -> None:
    """Unknown ids, summed over the files; and files in train ids."""
    pixels: Counter[int] = Counter()
    files: dict[int, list[str]] = defaultdict(list)
    for name, result in results:
        for value, count in result.pixels.items():
            if value not in benchmark.ids:
                pixels[value] += count
                files[value].append(name)
        if result.pixels and benchmark.holds_train_ids(set(result.pixels)):
            problems.add("train ids", name)
    allowed = f"{benchmark.ids[0]}..{benchmark.ids[-1]}"
    for value, names in sorted(files.items()):
        where = f"{pixels[value]} pixels in {len(names)} files, first {names[0]}"
        problems.add("unknown id", f"{value} (allowed: {allowed}): {where}")
