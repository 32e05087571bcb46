"""`segkit weights calibrate`: fits the temperature of a network's probabilities, and stores it in its model file."""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

from torch.utils.data import DataLoader

from segkit.bars import Bar
from segkit.benchmark.rows import data_name
from segkit.cli.data.source import open_data
from segkit.cli.words import say
from segkit.evaluation.calibration import Calibration
from segkit.evaluation.results import versions
from segkit.evaluation.temperature import TEMPERATURES, TemperatureFit
from segkit.inference import protocols
from segkit.inference.engine import score_strips
from segkit.inference.fusion import best_of, log_probabilities
from segkit.inference.segmenter import Segmenter
from segkit.metadata.label_space import check_same_classes
from segkit.models.export.model_file import sourced
from segkit.models.toolkits.report import calibrated
from segkit.models.weight_files import write_model_file
from segkit.models.weights import read_checkpoint
from segkit.ops.normalize import normalize
from segkit.ops.processor import usable_device
from segkit.text import aligned, percent


def run(options: argparse.Namespace, of_data: Sequence[str]) -> int:
    """Run `segkit weights calibrate`; nothing is written before all images have been seen twice.

    Raises:
        InputError: Checkpoint, data, protocol or device cannot be used, or do not belong together.
    """
    protocol, device = protocols.get(options.protocol), usable_device(options.device)
    checkpoint = read_checkpoint(options.file)
    segmenter = Segmenter.described(checkpoint.build_network(), checkpoint.hyper_parameters, protocol, device)
    data = open_data([*of_data, "--data.cache_dir", "null"], "segkit weights calibrate")
    check_same_classes(segmenter.class_names, data.class_names, str(options.file), f"{data_name(data)} ({data.root})")
    data.take_bands(segmenter.bands, str(options.file))
    data.setup({"val": "validate"}.get(options.split, options.split))
    loader = data.val_dataloader() if options.split == "val" else data.test_dataloader()
    images = min(options.limit or len(loader), len(loader))
    fit, before = _measured(segmenter, loader, images, TEMPERATURES, 1)
    temperature = fit.best()
    again, after = _measured(segmenter, loader, images, (temperature,), temperature)
    losses = fit.losses[TEMPERATURES.index(1)], again.losses[0]
    done = {
        "temperature": temperature,
        "data": data_name(data),
        "split": options.split,
        "protocol": protocol.name,
        "images": images,
        "ece_before": before,
        "ece_after": after,
    }
    new = replace(checkpoint, card={**checkpoint.card, "calibration": done})
    write_model_file(options.output, sourced(new, options.file, versions()))
    size = options.output.stat().st_size / 1e6
    rows = [
        ("temperature", f"{temperature:.4f} ({calibrated(done)})"),
        ("ECE", f"{percent(before)} % -> {percent(after)} %, the expected calibration error on these images"),
        ("NLL", f"{losses[0]:.4f} -> {losses[1]:.4f} nats a pixel"),
        ("written", f"{options.output} ({size:.1f} MB); its labels do not change"),
    ]
    if after >= before:
        rows.append(("note", "the calibration error did not get smaller; this temperature only makes the NLL least"))
    if temperature in (TEMPERATURES[0], TEMPERATURES[-1]):
        rows.append(("note", "no temperature between these is best: nearly all is right here, or nearly nothing"))
    say(aligned(rows, left=(0, 1)))
    return 0


def _measured(
    segmenter: Segmenter, loader: DataLoader[Any], images: int, temperatures: Sequence[float], temperature: float
) -> tuple[TemperatureFit, float]:
    """The loss at some temperatures, and the calibration error at one."""
    fit, calibration = TemperatureFit(temperatures), Calibration(segmenter.device)
    network, protocol, normalization = segmenter.network, segmenter.protocol, segmenter.normalization
    if len(protocol.scales) == 1 and not protocol.flip and protocol.fusion == "softmax_mean":
        protocol = replace(protocol, fusion="logit_mean")  # the same probabilities, none of them rounded to 0
    for batch in Bar(islice(loader, images), f"temperature {temperature:.3g}", images, unit="image"):
        mask = batch["mask"].to(segmenter.device)
        image = normalize(batch["image"].to(segmenter.device), normalization)
        strips = score_strips(network, image, protocol, (mask.shape[1], mask.shape[2]), normalization)
        for start, stop, scores in strips:
            truth = mask[:, start:stop]
            fit.update(truth, log_probabilities(scores, protocol.fusion))
            calibration.update(truth, *best_of(scores, protocol.fusion, temperature))
    return fit, calibration.result().expected_error
