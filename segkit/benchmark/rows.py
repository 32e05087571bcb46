"""One row of `segkit benchmark`: score a model on a data set, and measure what that costs."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import PurePath
from typing import Any

import torch
from torch import Tensor

from segkit.bars import Bar
from segkit.benchmark.cost import PeakMemory, Stopwatch, flops, flops_of, parameters, recorded_forwards
from segkit.benchmark.encoders import encoder_values
from segkit.benchmark.plan import PlannedRow
from segkit.benchmark.progress import Progress, Settings, asked_of, key_of, num_classes
from segkit.benchmark.table import Table
from segkit.data.datamodule import SegmentationDataModule
from segkit.data.imagenet.crops import CentreCrop
from segkit.data.samplers import EvalSampler
from segkit.errors import InputError, printable
from segkit.evaluation.confusion import confusion_counts, true_ids
from segkit.evaluation.conventions import convention_scores
from segkit.evaluation.results import number_or_null, row_names, versions, without_words
from segkit.evaluation.scores import Scores
from segkit.inference.engine import predict
from segkit.inference.protocols import Protocol
from segkit.inference.segmenter import Segmenter, load
from segkit.metadata.label_space import check_same_classes
from segkit.metadata.regroup import left_out_ids
from segkit.ops.normalize import IMAGENET, normalize
from segkit.text import percent

SAVE_SECONDS = 30.0  # between two writings of a row's counts: as much is lost at most if the machine goes down
SCORE_SECONDS = 1.0  # between two updates of the running mIoU
COST_SECONDS = 3.0  # of timing, for a network without data; one image at least


def fill_table(table: Table, rows: Sequence[PlannedRow], settings: Settings, report: Callable[[str], None]) -> None:
    """Compute the rows that are not in the table; errors of a row are kept, and the others are still computed.

    Args:
        table: Written after every row; `table.failed` collects the errors.
        rows: Rows of `segkit.benchmark.plan`.
        settings: What all rows share.
        report: Called with one line for each row that already exists and for each error.

    Raises:
        InputError: The table cannot be written.
    """
    for number, row in enumerate(rows, start=1):
        where = f"row {number} of {len(rows)} ({row.title})"
        try:
            key, asked = key_of(row, settings), asked_of(row, settings)
            if table.has(key, row.name, row.metric, asked):
                report(f"{where}: already in {table.folder / 'benchmark.json'}")
                continue
            values = compute(row, key, settings)
        except (InputError, OSError, RuntimeError) as error:  # the last: out of memory, and what a device refuses
            message = f"{where}: {' '.join(str(error).split())}"
            table.failed.append(message)
            report(f"segkit benchmark: error: {message}")
        else:
            table.put({"key": key, "asked": asked, **values})


def compute(row: PlannedRow, key: dict[str, Any], settings: Settings) -> dict[str, Any]:
    """All values of one row, as plain data; scores are 0..1.

    Raises:
        InputError: Model and data do not fit, or a file cannot be read.
    """
    device = torch.device(settings.device)
    shared = {
        "model": row.name,
        "protocol": row.protocol.name,
        "metric": row.metric,
        "device": settings.device,
        "size": list(settings.size),
        "threads": torch.get_num_threads() if device.type == "cpu" else None,
        "versions": versions(),
    }
    if isinstance(row.protocol, CentreCrop):
        if settings.without:
            raise InputError("--without: is for a mean over classes of pixels; leave it out for encoders")
        return shared | encoder_values(row, settings)
    values = _cost_only(row, settings) if row.model is None else _scored(row, key, settings)
    return shared | values


def _scored(row: PlannedRow, key: dict[str, Any], settings: Settings) -> dict[str, Any]:
    assert isinstance(row.data, SegmentationDataModule) and row.model is not None
    assert isinstance(row.protocol, Protocol)
    left_out = left_out_ids(settings.without, row.data.class_names)  # wrong names are said before hours of work
    total = len(row.data.datasets["test"])
    count = min(settings.limit or total, total)
    progress = Progress.read(settings.output / "counts", key)
    memory = PeakMemory(settings.device)
    try:
        with memory:
            segmenter = load(row.model, settings.device, row.protocol, precision="exact")
            _check_classes(row, segmenter)
            _count_images(segmenter, row, progress, count, left_out)
    finally:
        if memory.bytes is not None and progress.seen[0]:
            progress.peak_memory = max(progress.peak_memory or 0, memory.bytes)
        progress.write()
    counts = progress.seen[1]
    assert counts is not None
    scores = convention_scores(counts.cpu(), row.metric, left_out)
    forwards = {(height, width): images for height, width, images in progress.forwards}
    return {
        "data": data_name(row.data),
        **_plain_scores(scores, row.data),
        "note": row.data.label_space.note_of_absence(true_ids(counts)),
        "without": [row.data.class_names[i] for i in left_out] or None,
        **_comparison(row, segmenter, scores, count),
        **_network_cost(segmenter, settings, forwards),
        "protocol fields": segmenter.protocol.to_dict(),
        "images": count,
        "partial": count < total,
        "images/s": _rate(*progress.timed),
        "peak MB": None if progress.peak_memory is None else progress.peak_memory / 1e6,
    }


def _count_images(
    segmenter: Segmenter, row: PlannedRow, progress: Progress, count: int, left_out: Sequence[int]
) -> None:
    """Score the images that `progress` does not hold yet."""
    assert row.data is not None
    if progress.seen[0] >= count:
        return
    loader = row.data.test_dataloader()
    assert isinstance(loader.sampler, EvalSampler)
    loader.sampler.indices = range(progress.seen[0], count)  # what is done, or not wanted, is not even read
    watch = Stopwatch(segmenter.device)
    timed, saved, scored = progress.timed, time.monotonic(), 0.0
    bar = Bar(total=count, initial=progress.seen[0], unit="image", desc=_short_title(row))
    with bar:
        for batch in loader:
            first = progress.seen[0] == 0
            with recorded_forwards(segmenter.network) as seen, watch.image():
                labels = _label(segmenter, batch["image"])
            if first:
                progress.forwards = [[*size, images] for size, images in seen.items()]
            new = confusion_counts(batch["mask"].to(segmenter.device), labels, row.data.num_classes)
            done, counts = progress.seen
            progress.seen = (done + 1, new if counts is None else counts.to(new.device) + new)
            progress.timed = (timed[0] + watch.images, timed[1] + watch.seconds)
            now = time.monotonic()
            if now - scored > SCORE_SECONDS or bar.n + 1 == count:
                scored = now
                _show(bar, progress, row, left_out)
            bar.update()
            if now - saved > SAVE_SECONDS:
                saved = now
                progress.write()


def _label(segmenter: Segmenter, image: Tensor) -> Tensor:
    """Labels of one uint8 image (1, 3, H, W) in host memory."""
    with torch.inference_mode():
        normalized = normalize(image.to(segmenter.device), segmenter.normalization)
        return predict(segmenter.network, normalized, segmenter.protocol, normalization=segmenter.normalization)


def _show(bar: Bar, progress: Progress, row: PlannedRow, left_out: Sequence[int]) -> None:
    counts = progress.seen[1]
    assert counts is not None and isinstance(row.data, SegmentationDataModule)
    miou = convention_scores(counts.cpu(), row.metric, left_out).miou
    bar.set_postfix_str(f"mIoU{without_words(row.data.class_names, left_out)} {percent(miou)}", refresh=False)


def _cost_only(row: PlannedRow, settings: Settings) -> dict[str, Any]:
    """A recipe's network with random weights, on a random image: what it costs is known, what it is worth is not."""
    assert row.experiment is not None and isinstance(row.protocol, Protocol)
    image = torch.randint(0, 256, (1, 3, *settings.size), dtype=torch.uint8, generator=torch.Generator())
    watch = Stopwatch(settings.device)
    with PeakMemory(settings.device) as memory:
        network = row.experiment.build(num_classes(row))
        segmenter = Segmenter(network, None, IMAGENET, row.protocol, torch.device(settings.device))
        with recorded_forwards(network) as forwards:
            _time_one(segmenter, image, watch)
        with Bar(unit="image", desc=f"{_short_title(row)} (random weights)") as bar:
            while watch.seconds < COST_SECONDS and watch.images < 20:
                _time_one(segmenter, image, watch)
                bar.update()
    return {
        "data": None,
        **_network_cost(segmenter, settings, dict(forwards)),
        "protocol fields": segmenter.protocol.to_dict(),
        "images": None,
        "partial": False,
        "images/s": _rate(watch.images, watch.seconds),
        "peak MB": None if memory.bytes is None else memory.bytes / 1e6,
    }


def _time_one(segmenter: Segmenter, image: Tensor, watch: Stopwatch) -> None:
    with watch.image():
        _label(segmenter, image)


def _short_title(row: PlannedRow) -> str:
    """A short title for a progress bar, which needs the room itself."""
    return printable(f"{PurePath(row.name).name}, {row.protocol.name}")


def data_name(data: SegmentationDataModule) -> str:
    """`ADE20K`, `Cityscapes`, ...; a user's own folder by its own name."""
    short = type(data).__name__.removesuffix("DataModule")
    return data.root.resolve().name if short == "Folder" else short


def _check_classes(row: PlannedRow, segmenter: Segmenter) -> None:
    assert isinstance(row.data, SegmentationDataModule)
    data = f"{data_name(row.data)} ({row.data.root})"
    check_same_classes(segmenter.class_names, row.data.class_names, str(row.model), data)


def _plain_scores(scores: Scores, data: SegmentationDataModule) -> dict[str, Any]:
    return {
        "mIoU": number_or_null(scores.miou),
        "pixel accuracy": number_or_null(scores.pixel_accuracy),
        "mean accuracy": number_or_null(scores.mean_accuracy),
        "class IoU": dict(zip(row_names(data.class_names, scores), map(number_or_null, scores.class_iou), strict=True)),
    }


def _comparison(row: PlannedRow, segmenter: Segmenter, scores: Scores, images: int) -> dict[str, Any]:
    """The published number and the difference, or why they are not shown."""
    published = row.experiment.recipe.published_for(row.protocol.name) if row.experiment else None
    if row.experiment is None or published is None:
        return {}
    assert row.data is not None
    network: Any = segmenter.network
    reason = row.experiment.why_not_comparable(published, network, segmenter.protocol, type(row.data).__name__, images)
    if scores.left_out:
        reason = "the mean leaves out classes, the published one has all"
    if reason is not None:
        return {"published": asdict(published), "not comparable": reason}
    assert published.miou is not None
    difference = number_or_null(scores.miou - published.miou)
    return {"published": asdict(published), "published mIoU": published.miou, "difference": difference}


def _network_cost(segmenter: Segmenter, settings: Settings, forwards: dict[tuple[int, int], int]) -> dict[str, Any]:
    """Parameters in millions, GFLOPs of one image of the stated size, and of the protocol; None where unknown."""
    try:
        one: float | None = flops(segmenter.network, settings.size) / 1e9
        all_views: float | None = flops_of(segmenter.network, forwards) / 1e9
    except (RuntimeError, NotImplementedError):  # a network whose path depends on values, which shapes alone lack
        one = all_views = None
    return {"M params": parameters(segmenter.network) / 1e6, "GFLOPs": one, "GFLOPs/image": all_views}


def _rate(images: int, seconds: float) -> float | None:
    return images / seconds if images and seconds else None
