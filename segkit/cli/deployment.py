"""The part of `segkit export` that writes .onnx, .xml and .pt2: export, int8, parity report, and the file's name."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

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
from segkit.metadata.label_space import check_same_classes
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
    parity, scores, calibration = Parity(form.precision, options.max_drop / 100), None, None
    unproven = output.with_name(f"{output.stem}.unproven{output.suffix}")
    if of_data:
        data = open_data(of_data, "segkit export")
        data.setup("test")
        check_same_classes(segmenter.class_names, data.class_names, "the checkpoint", f"--data ({data.root})")
        scores = PairedScores(segmenter, data.datasets["test"], options.limit)
        if form.precision == "int8":
            images = _training_images(data, options.calibration_images)
            parity.chosen_on = len(images)
            calibration = _calibration(PairedScores(segmenter, images), form.input, parity.max_drop)
    deploy(unproven, checkpoint, network, form, calibration)
    prove(unproven, segmenter, parity, scores)
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


def _training_images(data: SegmentationDataModule, most: int) -> SegmentationDataset:
    """Whole training images with their masks, evenly over the split."""
    samples = data.find_samples("train")
    if not samples:
        raise InputError(f"{data.root}: has no training images, on which int8 is calibrated")
    chosen = samples[:: max(1, len(samples) // most)][:most]
    return SegmentationDataset(chosen, data.reader, None, data.seed)


def _calibration(scores: PairedScores, dtype: str, max_drop: float) -> Calibration:
    """Calibration by the images of `scores`, of whose mIoU at most `max_drop` may be lost, 0..1."""
    return Calibration(
        scores.count,
        lambda index: scores.image(index).numpy().astype(dtype),
        drop=lambda path: -scores.compare(path)[0].miou.difference.value,
        max_drop=max_drop,
        say=say_above_bar,
    )
