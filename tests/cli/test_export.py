"""`segkit export` and what the Lightning commands make of its files: one trained network in, the same numbers out."""

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from scenes import scenes

import segkit
from segkit.cli import main
from segkit.models.weight_files import read_model_file
from segkit.models.weights import read_checkpoint

TRAINER = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Options of a tiny drawn data set."""
    sizes = dict(batch_size=2, num_train=2, num_val=2, num_test=2, height=64, width=64, crop_size=32, base_size=64)
    return scenes(tmp_path_factory.mktemp("data") / "scenes", **sizes)


def command_line(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """As typed, so that the result file has the command."""
    monkeypatch.setattr(sys, "argv", ["segkit", *arguments])
    return main(arguments)


@pytest.fixture(scope="module")
def run(data: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished `segkit fit` and the result of `segkit test` in its folder."""
    run = tmp_path_factory.mktemp("runs") / "7"
    model = ["--model.network", "FCN", "--model.network.encoder", "resnest14_tiny"]
    model += ["--model.network.dilation_convention", "mmseg", "--model.normalization.mean", "[0.5,0.4,0.3]"]
    model += ["--model.normalization.std", "[0.2,0.2,0.2]"]
    assert main(["fit", *data, *model, *TRAINER, "--trainer.max_epochs", "1", "--run_dir", str(run)]) == 0
    checkpoint = str(run / "checkpoints" / "last.ckpt")
    test = ["test", *data, *TRAINER, "--ckpt_path", checkpoint, "--run_dir", str(run)]
    assert main([*test, "--protocol", "window"]) == 0
    return run


@pytest.fixture(scope="module")
def last(run: Path) -> Path:
    return run / "checkpoints" / "last.ckpt"


@pytest.fixture(scope="module")
def model(last: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "model.safetensors"
    assert main(["export", str(last), "-o", str(path)]) == 0
    return path


def header(path: Path) -> dict:
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["segkit"])


@pytest.mark.slow
def test_the_card_says_all_about_the_weights(model: Path, last: Path, run: Path) -> None:
    card, checkpoint = header(model), read_checkpoint(last)
    assert card["format"] == 1 and card["segkit"] == segkit.__version__ and "torch" in card["versions"]
    assert card["network"] == checkpoint.network
    assert card["network"]["init_args"]["dilation_convention"] == "mmseg"
    assert card["normalization"]["mean"] == [0.5, 0.4, 0.3]
    assert card["label_space"] == checkpoint.label_space and len(card["label_space"]["palette"]) == 9
    result = json.loads((run / "result.json").read_text())
    assert card["protocol"] == result["protocol"] and card["protocol"]["name"] == "window"
    (score,) = card["scores"]
    assert score["mIoU"] == result["scores"]["mIoU"] and score["protocol"] == "window" and score["num_images"] == 2
    assert score["dataset"]["name"] == "SyntheticDataModule" and not score["partial"]
    assert score.get("conventions") == result.get("conventions")
    assert card["source"]["file"] == "last.ckpt" and len(card["source"]["sha256"]) == 64


@pytest.mark.slow
def test_the_weights_are_the_checkpoints_and_nothing_else_is_there(model: Path, last: Path) -> None:
    written, own = read_model_file(model).state_dict, read_checkpoint(last).state_dict
    assert written.keys() == own.keys() and any(name.startswith("aux_head.") for name in own)
    assert all(torch.equal(written[name], tensor) for name, tensor in own.items())
    assert model.stat().st_size < 0.6 * last.stat().st_size  # no optimiser state


def test_load_gives_the_same_labels_and_offers_the_card(model: Path, last: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (61, 83, 3), np.uint8)
    exported, trained = segkit.load(model, "cpu"), segkit.load(last, "cpu")
    assert np.array_equal(exported.predict(image), trained.predict(image))
    assert exported.label_space == trained.label_space and exported.normalization == trained.normalization
    assert exported.protocol.name == "whole"  # how one tests is no property of the weights
    assert exported.card["protocol"]["name"] == "window" and exported.card["scores"] and trained.card == {}


@pytest.mark.slow
def test_test_validate_and_predict_take_a_model_file(model: Path, run: Path, data, tmp_path: Path) -> None:
    options = [*data, *TRAINER, "--ckpt_path", str(model)]
    assert main(["test", *options, "--protocol", "window", "--run_dir", str(tmp_path)]) == 0
    scores = json.loads((tmp_path / "result.json").read_text())["scores"]
    assert scores == json.loads((run / "result.json").read_text())["scores"]
    assert main(["validate", *options, "--run_dir", str(tmp_path)]) == 0
    validated = json.loads((tmp_path / "result-2.json").read_text())["scores"]["mIoU"]
    with (run / "metrics.csv").open() as file:
        logged = [float(row["val/mIoU"]) for row in csv.DictReader(file) if row["val/mIoU"]]
    assert validated == pytest.approx(logged[-1], abs=1e-6)
    assert main(["predict", *options, "--run_dir", str(tmp_path), "--output", str(tmp_path / "labels")]) == 0
    assert len(list((tmp_path / "labels").rglob("*.png"))) == 2


def test_the_network_of_a_model_file_cannot_be_changed(model: Path, data, tmp_path: Path, capsys) -> None:
    options = [*data, *TRAINER, "--ckpt_path", str(model), "--run_dir", str(tmp_path)]
    assert main(["test", *options, "--model.network.output_stride", "16"]) == 2
    assert "output_stride: the checkpoint has 8, 16 was given" in capsys.readouterr().err


def test_data_of_other_classes_are_refused(model: Path, tmp_path: Path, capsys) -> None:
    for kind in ("images", "labels"):
        (tmp_path / kind / "test").mkdir(parents=True)
    (tmp_path / "classes.txt").write_text("a\nb\n")
    test = ["test", "--ckpt_path", str(model), "--data", "FolderDataModule", "--data.root", str(tmp_path)]
    assert main(test) == 2
    said = capsys.readouterr().err
    assert "trained on 9 classes (road, " in said and "FolderDataModule has 2" in said


@pytest.mark.slow
def test_fit_does_not_go_on_with_a_model_file_but_starts_from_its_encoder(model: Path, data, tmp_path, capsys) -> None:
    fit = ["fit", *data, *TRAINER, "--trainer.max_epochs", "1", "--run_dir", str(tmp_path / "run")]
    assert main([*fit, "--ckpt_path", str(model)]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1 and "no optimiser state" in said[0] and f"--encoder_weights {model}" in said[0]
    new = ["--model.network", "DeepLabV3", "--model.network.encoder", "resnest14_tiny"]
    assert main([*fit, *new, "--model.optim.lr", "1e-9", "--encoder_weights", str(model)]) == 0
    kernel = "encoder.layer3.0.conv2.conv.weight"
    trained = read_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt").state_dict[kernel]
    assert torch.allclose(trained, read_model_file(model).state_dict[kernel], atol=1e-6)


def test_without_the_auxiliary_head_logits_are_the_same(model: Path, last: Path, tmp_path: Path, capsys) -> None:
    small = tmp_path / "small.safetensors"
    assert main(["export", str(model), "-o", str(small), "--no-aux"]) == 0  # of a model file, which keeps its scores
    assert "no auxiliary head" in capsys.readouterr().out
    read = read_model_file(small)
    assert not any(name.startswith("aux_head.") for name in read.state_dict)
    assert read.network["init_args"]["aux"] is False and read.card["scores"] == header(model)["scores"]
    x = torch.randn(1, 3, 65, 49)
    with torch.no_grad():
        assert torch.equal(read.build_network()(x)["out"], read_checkpoint(last).build_network()(x)["out"])


def test_nothing_is_written_over_without_overwrite(last: Path, tmp_path: Path, capsys) -> None:
    output = tmp_path / "a.safetensors"
    output.write_text("mine")
    assert main(["export", str(last), "-o", str(output)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "exists already" in said and "--overwrite" in said
    assert output.read_text() == "mine"
    assert main(["export", str(last), "-o", str(output), "--overwrite"]) == 0
    assert header(output)["format"] == 1


def test_the_summary_names_what_is_in_the_file(last: Path, tmp_path: Path, capsys) -> None:
    assert main(["export", str(last), "-o", str(tmp_path / "a.safetensors"), "--protocol", "ms-flip"]) == 0
    said = capsys.readouterr().out
    for words in ("a.safetensors (", " MB)", "FCN + auxiliary head", "resnest14_tiny", "mmseg convention", "9: road, ",
                  "ms-flip", "mIoU ", "2 images", "file last.ckpt, sha256 "):  # fmt: skip
        assert words in said
    assert header(tmp_path / "a.safetensors")["protocol"]["name"] == "ms-flip"


def test_only_results_of_these_weights_are_taken_by_themselves(run: Path, last: Path, tmp_path: Path, capsys) -> None:
    other = last.with_name("other.ckpt")  # as if trained further
    data = torch.load(last, weights_only=True)
    data["state_dict"]["network.head.4.bias"] += 1
    torch.save(data, other)
    assert main(["export", str(other), "-o", str(tmp_path / "other.safetensors")]) == 0
    assert header(tmp_path / "other.safetensors")["scores"] == []
    assert "result.json: left out: made with other weights than other.ckpt's" in capsys.readouterr().err
    result = str(run / "result.json")
    assert main(["export", str(other), "-o", str(tmp_path / "given.safetensors"), "--result", result]) == 0
    assert len(header(tmp_path / "given.safetensors")["scores"]) == 1
    other.unlink()


@pytest.mark.slow
@pytest.mark.parametrize(
    "change, words",
    [
        (["-o", "{tmp}/model.pth"], "names no format; choose .safetensors"),
        (["-o", "{tmp}/folder.safetensors"], "is a folder"),
        (["-o", "{tmp}/text/a.safetensors"], "is a file, so"),
        (["--result", "{tmp}/absent.json"], "absent.json: no such file"),
        (["--result", "{tmp}/text"], "cannot be read as JSON"),
        (["--result", "{tmp}/list.json"], "not a result of `segkit test`"),
        (["--result", "{tmp}/other.json"], "a result of 1 classes (cat, ...), the checkpoint has 9 (road, "),
        (["--protocol", "ms-filp"], "'ms-filp' is not known"),
        (["--precision", "int8"], "--precision has no effect on a .safetensors file"),
        (["--outputs=labels"], "--outputs has no effect"),
        (["--data.root", "{tmp}"], "--data.root has no effect"),
        (["-o", "{tmp}/a.onnx", "--max_drop", "nan"], "'nan' is not a number in 0..100"),
        (["-o", "{tmp}/a.onnx", "--max_drop", "-1"], "'-1' is not a number in 0..100"),
    ],
)
def test_wrong_input_takes_one_line(last: Path, tmp_path: Path, capsys, change: list[str], words: str) -> None:
    (tmp_path / "folder.safetensors").mkdir()
    (tmp_path / "text").write_text("no JSON")
    (tmp_path / "list.json").write_text("[1]")
    other = {"classes": [{"name": "cat"}], "scores": dict.fromkeys(("mIoU", "pixel_accuracy", "mean_accuracy"), 0.5)}
    other |= {"protocol": {"name": "whole"}, "dataset": {}, "num_images": 1, "partial": False, "date": "2026-01-01"}
    (tmp_path / "other.json").write_text(json.dumps(other))
    before = sorted(tmp_path.rglob("*"))
    output = ["-o", str(tmp_path / "a.safetensors")]
    assert main(["export", str(last), *output, *(word.format(tmp=tmp_path) for word in change)]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert words in said[-1] and said[-1].startswith("segkit export: error: ")
    assert sorted(tmp_path.rglob("*")) == before
