"""`segkit benchmark` on foreign ONNX and OpenVINO files, folders of predictions, and other toolkits' networks.

The images have four classes by their red channel, which a 1x1 convolution tells without an error, so that a wrong
preprocessing shows in the score.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scored import plain_miou, rows_of

from segkit.cli import main
from segkit.files import write_text
from segkit.io import write_png
from segkit.models.export.deploy import Form, deploy
from segkit.models.weights import read_checkpoint

Run = Callable[..., int]

SIZE = (24, 32)
RED = np.array([40.0, 100.0, 160.0, 220.0])  # of each class
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.fixture(scope="module")
def red(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set whose class is the red channel; green and blue are noise."""
    folder, rng = tmp_path_factory.mktemp("red"), np.random.default_rng(0)
    for i in range(4):
        labels = rng.integers(0, 4, SIZE)
        image = rng.integers(0, 256, (*SIZE, 3))
        image[..., 0] = RED[labels] + rng.integers(-20, 21, SIZE)
        write_png(folder / f"images/test/{i}.png", image.astype(np.uint8))
        write_png(folder / f"labels/test/{i}.png", labels.astype(np.uint8))
    write_text(folder / "classes.txt", "one\ntwo\nthree\nfour\n")
    return folder


@pytest.fixture
def judge(red: Path, tmp_path: Path) -> Callable[..., dict]:
    """The row of a model on these images."""

    def call(model: Path, **preprocessing: object) -> dict:
        options = ["--data", "folder", "--data.root", str(red), "--device", "cpu", "--output", str(tmp_path / "table")]
        if preprocessing:
            path = tmp_path / "preprocessing.yaml"
            write_text(path, json.dumps(preprocessing))
            options += ["--preprocessing", str(path)]
        assert main(["benchmark", str(model), *options, "--size", "24", "32"]) == 0
        return rows_of(tmp_path / "table")[-1]

    return call


def write_onnx(
    path: Path,
    place: int = 0,
    mean: Sequence[float] = IMAGENET[0],
    std: Sequence[float] = IMAGENET[1],
    end: int = 1,
    labels: bool = False,
    last: bool = False,
    sides: Sequence[int | None] = (None, None),
    kind: str = "FLOAT",
) -> Path:
    """A network whose logit of class k is 2 x m - m^2: the nearest mean wins.

    Args:
        path: The file.
        place: The channel that is red to the network.
        mean: With `std` and `end`, how its input is normalised: (value / 255 * end - mean) / std.
        std: See `mean`.
        end: See `mean`.
        labels: Whether the output is their argmax.
        last: Whether the channels come last.
        sides: Height and width; None: any.
        kind: Type of the input.
    """
    onnx = pytest.importorskip("onnx", reason="the extra onnx is not installed")
    helper, types = onnx.helper, onnx.TensorProto
    means = ((RED / 255 * end - mean[place]) / std[place]).astype(np.float32)
    weight = np.zeros((4, 3, 1, 1), np.float32)
    weight[:, place, 0, 0] = 2 * means
    arrays = {"weight": weight, "bias": -(means**2)}
    nodes = [("Cast", ["pixels"], "floats", {"to": types.FLOAT})]
    nodes += [("Transpose" if last else "Identity", ["floats"], "image", {"perm": [0, 3, 1, 2]} if last else {})]
    nodes += [("Conv", ["image", "weight", "bias"], "scores", {})]
    best = ("ArgMax", ["scores"], "result", {"axis": 1, "keepdims": 0})
    nodes += [best if labels else ("Identity", ["scores"], "result", {})]
    shape = ["batch", *sides, 3] if last else ["batch", 3, *sides]
    graph = helper.make_graph(
        [helper.make_node(op, inputs, [output], **more) for op, inputs, output, more in nodes],
        "foreign",
        [helper.make_tensor_value_info("pixels", getattr(types, kind), shape)],
        [
            helper.make_tensor_value_info(
                "result", types.INT64 if labels else types.FLOAT, [None] * (3 if labels else 4)
            )
        ],
        [onnx.numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


@pytest.fixture(autouse=True)
def runtime(request: pytest.FixtureRequest) -> None:
    if "judge" in request.fixturenames:
        pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")


@pytest.mark.slow
def test_without_a_word_imagenets_normalisation_is_assumed(judge: Callable[..., dict], tmp_path: Path, capsys) -> None:
    row = judge(write_onnx(tmp_path / "net.onnx"))
    assert row["mIoU"] == 1.0 and row["warning"] is None and row["protocol"] == "own"
    assert row["preprocessing"]["given"] == "nothing: assumed" and row["preprocessing"]["size"] == "as the image"
    assert row["tried"]["as it is"] == 1.0 and row["tried"]["BGR"] < 0.5
    assert "preprocessing: mean 0.485 0.456 0.406, std 0.229 0.224 0.225, channels RGB" in capsys.readouterr().err


@pytest.mark.slow
def test_bgr_is_found_and_given(judge: Callable[..., dict], tmp_path: Path, capsys) -> None:
    mean, std = IMAGENET[0][::-1], IMAGENET[1][::-1]
    path = write_onnx(tmp_path / "net.onnx", 2, mean, std)
    row = judge(path)
    assert row["mIoU"] < 0.5 and "looks like BGR: on 3 images " in row["warning"]
    assert row["warning"] in capsys.readouterr().err
    assert row["warning"] in (tmp_path / "table" / "benchmark.md").read_text()
    row = judge(path, mean=mean, std=std, channels="bgr")
    assert row["mIoU"] == 1.0 and row["warning"] is None


@pytest.mark.slow
def test_the_range_is_found_and_given(judge: Callable[..., dict], tmp_path: Path) -> None:
    none = {"mean": [0, 0, 0], "std": [1, 1, 1]}
    path = write_onnx(tmp_path / "bytes.onnx", **none, end=255)
    assert "looks like values 0..255 before mean and std: on 3 images 100.00 mIoU so" in judge(path, **none)["warning"]
    row = judge(path, **none, range=255)
    # A row is what it scores, whatever its numbers look like.
    assert row["mIoU"] == 1.0 and "looks like 0..255 where 0..1 is expected" in row["warning"]
    assert "before mean and std" not in row["warning"]
    mean, std = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
    row = judge(write_onnx(tmp_path / "mmseg.onnx", 0, mean, std, 255), mean=mean, std=std)
    assert row["mIoU"] == 1.0 and row["preprocessing"]["range"] == [0, 255] and row["warning"] is None


FORGETS = """\
import numpy as np

class Forgets:
    def preprocess(self, image):
        return (image - np.float32(0.485)) / np.float32(0.229)

    def __call__(self, values):
        means = (np.array([40.0, 100.0, 160.0, 220.0]) / 255 - 0.485) / 0.229
        return (2 * values[..., 0] * means[:, None, None] - (means**2)[:, None, None]).astype(np.float32)

class Refuses(Forgets):
    def preprocess(self, image):
        assert image.dtype == np.uint8
        return super().preprocess(image)
"""


@pytest.mark.slow
def test_a_function_that_forgets_to_divide_is_told(
    judge: Callable[..., dict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_text(tmp_path / "forgets.py", FORGETS)
    monkeypatch.syspath_prepend(tmp_path)
    row = judge(Path("forgets:Forgets"))
    assert "looks like 0..255 where 0..1 is expected; looks like values 0..1 before its preprocessing" in row["warning"]
    assert row["tried"]["values 0..1 before its preprocessing"] == 1.0 and row["mIoU"] < 0.5
    assert set(judge(Path("forgets:Refuses"))["tried"]) == {"as it is", "BGR"}


@pytest.mark.slow
def test_labels_bytes_fixed_sizes_and_channels_last(judge: Callable[..., dict], red: Path, tmp_path: Path) -> None:
    assert judge(write_onnx(tmp_path / "labels.onnx", labels=True))["mIoU"] == 1.0
    assert judge(write_onnx(tmp_path / "last.onnx", last=True))["mIoU"] == 1.0
    plain = {"mean": [0, 0, 0], "std": [1, 1, 1], "end": 255}
    assert judge(write_onnx(tmp_path / "uint8.onnx", **plain, kind="UINT8"))["mIoU"] == 1.0
    sides, means = (2 * SIZE[0], 2 * SIZE[1]), torch.from_numpy(RED).view(1, 4, 1, 1)

    def label(image: np.ndarray) -> np.ndarray:
        pixels = torch.from_numpy(image[..., 0].copy()).double()[None, None]
        seen = torch.nn.functional.interpolate(pixels, sides, mode="bilinear", align_corners=False)
        logits = torch.nn.functional.interpolate(
            2 * seen * means - means**2, SIZE, mode="bilinear", align_corners=False
        )
        return logits.argmax(1)[0].numpy()

    row = judge(write_onnx(tmp_path / "double.onnx", sides=sides))
    assert row["preprocessing"]["size"] == list(sides)
    assert row["mIoU"] == pytest.approx(plain_miou(red, label, ".", 4), abs=2e-3) and row["mIoU"] < 0.9


@pytest.mark.slow
def test_openvino_is_scored_as_onnx(judge: Callable[..., dict], tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino", reason="the extra openvino is not installed")
    openvino.save_model(openvino.convert_model(write_onnx(tmp_path / "net.onnx")), tmp_path / "net.xml")
    row = judge(tmp_path / "net.xml")
    assert row["mIoU"] == 1.0 and row["warning"] is None


@pytest.mark.slow
@pytest.mark.parametrize(
    "given, words",
    [
        ({"maen": 0.5}, "preprocessing: no such key 'maen'; did you mean mean? allowed: mean, std, channels"),
        ({"mean": [0.5, 0.5]}, "preprocessing: 2 values for three channels; allowed are mean and std"),
        ({"range": 100}, "range 100"),
        ({"size": 7}, "preprocessing: size 7; allowed are"),
        ({"channels": "RBG"}, "channels RBG"),
        ({"std": 0}, "std"),
    ],
)
def test_a_wrong_preprocessing_is_one_line(red: Path, tmp_path: Path, capsys, given: dict, words: str) -> None:
    pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    path = write_onnx(tmp_path / "net.onnx")
    plan = [{"model": str(path), "data": {"class_path": "FolderDataModule", "init_args": {"root": str(red)}}}]
    write_text(tmp_path / "plan.yaml", json.dumps([plan[0] | {"preprocessing": given}]))
    assert main(["benchmark", "--plan", str(tmp_path / "plan.yaml"), "--output", str(tmp_path / "table")]) == 2
    assert words in capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.slow
def test_folders_of_predictions(run_benchmark: Run, benchmark_folder: Path, tmp_path: Path, capsys) -> None:
    def label(image: np.ndarray) -> np.ndarray:
        return image[..., 1] // 64

    for i in range(5):
        labels = label(np.asarray(Image.open(benchmark_folder / f"data/images/test/{i}.png")))
        write_png(tmp_path / f"plain/{i}.png", labels)
        write_png(tmp_path / f"infer/{i}_labels.png", labels)
        write_png(tmp_path / f"infer/{i}_color.png", np.zeros((4, 4, 3), np.uint8))
    assert run_benchmark(str(tmp_path / "plain"), str(tmp_path / "infer")) == 0
    for row in rows_of(tmp_path / "table"):
        assert row["mIoU"] == pytest.approx(plain_miou(benchmark_folder, label), abs=1e-12)
        assert row["images/s"] is None and row["protocol"] == "own"
    (tmp_path / "plain" / "3.png").unlink()
    assert run_benchmark(str(tmp_path / "plain"), output="missing") == 2
    assert "plain: 1 of 5 images have no prediction (3, ...); predict them" in capsys.readouterr().err
    write_png(tmp_path / "plain" / "3.png", np.full((49, 61), 9, np.uint8))
    assert run_benchmark(str(tmp_path / "plain"), output="wrong") == 2
    assert "of 3 9, but its classes are 0..3 (255: none)" in capsys.readouterr().err
    write_png(tmp_path / "plain" / "3.png", np.zeros((4, 4), np.uint8))
    assert run_benchmark(str(tmp_path / "plain"), output="small") == 2
    assert "returned labels uint8 (4, 4) for an image of 49 x 61 pixels" in capsys.readouterr().err


NETWORKS = """\
import numpy as np
import torch
from torch.nn.functional import interpolate, pad

MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])

def normalised(image):
    return ((torch.from_numpy(image) / 255 - MEAN) / STD).permute(2, 0, 1)[None].float()

class OfTorchvision:
    def __init__(self):
        from torchvision.models.segmentation import lraspp_mobilenet_v3_large
        torch.manual_seed(1)
        self.network = lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=4).eval()

    preprocess = staticmethod(normalised)

    def __call__(self, batch):
        return self.network(batch)["out"]

class OfSmp:
    def __init__(self):
        import segmentation_models_pytorch as smp
        torch.manual_seed(1)
        self.network = smp.FPN("resnet18", encoder_weights=None, classes=4).eval()

    preprocess = staticmethod(normalised)

    def __call__(self, batch):
        height, width = batch.shape[2:]
        padded = pad(batch, (0, -width % 32, 0, -height % 32))
        return self.network(padded)[..., :height, :width]

class OfMmseg:
    class_names = ("road", "tree", "sky", "boat", "lamp")
    align_corners = False

    def __init__(self):
        import mmseg_networks
        torch.manual_seed(1)
        backbone = mmseg_networks.resnest_backbone(8)
        self.network = mmseg_networks.build("FCNHead", backbone, 512, 8)

    preprocess = staticmethod(normalised)

    def __call__(self, batch):
        return self.network.decode_head(self.network.extract_feat(batch))
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["OfTorchvision", "OfSmp", "OfMmseg"])
def test_other_toolkits_networks_as_callables(
    run_benchmark: Run,
    benchmark_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    if name == "OfMmseg":
        pytest.importorskip("mmseg", reason="mmsegmentation is not installed: uv run --group mmseg pytest")
    module = f"networks_of_{name.lower()}"
    write_text(tmp_path / f"{module}.py", NETWORKS)
    monkeypatch.syspath_prepend(tmp_path)
    assert run_benchmark(f"{module}:{name}") == 0
    theirs = __import__(module)
    network = getattr(theirs, name)()

    def label(image: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            logits = network(network.preprocess(image))
            full = torch.nn.functional.interpolate(logits, image.shape[:2], mode="bilinear", align_corners=False)
        ids = full.argmax(1)[0].numpy()
        return np.where(ids < 4, ids, 255)

    (row,) = rows_of(tmp_path / "table")
    assert row["mIoU"] == pytest.approx(plain_miou(benchmark_folder, label), abs=1e-3)  # ties of two classes


@pytest.mark.slow
def test_an_exported_network_is_scored_as_its_checkpoint(
    run_benchmark: Run, benchmark_folder: Path, tmp_path: Path
) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason="the extra onnx is not installed")
    checkpoint, exported = str(benchmark_folder / "b.ckpt"), str(tmp_path / "b.onnx")
    read = read_checkpoint(checkpoint)
    deploy(Path(exported), read, read.build_network().eval(), Form())
    assert run_benchmark(checkpoint, exported, "--protocol", "whole", "ms-flip") == 0
    whole, flipped, *others = rows_of(tmp_path / "table")
    assert [row["mIoU"] for row in others] == [pytest.approx(row["mIoU"], abs=1e-3) for row in (whole, flipped)]
    assert [row["protocol"] for row in others] == ["whole", "ms-flip"] and others[0]["preprocessing"][
        "channels"
    ] == "RGB"
    assert whole["mIoU"] != flipped["mIoU"]
