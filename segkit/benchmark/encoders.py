"""How well an encoder classifies ImageNet's validation images: what its weights are published with."""

from collections.abc import Callable

import torch
from torch import Tensor

from segkit.bars import Bar
from segkit.data.imagenet.crops import CentreCrop
from segkit.data.imagenet.datamodule import ImageNetDataModule
from segkit.data.samplers import EvalSampler
from segkit.evaluation.topk import Accuracy, TopK
from segkit.ops.normalize import IMAGENET, Normalization, normalize


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
        limit: Most images that are seen, evenly spread over the classes; None: all.
        normalization: Mean and standard deviation of the network's input.
        title: Of the progress bar.

    Raises:
        InputError: Images are absent or unreadable, or their classes wrong.
    """
    data.protocol = crop
    data.setup("test")
    loader = data.test_dataloader()
    total, counts = len(data.datasets["test"]), TopK(device)
    count = min(limit or total, total)
    assert isinstance(loader.sampler, EvalSampler)
    loader.sampler.indices = [i * total // count for i in range(count)]
    with Bar(total=count, unit="image", desc=title or f"{crop.name}@{crop.size}") as bar:
        for batch in loader:
            logits = network(normalize(batch["image"].to(device), normalization))
            counts.update(logits.float(), batch["label"].to(device))
            bar.update(len(batch["label"]))
    return counts.compute()
