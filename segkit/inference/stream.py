"""Labels many images: reading, copying and writing overlap the network, and images of one size share a forward.

On CUDA, the labels of a batch are fetched after the next batch has been queued on the GPU. Only protocols that fuse by
`exp_sum` wait for the GPU in between, because they need the largest logit.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from segkit.bands import Bands
from segkit.errors import InputError
from segkit.paths import raise_error

if TYPE_CHECKING:  # the first needs PyTorch, the second does without
    from segkit.inference.exported.label_model import LabelModel
    from segkit.inference.segmenter import Segmenter

    Labeller = Segmenter | LabelModel

READERS = 2  # threads; decoding and resizing release Python's lock
AHEAD = 8  # images to read in advance
# Images of one size in one forward, by device type; a CPU gains nothing from more than one.
BATCH_PIXELS = {"cpu": 1, "cuda": 2**21}


class Labelled(NamedTuple):
    """One image and its labels."""

    path: Path
    image: np.ndarray  # uint8 (H, W, 3); of other bands three, scaled by their range
    labels: np.ndarray  # uint8 (H, W)
    confidence: np.ndarray | None = None  # float32 (H, W), where it is looked for


Group = Sequence[tuple[Path, np.ndarray]]  # images of one size
Found = Callable[[], Sequence[Iterable[np.ndarray]]]  # waits for (labels,) or (labels, confidence) of a group
Look = Callable[[Group], Found]


def predict_files(
    segmenter: Labeller,
    paths: Iterable[Path],
    failed: Callable[[Path, Exception], None] = raise_error,
    ahead: int = AHEAD,
    look: Look | None = None,
    read: Callable[[Path], np.ndarray] | None = None,
    readers: int = READERS,
) -> Iterator[Labelled]:
    """Label images in the order of their paths.

    Args:
        segmenter: The network.
        paths: Image files, read like those of `Segmenter.predict`.
        failed: Called for each image that cannot be read or does not fit into memory; the others continue.
            Without it, the first such error is raised.
        ahead: How many images are read in advance.
        read: Reads an image; None: the segmenter's `read`.
        look: Begins to look at images; None: at their labels, by the segmenter's `queue`.
        readers: How many are read at once.

    Yields:
        Each image that worked.
    """
    waiting: deque[_Batch] = deque()
    most_pixels = BATCH_PIXELS.get(str(segmenter.device).partition(":")[0], BATCH_PIXELS["cuda"])
    for group in _groups(_read_ahead(read or segmenter.read, paths, failed, ahead, readers), most_pixels):
        waiting += _started(segmenter, group, failed, look or partial(_labels, segmenter))
        while len(waiting) > 1:
            yield from waiting.popleft().finish()
    while waiting:
        yield from waiting.popleft().finish()


class _Batch(NamedTuple):
    """Images of one size whose labels are on their way to host memory."""

    group: Group
    found: Found
    bands: Bands | None

    def finish(self) -> Iterator[Labelled]:
        for (path, image), *found in zip(self.group, *self.found(), strict=True):
            yield Labelled(path, image if self.bands is None else self.bands.as_rgb(image), *found)


def _labels(segmenter: Labeller, group: Group) -> Found:
    wait = segmenter.queue([image for _, image in group])
    return lambda: (list(wait()),)


def _started(segmenter: Labeller, group: Group, failed: Callable[[Path, Exception], None], look: Look) -> list[_Batch]:
    """Look at images of one size together, or one by one if they do not fit into memory."""
    try:
        return [_Batch(group, look(group), segmenter.bands)]
    except InputError as error:
        if len(group) == 1:
            failed(group[0][0], error)
            return []
    return [batch for one in group for batch in _started(segmenter, [one], failed, look)]


def _read_ahead(
    read: Callable[[Path], np.ndarray],
    paths: Iterable[Path],
    failed: Callable[[Path, Exception], None],
    ahead: int,
    readers: int,
) -> Iterator[tuple[Path, np.ndarray]]:
    """Read images by threads, in order; those that cannot be read are reported and left out."""
    with ThreadPoolExecutor(readers) as pool:
        reading: deque[tuple[Path, Future[np.ndarray]]] = deque()

        def next_read() -> Iterator[tuple[Path, np.ndarray]]:
            path, future = reading.popleft()
            try:
                yield path, future.result()
            except (InputError, OSError) as error:
                failed(path, error)

        try:
            for path in paths:
                reading.append((path, pool.submit(read, path)))
                if len(reading) > ahead:
                    yield from next_read()
            while reading:
                yield from next_read()
        finally:  # the consumer may stop early
            pool.shutdown(cancel_futures=True)


def _groups(images: Iterator[tuple[Path, np.ndarray]], most_pixels: int) -> Iterator[list[tuple[Path, np.ndarray]]]:
    """Runs of neighbouring images of one size, as many as fit into one forward."""
    group: list[tuple[Path, np.ndarray]] = []
    for path, image in images:
        at_once = most_pixels // (image.shape[0] * image.shape[1])
        if group and (image.shape != group[0][1].shape or len(group) >= at_once):
            yield group
            group = []
        group.append((path, image))
    if group:
        yield group
