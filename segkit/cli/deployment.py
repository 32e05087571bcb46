"""The part of `segkit export` that writes .onnx, .xml and .pt2: export, int8, parity report, and the file's name."""

import argparse
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from segkit.benchmark.parity import PairedScores, Parity, prove
from segkit.cli.data.source import open_data
from segkit.cli.words import say, say_above_bar
from segkit.data.datamodule import SegmentationDataModule
from segkit.data.dataset import SegmentationDataset
from segkit.errors import InputError
from segkit.files import write_json
from segkit.inference import protocols
from segkit.inference.segmenter import Segmenter
from segkit.models.checkpoint import Checkpoint
from segkit.models.export.deploy import Form, deploy
from segkit.models.export.quantize import Calibration
from segkit.models.segmentation import SegmentationModel
from segkit.ops.normalize import Normalization


def deploy_and_prove(
    output: Path,
    checkpoint: Checkpoint,
    network: SegmentationModel,
    options: argparse.Namespace,
    of_data: Sequence[str],
) -> int:
    """Write the file under another name, compare it with PyTorch, and rename it if it is proven.

    Returns:
        0: proven. 1: not; the file keeps its other name.

    Raises:
        InputError: It cannot be written or run, or the data are missing or wrong.
    """
    form = Form(options.outputs, options.input, options.precision, options.license)
    form.check(output, Normalization.from_dict(checkpoint.normalization))
    segmenter = Segmenter.described(network, checkpoint.hyper_parameters, protocols.get("whole"), torch.device("cpu"))
    max_drop, scores, calibration = options.max_drop / 100, None, None
    unproven = output.with_name(f"{output.stem}.unproven{output.suffix}")
    if of_data:
        data = open_data(of_data, "segkit export")
        data.setup("test")
        scores = PairedScores(segmenter, data, options.limit)
        calibration = Calibration(
            *_training_images(data, options.calibration_images, form.input),
            drop=lambda path: -scores.compare(path)[0].miou.difference.value,
            max_drop=max_drop,
            say=say_above_bar,
        )
    deploy(unproven, checkpoint, network, form, calibration)
    parity = prove(unproven, segmenter, Parity(form.precision, max_drop), scores)
    say(f"{parity.table()}\n")
    return _name(unproven, output, parity, form)


def _name(unproven: Path, output: Path, parity: Parity, form: Form) -> int:
    """Rename a proven file; write the report beside it, whatever its name."""
    if parity.over:
        write_json(_report_of(unproven), parity.to_dict())
        say(f"{unproven}: not proven, so it keeps this name: {'; '.join(parity.over)}")
        return 1
    for suffix in (".bin", output.suffix) if output.suffix.lower() == ".xml" else (output.suffix,):
        os.replace(unproven.with_suffix(suffix), output.with_suffix(suffix))
    write_json(_report_of(output), parity.to_dict())
    _report_of(unproven).unlink(missing_ok=True)  # of an earlier export
    say(f"{output}: {form.precision}, image {form.input} (B, C, H, W), outputs {form.outputs}; proven")
    return 0


def _report_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.parity.json")


def _training_images(data: SegmentationDataModule, most: int, dtype: str) -> tuple[int, Callable[[int], np.ndarray]]:
    """Whole training images, evenly over the split: how many, and what reads one as (1, C, H, W)."""
    samples = data.find_samples("train", with_masks=False)
    if not samples:
        raise InputError(f"{data.root}: has no training images, on which int8 is calibrated")
    chosen = samples[:: max(1, len(samples) // most)][:most]
    images = SegmentationDataset(chosen, data.reader, None, data.seed)
    return len(chosen), lambda index: images[index]["image"][None].numpy().astype(dtype)
