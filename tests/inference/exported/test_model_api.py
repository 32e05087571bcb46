"""OpenVINO's Model API runs a file with the output "logits" as it is: the library itself, on both formats."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from segkit.inference.exported.files import open_exported
from segkit.metadata.label_space import LabelSpace, distinct_palette, identity_table
from segkit.models.checkpoint import Checkpoint
from segkit.models.export.deploy import Form, deploy
from segkit.models.export.formats import openvino_model, write_openvino
from segkit.models.segmentation import SegmentationModel
from segkit.ops.normalize import IMAGENET

pytest.importorskip("onnxscript")
models = pytest.importorskip("model_api.models")

KEPT: list[object] = []  # a core that ends may leave the thread a freed signal stack; see `exported.files._core`
NAMES = ("road", "traffic light", "sky", "car", "grass")


@pytest.fixture(scope="module")
def logits(network: SegmentationModel, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("logits")
    space = LabelSpace(NAMES, distinct_palette(5), identity_table(5)).to_dict()
    parts = {"network": network.config, "normalization": IMAGENET.to_dict(), "label_space": space}
    card = deploy(folder / "model.onnx", Checkpoint(parts, network.state_dict()), network, Form(outputs="logits"))
    write_openvino(folder / "model.xml", openvino_model(folder / "model.onnx", card), half=False)
    return {suffix: folder / f"model{suffix}" for suffix in (".onnx", ".xml")}


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
@pytest.mark.parametrize("size", [(65, 131), (40, 56)])
def test_labels_and_names(logits: dict[str, Path], suffix: str, size: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    model = models.SegmentationModel.create_model(str(logits[suffix]))
    KEPT.append(model)
    found = model(cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    scores = open_exported(logits[suffix]).run(image.transpose(2, 0, 1)[None].astype(np.float32), "logits")[0]
    cells = scores.argmax(axis=0).astype(np.int32)  # its labels are those at the network's stride, made larger
    labels = cv2.resize(cells, size[::-1], interpolation=cv2.INTER_NEAREST)
    assert len(np.unique(labels)) > 1 and found.shape == size and np.mean(found != labels) < 1e-3
    assert [model.get_label_name(i) for i in range(5)] == [name.replace(" ", "_") for name in NAMES]
