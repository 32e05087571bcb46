"""One row of `segkit benchmark`: score a model on a data set, and measure what that costs."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from segkit.bands import BandArray
from segkit.bars import Bar
from segkit.benchmark.cost import PeakMemory, Stopwatch, recorded_forwards
from segkit.benchmark.cost_row import cost_only, network_cost, rate
from segkit.benchmark.encoders import encoder_values
from segkit.benchmark.models.base import JudgedModel, in_data_ids
from segkit.benchmark.models.check import better, spread, suspicion, try_others
from segkit.benchmark.models.opening import open_model
from segkit.benchmark.plan import PlannedRow
from segkit.benchmark.progress import Progress, Settings, asked_of, key_of
from segkit.benchmark.table import Table, preprocessing_words
from segkit.data.datamodule import SegmentationDataModule
from segkit.data.dataset import Item
from segkit.data.imagenet.crops import CentreCrop
from segkit.data.samplers import only
from segkit.errors import InputError
from segkit.evaluation.confusion import confusion_counts, true_ids
from segkit.evaluation.conventions import DEFAULT, convention_scores
from segkit.evaluation.results import number_or_null, row_names, versions, without_words
from segkit.evaluation.scores import Scores
from segkit.evaluation.statistics import ImageAreas, bootstrap_miou, image_areas
from segkit.inference.protocols import Protocol
from segkit.metadata.class_match import ClassMatch, ModelClasses, match_classes
from segkit.metadata.regroup import left_out_ids
from segkit.text import percent

SAVE_SECONDS = 30.0  # between two writings of a row's counts, which bounds the loss if the machine goes down
OWN = "own"  # the protocol of a model that sees images in its own way
SCORE_SECONDS = 1.0  # between two updates of the running mIoU


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
            values = compute(row, key, settings, partial(_tell, report, where))
        except (InputError, OSError, RuntimeError) as error:  # the last: out of memory, or an unsupported operation
            message = f"{where}: {' '.join(str(error).split())}"
            table.failed.append(message)
            report(f"segkit benchmark: error: {message}")
        else:
            table.put({"key": key, "asked": asked, **values})


def _tell(report: Callable[[str], None], where: str, text: str) -> None:
    report(f"{where}: {text}")


def compute(
    row: PlannedRow, key: dict[str, Any], settings: Settings, say: Callable[[str], None] = lambda text: None
) -> dict[str, Any]:
    """All values of one row, as plain data; scores are 0..1.

    Args:
        row: The row.
        key: See `segkit.benchmark.progress.key_of`.
        settings: The settings that all rows share.
        say: Called before the first image with the model's preprocessing, and with how its classes were matched.

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
    values = cost_only(row, settings) if row.model is None else _scored(row, key, settings, say)
    return shared | values


def _scored(row: PlannedRow, key: dict[str, Any], settings: Settings, say: Callable[[str], None]) -> dict[str, Any]:
    assert isinstance(row.data, SegmentationDataModule) and row.model is not None
    assert isinstance(row.protocol, Protocol)
    left_out = left_out_ids(settings.without, row.data.class_names)  # refuses wrong names before hours of work
    total = len(row.data.datasets["test"])
    count = min(settings.limit or total, total)
    progress = Progress.read(settings.output / "counts", key)
    memory = PeakMemory(settings.device)
    try:
        with memory:
            model = open_model(row.model, settings.device, row.protocol, row.options)
            model.expect([sample.name for sample in row.data.datasets["test"].samples[:count]])
            say(preprocessing_words(model.preprocessing))
            match, found = _looked_at(row, model, count)
            for text in filter(None, (match.note, found["warning"])):
                say(text)
            _count_images(model, match, row, progress, count, left_out)
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
        "interval": _interval(row, progress, left_out),
        "note": row.data.label_space.note_of_absence(true_ids(counts)),
        "without": [row.data.class_names[i] for i in left_out] or None,
        "classes": match.note,
        "preprocessing": model.preprocessing,
        **found,
        **_comparison(row, model, scores, count),
        **network_cost(model.network, settings, forwards),
        **_protocol_that_ran(model),
        "images": count,
        "partial": count < total,
        "images/s": rate(*progress.timed) if model.is_timed else None,
        "peak MB": None if progress.peak_memory is None else progress.peak_memory / 1e6,
    }


def _count_images(
    model: JudgedModel, match: ClassMatch, row: PlannedRow, progress: Progress, count: int, left_out: Sequence[int]
) -> None:
    """Score the images that `progress` does not hold yet."""
    assert row.data is not None
    if progress.seen[0] >= count:
        return
    loader = only(row.data.test_dataloader(), range(progress.seen[0], count))  # what is done is not read again
    watch = Stopwatch(model.device)
    timed, saved, scored = progress.timed, time.monotonic(), 0.0
    bar = Bar(total=count, initial=progress.seen[0], unit="image", desc=row.short_title)
    with bar:
        for batch in loader:
            first = progress.seen[0] == 0
            with recorded_forwards(model.network) as seen:
                labels = _label(model, match, batch, watch)
            if first:
                progress.forwards = [[*size, images] for size, images in seen.items()]
            new = confusion_counts(batch["mask"].to(labels.device), labels, row.data.num_classes)
            done, counts, areas = progress.seen
            counts = new if counts is None else counts.to(new.device) + new
            progress.seen = (done + 1, counts, [*areas, image_areas(new, batch["name"][0])])
            progress.timed = (timed[0] + watch.images, timed[1] + watch.seconds)
            now = time.monotonic()
            if now - scored > SCORE_SECONDS or bar.n + 1 == count:
                scored = now
                _show(bar, progress, row, left_out)
            bar.update()
            if now - saved > SAVE_SECONDS:
                saved = now
                progress.write()


def _label(model: JudgedModel, match: ClassMatch, batch: Any, watch: Stopwatch) -> Tensor:
    """The data's train ids (1, H, W) that a model gives to the one image of a batch; its network alone is timed."""
    image, name = _array(batch["image"][0]), batch["name"][0]
    size = (image.shape[0], image.shape[1])
    prepared = model.prepare(image, name)
    with watch.image():
        labels = model.label(prepared, size)
    if not (match.is_identity and model.segmenter is not None):  # whose labels cannot be others
        table = torch.tensor(match.table, dtype=torch.uint8, device=labels.device)
        labels = in_data_ids(labels, table, model.name, name)
    return labels[None]


def _array(image: Tensor) -> BandArray:
    array: BandArray = np.ascontiguousarray(image.permute(1, 2, 0).numpy())  # (C, H, W) -> (H, W, C)
    return array


def _show(bar: Bar, progress: Progress, row: PlannedRow, left_out: Sequence[int]) -> None:
    counts = progress.seen[1]
    assert counts is not None and isinstance(row.data, SegmentationDataModule)
    miou = convention_scores(counts.cpu(), row.metric, left_out).miou
    bar.set_postfix_str(f"mIoU{without_words(row.data.class_names, left_out)} {percent(miou)}", refresh=False)


def data_name(data: SegmentationDataModule) -> str:
    """`ADE20K`, `Cityscapes`, ...; a user's own folder by its own name."""
    short = type(data).__name__.removesuffix("DataModule")
    return data.root.resolve().name if short == "Folder" else short


def _looked_at(row: PlannedRow, model: JudgedModel, count: int) -> tuple[ClassMatch, dict[str, Any]]:
    """How the model's classes match, and what its preprocessing looks like; that of files of segkit.load is trusted."""
    assert isinstance(row.data, SegmentationDataModule)
    if model.segmenter is not None:
        return matched(row, model), {"warning": None}
    items = [row.data.datasets["test"][i] for i in spread(count)]
    image = _array(items[0]["image"])
    prepared = model.prepare(image, items[0]["name"])
    model.label(prepared, (image.shape[0], image.shape[1]))  # the first logits tell how many classes there are
    match, idle = matched(row, model), Stopwatch(model.device)

    def label(one: JudgedModel, item: Item) -> Tensor:
        return _label(one, match, {"image": item["image"][None], "name": [item["name"]]}, idle)

    tried = try_others(model, items, row.data.num_classes, label)
    said = [text for text in (suspicion(prepared, image), better(tried, len(items))) if text]
    return match, {"warning": "; ".join(said) or None, "tried": tried or None}


def matched(row: PlannedRow, model: JudgedModel) -> ClassMatch:
    """What the numbers of a row's model mean for its data; see `match_classes`."""
    assert isinstance(row.data, SegmentationDataModule)
    data = f"{data_name(row.data)} ({row.data.root})"
    classes = ModelClasses.of(model.name, model.class_names, model.num_classes)
    return match_classes(classes, row.data.label_space, data, row.options.classes)


def _protocol_that_ran(model: JudgedModel) -> dict[str, Any]:
    if model.segmenter is None:
        return {"protocol": OWN, "protocol fields": {"name": OWN}}
    return {"protocol fields": model.segmenter.protocol.to_dict()}


def _plain_scores(scores: Scores, data: SegmentationDataModule) -> dict[str, Any]:
    return {
        "mIoU": number_or_null(scores.miou),
        "pixel accuracy": number_or_null(scores.pixel_accuracy),
        "mean accuracy": number_or_null(scores.mean_accuracy),
        "class IoU": dict(zip(row_names(data.class_names, scores), map(number_or_null, scores.class_iou), strict=True)),
    }


def _interval(row: PlannedRow, progress: Progress, left_out: Sequence[int]) -> list[float | None] | None:
    """Interval of the mIoU by resampling images; None for fewer than two images, or another rule than segkit's own."""
    assert row.data is not None
    names = (sample.name for sample in row.data.datasets["test"].samples)
    if row.metric != DEFAULT or progress.seen[0] < 2:
        return None
    found = bootstrap_miou(ImageAreas.from_areas(zip(names, progress.seen[2], strict=False)).without(left_out)).miou
    return [number_or_null(found.low), number_or_null(found.high)]


def _comparison(row: PlannedRow, model: JudgedModel, scores: Scores, images: int) -> dict[str, Any]:
    """The published number and the difference, or why they are not shown."""
    published = row.experiment.recipe.published_for(row.protocol.name) if row.experiment else None
    if row.experiment is None or published is None:
        return {}
    assert row.data is not None
    reason: str | None = "the model sees images in its own way"
    if model.segmenter is not None:
        network: Any = model.network
        ran, data = model.segmenter.protocol, type(row.data).__name__
        reason = row.experiment.why_not_comparable(published, network, ran, data, images)
    if scores.left_out:
        reason = "the mean leaves out classes, the published one has all"
    if reason is not None:
        return {"published": asdict(published), "not comparable": reason}
    assert published.miou is not None
    difference = number_or_null(scores.miou - published.miou)
    return {"published": asdict(published), "published mIoU": published.miou, "difference": difference}
