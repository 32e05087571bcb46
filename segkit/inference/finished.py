"""Remembers which images are done, so that a second run of a command goes on where the first one stopped."""

import json
import os
from collections.abc import Iterable, Mapping
from hashlib import blake2b
from pathlib import Path

from segkit.files import write_refusal
from segkit.inference.kinds import ENDINGS


class Finished:
    """A hidden file in the output folder, `.finished.RANK.jsonl`, with a line for each image that is done.

    A line is written after the image's files, which are renamed when they are complete. It is valid for the image as it
    was, by its path, size and time, and for a command with the same settings. Lines of all ranks are read, those that a
    killed process left incomplete are passed over.

    Args:
        output: The folder of the results.
        settings: Whatever the results depend on.
        rank: The number of this process.
    """

    def __init__(self, output: Path, settings: Mapping[str, object], rank: int = 0) -> None:
        self._output, self._settings = output, json.dumps(settings, sort_keys=True, default=str)
        self._path = output / f".finished.{rank}.jsonl"
        self._files = dict(_lines(output.glob(".finished.*.jsonl")))
        self._begins = True

    def has(self, image: Path, stem: Path) -> bool:
        """Whether an image is done and all its files are there; `stem` is their path up to `_labels.png`."""
        files = self._files.get(self._mark(image, stem))
        return files is not None and all((self._output / name).is_file() for name in files)

    def add(self, image: Path, stem: Path) -> None:
        """Note that an image is done.

        Raises:
            InputError: The line cannot be written.
        """
        names = [stem.name + ending for ending in ENDINGS]
        folder = stem.parent.relative_to(self._output)
        files = [(folder / name).as_posix() for name in names if stem.with_name(name).is_file()]
        line = json.dumps([self._mark(image, stem), files], ensure_ascii=True) + "\n"
        try:
            self._output.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="ascii") as file:
                file.write("\n" * self._begins + line)  # the last line of a killed run may have no end
        except OSError as error:
            raise write_refusal(error, self._path) or error from error
        self._begins = False

    def _mark(self, image: Path, stem: Path) -> str:
        try:
            about = image.stat()
        except OSError:
            return ""
        parts = (
            self._settings,
            os.path.realpath(image),
            about.st_size,
            about.st_mtime_ns,
            stem.relative_to(self._output),
        )
        return blake2b("\0".join(map(str, parts)).encode("utf-8", "surrogateescape"), digest_size=10).hexdigest()


def _lines(paths: Iterable[Path]) -> Iterable[tuple[str, list[str]]]:
    for path in sorted(paths):
        for line in path.read_bytes().splitlines():
            try:
                mark, files = json.loads(line)
            except ValueError:
                continue
            if isinstance(mark, str) and mark and isinstance(files, list) and all(isinstance(f, str) for f in files):
                yield mark, files
