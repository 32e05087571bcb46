"""The results of a part: files, or a tar as WebDataset reads it.

https://github.com/webdataset/webdataset, "The WebDataset Format": the files of a sample follow each other, and share
their name up to the first dot. Here it is the image's number in the list, as img2dataset has it, since the names of
images have dots themselves, and may differ in no more than their suffix.
"""

from __future__ import annotations

import json
import tarfile
import tempfile
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from segkit.errors import InputError
from segkit.files import replacing
from segkit.inference.images import is_large
from segkit.inference.parts import Part
from segkit.inference.results import Wanted, write_results
from segkit.inference.stream import Labelled, predict_files
from segkit.io import read_image
from segkit.io.bands import read_bands
from segkit.io.buckets import Bucket, PlaceError, RefusedError, Remote
from segkit.paths import leads_outside

if TYPE_CHECKING:  # it needs PyTorch
    from segkit.inference.stream import Labeller

READERS = 16  # threads, and as many that write: a bucket answers late, but many at once

_AHEAD = 32  # images
_KEY = 10  # digits


def shard_name(number: str) -> str:
    """The name of a part's tar."""
    return f"out-{number}.tar"


class PartWriter:
    """Labels images part by part, and writes their results.

    Files are made in a local folder that is removed, and moved into the output from there.

    Args:
        segmenter: What labels them.
        wanted: What is written of each image.
        output: Where it goes.
        name_of: Gives the name of an image's files in the output, to which `_labels.png` is added; None: into tars.
        failed: Called for each image that cannot be done.
        seen: Called after each image.
    """

    def __init__(
        self,
        segmenter: Labeller,
        wanted: Wanted,
        output: Bucket,
        name_of: Callable[[str], str] | None,
        failed: Callable[[str, Exception], None] = lambda image, error: None,
        seen: Callable[[], object] = lambda: None,
    ) -> None:
        self._segmenter, self._wanted, self._output, self._name_of = segmenter, wanted, output, name_of
        self._failed, self._seen = failed, seen
        self._images: dict[Path, str] = {}  # of a part, by the path that stands for each
        self._stems: dict[Path, Path] = {}
        self._memory = segmenter.budget
        sure = wanted.sureness
        self._look = sure.look(segmenter, self._stems) if sure.is_wanted else None  # type: ignore[arg-type]

    def write(self, part: Part) -> dict[str, str]:
        """Write the results of a part; gives why some images have none.

        Raises:
            InputError: The output cannot be written, or all of the images are missing or refused.
            PlaceError: A file system fails.
        """
        failures: dict[str, str] = {}
        refused: list[Exception] = []

        def failed(path: Path, error: Exception) -> None:
            if isinstance(error, PlaceError):  # not the image's fault: another run does the part
                raise error
            refused.extend([error] * isinstance(error, RefusedError))
            failures[self._images[path]] = str(error)
            self._failed(self._images[path], error)
            self._seen()

        with tempfile.TemporaryDirectory(prefix="segkit-") as folder:
            keys = [f"{part.start + index:0{_KEY}d}" for index in range(len(part.images))]
            self._images = dict(zip(map(Path, keys), part.images, strict=True))
            self._stems.clear()
            self._stems.update((Path(key), Path(folder, key)) for key in keys)
            if self._name_of is not None:
                self._write(failed, lambda key, files: None)
            else:
                tar = Path(folder, "shard")
                with replacing(tar) as temporary, tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as shard:
                    self._write(failed, lambda key, files: _add(shard, key, files))
                if len(refused) < len(part.images):
                    self._output.put(shard_name(part.name), tar)
        if len(refused) == len(part.images):
            raise InputError(f"nothing of part {part.name} can be read, as where a disk is gone; first {refused[0]}")
        return failures

    def _write(
        self, failed: Callable[[Path, Exception], None], take: Callable[[str, Mapping[str, Path]], None]
    ) -> None:
        with ThreadPoolExecutor(READERS) as writers:
            writing: deque[tuple[Path, Future[dict[str, Path]]]] = deque()

            def finish() -> None:
                path, work = writing.popleft()
                take(path.name, work.result())
                self._seen()

            done_ones = predict_files(
                self._segmenter, self._images, failed, _AHEAD, self._look, self._read, readers=READERS
            )
            for done in done_ones:
                writing.append((done.path, writers.submit(self._results, done)))
                if len(writing) > READERS:
                    finish()
            while writing:
                finish()

    def _read(self, path: Path) -> np.ndarray:
        image, segmenter = Remote(self._images[path]), self._segmenter
        if self._name_of is not None and leads_outside(name := self._name_of(str(image))):
            raise InputError(f"{image}: its results would be {name}, which leads out of the output; use --shards")
        if is_large(image, self._memory, segmenter.pixel_bytes):
            raise InputError(f"{image}: too large to be read at once; copy it, and segment it by a command of its own")
        if segmenter.bands is None:
            return np.require(read_image(image, apply_exif=True), np.uint8, ["C", "W"])
        return read_bands(image, segmenter.bands, apply_exif=True)

    def _results(self, done: Labelled) -> dict[str, Path]:
        """The files of an image, by their endings, such as `labels.png`; of loose ones, those that are in place."""
        stem, image = self._stems[done.path], self._images[done.path]
        write_results(self._segmenter, done, stem, self._wanted)
        areas = stem.with_name(f"{stem.name}_area.json")
        about = json.loads(areas.read_bytes()) if areas.exists() else {}
        if areas.exists() or self._name_of is None:
            areas.write_text(json.dumps(about | {"image": image}) + "\n", encoding="utf-8")
        start = f"{stem.name}_"
        files = {path.name.removeprefix(start): path for path in sorted(stem.parent.glob(f"{start}*"))}
        if self._name_of is not None:
            name = self._name_of(image)
            for ending, path in files.items():
                self._output.put(f"{name}_{ending}", path)
                path.unlink()
        return files


def _add(shard: tarfile.TarFile, key: str, files: Mapping[str, Path]) -> None:
    """Add the files of an image, and remove them; what is not of the image, such as the time, is left out."""
    for ending, path in files.items():
        member = tarfile.TarInfo(f"{key}.{'json' if ending == 'area.json' else ending}")
        member.size = path.stat().st_size
        with path.open("rb") as file:
            shard.addfile(member, file)
        path.unlink()
    shard.members = []  # type: ignore[attr-defined]  # which would hold all of them
