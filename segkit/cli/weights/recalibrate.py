"""`segkit weights recalibrate`: precise batch norm of a checkpoint, over training crops of a recipe's data."""

import argparse
import math
from collections.abc import Iterator, Sequence
from itertools import count, islice
from typing import Any

import torch
from torch import Tensor

from segkit.bars import Bar
from segkit.benchmark.rows import data_name
from segkit.cli.data.source import open_data
from segkit.cli.words import say
from segkit.data.datamodule import SegmentationDataModule
from segkit.errors import InputError
from segkit.evaluation.results import versions
from segkit.metadata.label_space import LabelSpace, check_same_classes, numbered_space
from segkit.models.export.model_file import sourced
from segkit.models.toolkits.report import recalibrated
from segkit.models.weight_files import write_model_file
from segkit.models.weights import read_checkpoint
from segkit.text import aligned
from segkit.training.precise_bn import Recalibration, recalibrate_checkpoint


def run(options: argparse.Namespace, of_data: Sequence[str]) -> int:
    """Run `segkit weights recalibrate`; nothing is written before all batches have been seen.

    Raises:
        InputError: Checkpoint, data or device cannot be used, or do not belong together.
    """
    device = _device(options.device)
    checkpoint = read_checkpoint(options.file)
    data = _data(of_data)
    plain = checkpoint.label_space
    space = numbered_space(checkpoint.num_classes) if plain is None else LabelSpace.from_dict(plain)
    check_same_classes(space.class_names, data.class_names, str(options.file), f"{data_name(data)} ({data.root})")
    done = {"batches": options.batches, "batch_size": data.batch_size, "data": data_name(data), "split": "train"}
    say(f"reading {data_name(data)} ...")
    try:
        with Bar(islice(_crops(data), options.batches), "recalibrate", options.batches, unit="batch") as images:
            new, result = recalibrate_checkpoint(checkpoint, images, device, data.seed)
    except torch.OutOfMemoryError as error:
        raise InputError(
            f"--data.batch_size {data.batch_size}: such a batch does not fit into the memory of {device}; lower it, "
            "or give --device cpu"
        ) from error
    write_model_file(options.output, sourced(new, options.file, versions(), {"recalibrated": done}))
    say(_report(options, result, recalibrated(done)))
    return 0


def _device(name: str | None) -> torch.device:
    has_gpu = torch.cuda.is_available()
    if name == "cuda" and not has_gpu:
        raise InputError("--device cuda: PyTorch finds no GPU here; give --device cpu")
    return torch.device(name or ("cuda" if has_gpu else "cpu"))


def _data(of_data: Sequence[str]) -> SegmentationDataModule:
    """The data module, as `segkit fit` makes it, with what is typed here."""
    # A cache pays where images are read again.
    data = open_data([*of_data, "--data.cache_dir", "null"], "segkit weights recalibrate")
    if data.batch_size < 2:
        raise InputError(
            f"{data_name(data)}: batch_size is {data.batch_size}; one crop is no batch, add --data.batch_size N"
        )
    data.setup("fit")
    images = len(data.datasets["train"])
    if images < data.batch_size:
        few = f"{data.root}: {data_name(data)} has {images} training images, fewer than a batch of {data.batch_size}"
        raise InputError(f"{few}; lower --data.batch_size")
    return data


def _crops(data: SegmentationDataModule) -> Iterator[Tensor]:
    """uint8 (B, 3, H, W), those of epoch 0, 1, ... without an end."""
    loader: Any = data.train_dataloader()
    for epoch in count():
        loader.sampler.set_epoch(epoch)
        for batch in loader:
            yield batch["image"]


def _report(options: argparse.Namespace, result: Recalibration, done: str) -> str:
    by_mean = max(result.changes, key=lambda change: change.mean)
    by_variance = max(result.changes, key=lambda change: change.variance)
    size = options.output.stat().st_size / 1e6
    rows = [
        ("recalibrated", f"{len(result.changes)} batch norms over {result.images} images ({done})"),
        ("mean", f"moved at most by {_percent(by_mean.mean)}: {by_mean.layer}"),
        ("variance", f"moved at most by {_percent(by_variance.variance)}: {by_variance.layer}"),
        ("written", f"{options.output} ({size:.1f} MB)"),
    ]
    return aligned(rows, left=(0, 1))


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %" if math.isfinite(share) else "any factor, from zero"
