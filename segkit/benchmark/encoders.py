"""Scores encoders on ImageNet's validation images, by the accuracy with which their weights are published."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from segkit.bars import Bar
from segkit.benchmark.cost import PeakMemory, Stopwatch, flops, parameters
from segkit.benchmark.plan import PlannedRow
from segkit.benchmark.progress import Settings, num_classes
from segkit.data.imagenet.crops import CentreCrop
from segkit.data.imagenet.datamodule import ImageNetDataModule
from segkit.data.samplers import only
from segkit.errors import InputError
from segkit.evaluation.topk import Accuracy, TopK
from segkit.models.classifier import Classifier
from segkit.models.pretrained import timm_name
from segkit.models.weights import is_own, read_checkpoint, read_classifier
from segkit.ops.normalize import IMAGENET, Normalization, normalize

COST_SECONDS = 3.0  # of timing; one image at least


@torch.inference_mode()
def classify(
    network: Callable[[Tensor], Tensor],
    data: ImageNetDataModule,
    crop: CentreCrop,
    device: torch.device | str = "cpu",
    limit: int | None = None,
    normalization: Normalization = IMAGENET,
    title: str = "",
) -> Accuracy:
    """Classify the validation images.

    Args:
        network: Maps normalised float `(B, 3, S, S)` on `device` to logits `(B, K)`; in eval mode.
        data: Where the images are; `data.batch_size` of them are classified at once.
        crop: How they are cropped, `resolved`.
        device: Where the network is.
        limit: Maximum number of images, evenly spread over the classes; None: all.
        normalization: Mean and standard deviation of the network's input.
        title: Title of the progress bar.

    Raises:
        InputError: Images are absent or unreadable, or their classes wrong.
    """
    data.protocol = crop
    data.setup("test")
    total, counts = len(data.datasets["test"]), TopK(device)
    count = min(limit or total, total)
    loader = only(data.test_dataloader(), [i * total // count for i in range(count)])
    with Bar(total=count, unit="image", desc=title or f"{crop.name}@{crop.size}") as bar:
        for batch in loader:
            logits = network(normalize(batch["image"].to(device), normalization))
            counts.update(logits.float(), batch["label"].to(device))
            bar.update(len(batch["label"]))
    return counts.compute()


def encoder_values(row: PlannedRow, settings: Settings) -> dict[str, Any]:
    """The values of an encoder's row: its cost and, if it has weights, accuracy beside the published one.

    Raises:
        InputError: Weights and recipe, or weights and data, do not fit.
    """
    assert row.experiment is not None and isinstance(row.protocol, CentreCrop)
    arguments = row.experiment.network.get("init_args", {})
    size = row.data.crop_size[0] if isinstance(row.data, ImageNetDataModule) else 224
    crop = row.protocol.resolved(size, timm_name(arguments["encoder"]))
    with PeakMemory(settings.device) as memory:
        if row.model is None:
            network: Any = row.experiment.build(num_classes(row))
        else:
            names = row.data.class_names if row.data is not None else None
            network = read_classifier(row.model, arguments["encoder"], arguments.get("encoder_args"), names)
        network = network.to(settings.device).eval()
        scores = _scores(row, network, crop, settings) if row.model is not None else {"data": None, "images": None}
        watch = _timed(network, crop.size, settings.device)
    work = flops(network, (crop.size, crop.size)) / 1e9
    return {
        "partial": False,
        **scores,
        "protocol": f"{crop.name}@{crop.size}",
        "protocol fields": crop.to_dict(),
        "size": [crop.size, crop.size],
        "M params": parameters(network) / 1e6,
        "GFLOPs": work,
        "GFLOPs/image": work,
        "images/s": watch.images / watch.seconds,
        "peak MB": None if memory.bytes is None else memory.bytes / 1e6,
    }


def _scores(row: PlannedRow, network: Classifier, crop: CentreCrop, settings: Settings) -> dict[str, Any]:
    data = row.data
    assert isinstance(data, ImageNetDataModule) and row.experiment is not None and row.model is not None
    if network.num_classes != data.num_classes:
        raise InputError(
            f"{row.model}: {network.num_classes} classes, {data.root} has {data.num_classes}; give its data"
        )
    input_ = Normalization.from_dict(read_checkpoint(row.model).normalization) if is_own(row.model) else IMAGENET
    found = classify(network, data, crop, settings.device, settings.limit, input_, row.title)
    values = {
        "data": "ImageNet" if data.num_classes == 1000 else data.root.resolve().name,
        "images": found.images,
        "partial": found.images < len(data.datasets["test"]),
        "top-1": found.top1.value,
        "interval": [found.top1.low, found.top1.high],
        "top-5": found.top5.value,
    }
    published = next((p for p in row.experiment.recipe.published if p.top1 is not None), None)
    if published is None:
        return values
    values["published"] = asdict(published)
    ran = f"{crop.name}@{crop.size}, {found.images} images"
    wanted = f"{published.protocol}, {published.images} images"
    if ran != wanted:
        return values | {"not comparable": f"scored with {ran}, published for {wanted}"}
    assert published.top1 is not None
    return values | {"published top-1": published.top1, "difference": found.top1.value - published.top1}


def _timed(network: Classifier, size: int, device: str) -> Stopwatch:
    """Time forwards of one image for some seconds."""
    image, watch = torch.zeros(1, 3, size, size, device=device), Stopwatch(device)
    with torch.inference_mode():
        while not watch.images or (watch.seconds < COST_SECONDS and watch.images < 20):
            with watch.image():
                network(image)
    return watch
