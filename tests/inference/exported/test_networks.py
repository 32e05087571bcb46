"""Networks of every kind, input and output, run in ONNX Runtime, OpenVINO and PyTorch as exported: labels are equal.

The reference is the network itself under `segkit.ops`: normalised, upsampled, argmax.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from segkit.bands import Bands
from segkit.inference.exported.network import open_network
from segkit.models.checkpoint import Checkpoint
from segkit.models.decoders import EncoderDecoder
from segkit.models.export.deployable import Deployable, deployment_card, output_names, trace
from segkit.models.export.formats import onnx_model, openvino_model, write_onnx, write_openvino, write_pt2
from segkit.models.segmentation import DeepLabV3, MMSegDeepLabV3, SegmentationModel
from segkit.ops.normalize import IMAGENET, Normalization, normalize
from segkit.ops.upsample import upsample

pytest.importorskip("onnxscript")
pytest.importorskip("openvino")

TINY, TIMM = "resnest14_tiny", "test_resnet"  # the latter is the smallest of timm's
PLAIN = {"radix": 0}  # without split attention: half of the operations to trace, where the decoder is the point
FIVE = Normalization((0.2,) * 5, (0.3,) * 5, Bands(tuple("abcde"), "uint16", (0.0,) * 5, (10000.0,) * 5))
SIZES = [(1, 65, 131), (2, 96, 40), (3, 33, 34)]

Make = Callable[[], SegmentationModel]

# name: network, normalisation, outputs, dtype of the input
CASES: dict[str, tuple[Make, Normalization, str, str]] = {
    "deeplabv3 at 16, bytes":       (lambda: DeepLabV3(TINY, 5, output_stride=16), IMAGENET, "labels", "uint8"),
    "mmseg deeplabv3":              (lambda: MMSegDeepLabV3(TINY, 5, encoder_args=PLAIN), IMAGENET, "both", "float32"),
    "unet over timm, logits":       (lambda: EncoderDecoder(TIMM, 5, "unet"), IMAGENET, "logits", "float32"),
    "deeplabv3plus":                (
        lambda: EncoderDecoder(TINY, 5, "deeplabv3plus", encoder_args=PLAIN), IMAGENET, "both", "float32"),
    "fpn, 300 classes, 5 bands":    (lambda: EncoderDecoder(TIMM, 300, "fpn", in_channels=5), FIVE, "both", "float32"),
}  # fmt: skip


def write(folder: Path, network: SegmentationModel, values: Normalization, outputs: str, dtype: str) -> list[Path]:
    """The network in each format, traced once."""
    deployable = Deployable(network, values, outputs)  # type: ignore[arg-type]
    program = trace(deployable, getattr(torch, dtype))
    parts = {"network": network.config, "normalization": values.to_dict(), "label_space": None}
    how = {"outputs": outputs, "input": dtype, "precision": "fp32"}
    card = deployment_card(Checkpoint(parts, network.state_dict()), network, **how)
    files = [folder / f"model{suffix}" for suffix in (".onnx", ".xml", ".pt2")]
    write_onnx(files[0], onnx_model(program, output_names(outputs), card))  # type: ignore[arg-type]
    write_openvino(files[1], openvino_model(files[0], card), half=False)
    write_pt2(files[2], program, card)
    return files


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_labels_of_every_runtime(case: str, tmp_path: Path) -> None:
    make, values, outputs, dtype = CASES[case]
    torch.manual_seed(0)
    network = make().eval()
    files = [open_network(path, None, "") for path in write(tmp_path, network, values, outputs, dtype)]
    for batch, height, width in SIZES:
        top = 256 if values.bands is None else 12000
        stored = np.random.default_rng(0).integers(0, top, (batch, len(values.mean), height, width))
        image = torch.from_numpy(stored).to(torch.uint8 if values.bands is None else torch.uint16)
        with torch.inference_mode():
            logits = network(normalize(image, values))["out"]
            labels = upsample(logits, (height, width), bool(network.align_corners)).argmax(1).numpy()
        for file in files:
            given = np.ascontiguousarray(stored, file.input_dtype)
            if outputs != "logits":
                found = file.run(given, "labels")
                assert found.dtype == (np.int16 if network.num_classes > 256 else np.uint8)
                assert found.shape == labels.shape and np.mean(found != labels) < 1e-3, (case, file.path)
            if outputs != "labels":
                assert np.abs(file.run(given, "logits") - logits.numpy()).max() < 1e-4 * logits.abs().max()
