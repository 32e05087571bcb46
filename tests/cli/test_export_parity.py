"""`segkit export` to other runtimes: a file gets its name only when it is proven against PyTorch."""

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import write_checkpoint
from scenes import scenes

from segkit.benchmark.parity import PairedScores
from segkit.cli import main
from segkit.data.names import data_sets
from segkit.models.export.deployable import Deployable
from segkit.models.export.quantize import Calibration, layers_of, quantize_until, quantized, ranking
from segkit.models.segmentation import FCN, SegmentationModel
from segkit.models.weights import read_checkpoint
from segkit.ops.normalize import IMAGENET

pytest.importorskip("onnxscript")


@pytest.fixture(scope="module", autouse=True)
def _of_a_small_image() -> Iterator[None]:
    """Time and memory of an image of 480 x 480 would take longer than all else."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("segkit.benchmark.parity.TIMED_SIZE", (96, 96))
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Options of a tiny drawn data set."""
    sizes = dict(batch_size=4, num_train=12, num_val=2, num_test=4, height=64, width=72, crop_size=48, base_size=64)
    return scenes(tmp_path_factory.mktemp("data") / "scenes", **sizes)


def network_of(seed: int) -> SegmentationModel:
    torch.manual_seed(seed)
    network = FCN("resnest14_tiny", num_classes=data_sets()["synthetic"].label_space.num_classes, output_stride=16)
    return network.eval()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "a.ckpt"
    return write_checkpoint(path, network_of(0), data_sets()["synthetic"].label_space)


@pytest.fixture(scope="module")
def proven(checkpoint: Path, data: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("proven") / "model.onnx"
    assert main(["export", str(checkpoint), "-o", str(path), *data]) == 0
    return path


def report(path: Path) -> dict:
    return json.loads(path.with_name(f"{path.name}.parity.json").read_text(encoding="utf-8"))


@pytest.mark.slow
def test_a_faithful_file_is_proven(proven: Path) -> None:
    said = report(proven)
    assert said["proven"] and not said["over"] and said["mIoU"]["images"] == 4
    assert said["mIoU"]["mIoU"]["difference"]["value"] == 0
    assert len(said["sizes"]) == 3 and all(
        height % 2 and width % 2 for height, width in (s["size"] for s in said["sizes"])
    )
    assert all(size["labels"] == 1 and size["logits"] < 1e-4 for size in said["sizes"])
    assert [row["of"] for row in said["cost"]][-1] == ".onnx fp32"
    assert sorted(path.name for path in proven.parent.iterdir()) == ["model.onnx", "model.onnx.parity.json"]


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["mean", "weights"])
def test_a_planted_fault_is_found(
    fault: str, proven: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    """The file is of another mean or other weights than the checkpoint: it is kept, but not by its name."""
    network, space = read_checkpoint(checkpoint).build_network(), data_sets()["synthetic"].label_space
    if fault == "weights":
        with torch.no_grad():
            weight = network.encoder.layer1[0].conv1.weight
            weight.add_(0.1 * weight.std() * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))
    other = write_checkpoint(tmp_path / "other.ckpt", network, space)
    if fault == "mean":
        monkeypatch.setattr("segkit.cli.deployment.Normalization.from_dict", lambda plain: IMAGENET)
    monkeypatch.setattr("segkit.cli.deployment.deploy", lambda path, *rest: shutil.copy(proven, path))
    target = tmp_path / "model.onnx"
    target.write_bytes(b"an older one")
    assert main(["export", str(other), "-o", str(target), "--overwrite"]) == 1
    kept = tmp_path / "model.unproven.onnx"
    assert kept.read_bytes() == proven.read_bytes() and target.read_bytes() == b"an older one"
    said = report(kept)
    assert not said["proven"] and "logits differ by" in said["over"][-1]
    assert f"{kept}: not proven" in capsys.readouterr().out


def test_layers_are_put_back_to_float_until_the_loss_is_accepted(tmp_path: Path) -> None:
    deployable = Deployable(network_of(0), IMAGENET)
    image = np.random.default_rng(0).integers(0, 256, (1, 3, 33, 65)).astype(np.float32)
    layers = {name: f"node {name}" for name, m in deployable.network.named_modules() if isinstance(m, torch.nn.Conv2d)}
    drops, written = iter((0.2, 0.1, 0.0)), list[tuple[Sequence[str], Sequence[str]]]()
    calibration = Calibration(1, lambda index: image, lambda path: next(drops), 0.0, lambda line: None)
    kept = quantize_until(tmp_path, layers, deployable, calibration, lambda *names: written.append(names))
    assert [len(names) for names, _ in written] == [1, 2, 4]
    assert written[-1] == (kept, [f"node {name}" for name in kept])
    assert kept[0] == list(layers)[-1]  # the classifier always is in float


def test_a_layer_that_rounding_does_not_change_is_ranked_last() -> None:
    deployable = Deployable(network_of(0), IMAGENET)
    name = "encoder.layer2.0.conv3"
    torch.nn.init.zeros_(deployable.network.get_submodule(name).weight)
    before = {key: value.clone() for key, value in deployable.network.state_dict().items()}
    image = torch.randint(0, 256, (1, 3, 33, 65), generator=torch.Generator().manual_seed(0))
    ranked = ranking(deployable, [image])
    assert ranked[-1] == name and len(set(ranked)) == len(ranked) > 10
    assert all(torch.equal(value, before[key]) for key, value in deployable.network.state_dict().items())


@pytest.mark.slow
def test_all_layers_but_those_named_are_int8_and_stored_so(proven: Path) -> None:
    """The first node's name is the beginning of all others'."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("nncf")
    model = onnx.load(proven)
    image = np.random.default_rng(0).integers(0, 256, (1, 3, 33, 65)).astype(np.float32)
    calibration = Calibration(2, lambda index: image, lambda path: 0.0, 0.0, lambda line: None)
    nodes = layers_of(model)
    found = quantized(model, calibration, [nodes["encoder.conv1.0"], nodes["head.4"]])
    made_by = {name: node.op_type for node in found.graph.node for name in node.output}
    in_float = [node.name for node in found.graph.node if node.op_type == "Conv" and node.input[1] not in made_by]
    assert in_float == [nodes["encoder.conv1.0"], nodes["head.4"]] and len(nodes) > 20
    assert len(found.SerializeToString()) < 0.4 * proven.stat().st_size
    onnx.checker.check_model(found)


@pytest.mark.slow
def test_layers_are_chosen_by_other_images_than_those_of_the_report(
    proven: Path, checkpoint: Path, data: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared, drops = list[list[str]](), list[float]()

    class Spy(PairedScores):
        def compare(self, path: Path) -> Any:
            compared.append([str(sample) for sample in self.images.samples])
            return super().compare(path)

    def choosing(path: Path, *rest: Any) -> None:
        shutil.copy(proven, path)
        drops.append(rest[-1].drop(path))

    monkeypatch.setattr("segkit.cli.deployment.PairedScores", Spy)
    monkeypatch.setattr("segkit.cli.deployment.deploy", choosing)
    options = ["--precision", "int8", "--calibration_images", "3"]
    assert main(["export", str(checkpoint), "-o", str(tmp_path / "model.onnx"), *data, *options]) == 0
    chosen, reported = compared
    assert len(chosen) == 3 and len(reported) == 4 and drops == [0]
    assert all("/train/" in name for name in chosen) and all("/test/" in name for name in reported)
    assert report(tmp_path / "model.onnx")["float layers chosen by"] == {"split": "train", "images": 3}


@pytest.fixture(scope="module")
def trained(data: list[str], tmp_path_factory: pytest.TempPathFactory) -> str:
    run = tmp_path_factory.mktemp("trained")
    trainer = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false", "--trainer.max_epochs", "8"]
    trainer += ["--trainer.check_val_every_n_epoch", "8"]
    network = ["--model.network", "FCN", "--model.network.encoder", "resnest14_tiny"]
    assert main(["fit", *data, *network, *trainer, "--overlays", "0", "--run_dir", str(run)]) == 0
    return str(run / "checkpoints/last.ckpt")


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
def test_int8_of_a_trained_network(suffix: str, trained: str, data: list[str], tmp_path: Path, capsys) -> None:
    pytest.importorskip("nncf")
    target = tmp_path / f"model{suffix}"
    options = ["--precision", "int8", "--calibration_images", "8", "--max_drop", "1"]
    assert main(["export", trained, "-o", str(target), *data, *options]) == 0
    said = report(target)
    assert said["mIoU"]["mIoU"]["difference"]["value"] >= -0.01
    assert said["precision"] == "int8" and any(size["logits"] > 1e-4 for size in said["sizes"])  # really rounded
    shown = capsys.readouterr()
    assert "in float: head" in shown.err and "nncf" not in (shown.out + shown.err).lower()


@pytest.mark.parametrize(
    ("name", "words"),
    [("x.onnx", "int8 is calibrated on training images"), ("x.pt2", ".onnx and .xml files do")],
)
def test_wrong_input_takes_one_line(name: str, words: str, checkpoint: Path, tmp_path: Path, capsys) -> None:
    assert main(["export", str(checkpoint), "-o", str(tmp_path / name), "--precision", "int8"]) == 2
    assert words in capsys.readouterr().err and not list(tmp_path.iterdir())


@pytest.mark.slow
def test_an_exported_file_is_tested_as_its_checkpoint(
    checkpoint: Path, proven: Path, data: list[str], tmp_path: Path
) -> None:
    trainer = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
    for name, weights in (("whole", ["--ckpt_path", checkpoint]), ("exported", ["--model", proven])):
        given = [*trainer, *map(str, weights), "--run_dir", str(tmp_path / name)]
        assert main(["test", *data, *given]) == 0
    whole, exported = (json.loads((tmp_path / f"{name}/result.json").read_text()) for name in ("whole", "exported"))
    assert exported["scores"]["mIoU"] == pytest.approx(whole["scores"]["mIoU"], abs=1e-3)
    assert exported["protocol"] == whole["protocol"]
    assert exported["precision"] == "fp32" and exported["weights"] != whole["weights"]


@pytest.mark.slow
def test_an_exported_file_is_neither_trained_nor_tested_otherwise(
    proven: Path, data: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["validate", *data, "--ckpt_path", str(proven), "--run_dir", str(tmp_path)]) == 2
    assert "an exported file, which `segkit test` and `segkit predict` run" in capsys.readouterr().err
    arguments = ["--ckpt_path", str(proven), "--run_dir", str(tmp_path), "--test_precision", "bfloat16"]
    assert main(["test", *data, *arguments]) == 2
    assert "runs as it was exported; leave it out" in capsys.readouterr().err
