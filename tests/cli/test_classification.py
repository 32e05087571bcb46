"""`segkit fit | validate | test` of a classifier: same command line, same guards; and what its encoder is good for."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from class_images import CLASSES, files, jpeg, write_folders, write_shapes
from gloo import run_command
from interrupt import Killed
from noise import write_noise
from tiny_fit import assert_equal, result

from segkit.benchmark.encoders import classify
from segkit.cli import main
from segkit.data.imagenet.crops import CentreCrop
from segkit.data.imagenet.datamodule import ImageNetDataModule
from segkit.files import parse_json
from segkit.models.classifier import Classifier
from segkit.models.weights import read_classifier
from segkit.training.classification import ClassificationModule
from segkit.training.guards.nonfinite import replay


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folders(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def recipe(root: Path) -> Path:
    """With all that is random: augmentation, lighting, mixup, dropout."""
    config = {
        "data": {
            "class_path": "ImageNetDataModule",
            "init_args": {"root": str(root), "num_classes": 3, "batch_size": 4, "crop_size": 32, "num_workers": 0},
        },
        "model": {
            "network": {"class_path": "Classifier", "init_args": {"encoder": "resnest14_tiny", "final_drop": 0.2}},
            "optim": {"lr": 0.02, "reference_batch": 0, "schedule": "cosine", "warmup_steps": 2, "head_lr_mult": 1},
            "mixup": 0.2,
            "label_smoothing": 0.1,
            "lighting": 0.1,
        },
        "trainer": {
            "accelerator": "cpu",
            "max_epochs": 2,
            "log_every_n_steps": 1,
            "num_sanity_val_steps": 0,
            "enable_progress_bar": False,
            "callbacks": [{"class_path": "interrupt.Interrupt"}],
        },
    }
    path = root / "recipe.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.fixture(scope="module")
def run(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "whole"
    assert main(["fit", "--config", str(recipe), "--run_dir", str(folder)]) == 0
    return folder


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main([str(argument) for argument in arguments]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    return line


@pytest.mark.slow
def test_a_run_leaves_what_one_of_segmentation_leaves(run: Path) -> None:
    names = {path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()}
    assert {"config.yaml", "metrics.csv", "summary.json", "checkpoints/last.ckpt"} <= names
    summary = parse_json((run / "summary.json").read_text())
    assert summary["steps"] == 6 and 0 <= summary["last_top1"] <= summary["best_top1"] <= 1
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["hyper_parameters"]["class_names"] == list(CLASSES)
    assert "best" in summary["files"]


@pytest.mark.parametrize("command", ["test", pytest.param("validate", marks=pytest.mark.slow)])
def test_the_score_is_a_property_of_weights_images_and_crop(
    command: str, run: Path, recipe: Path, tmp_path: Path
) -> None:
    arguments = [command, "--config", str(recipe), "--ckpt_path", str(run / "checkpoints" / "last.ckpt")]
    found = []
    for size, batch in (("encoding", 4), ("encoding", 5)):
        out = tmp_path / f"{size}{batch}"
        assert main([*arguments, "--protocol", size, "--data.batch_size", str(batch), "--run_dir", str(out)]) == 0
        found.append(parse_json((out / "result.json").read_text()))
    assert found[0]["scores"] == found[1]["scores"] and found[0]["num_images"] == 6
    assert found[0]["protocol"] == {"name": "encoding", "size": 32, "crop_pct": None, "interpolation": "bilinear"}
    assert found[0]["partial"] is False and found[0]["dataset"]["name"] == "ImageNetDataModule"
    assert found[0]["scores"]["top1"]["low"] <= found[0]["scores"]["top1"]["value"]


@pytest.mark.slow
@pytest.mark.parametrize("at", [2, 3, 5])
def test_killed_and_resumed_it_ends_the_same_to_the_bit(
    at: int, run: Path, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = tmp_path / "run"
    monkeypatch.setenv("INTERRUPT_AT", str(at))
    monkeypatch.setenv("INTERRUPT_SIGNAL", "killed")
    with pytest.raises(Killed):
        main(["fit", "--config", str(recipe), "--run_dir", str(again), "--save_every", "2"])
    monkeypatch.delenv("INTERRUPT_AT")
    assert main(["fit", "--ckpt_path", "last", "--run_dir", str(again)]) == 0
    found, expected = result(again), result(run)
    for name in ("state_dict", "optimizer_states", "lr_schedulers", "global_step"):
        assert_equal(found["last.ckpt"][name], expected["last.ckpt"][name], name)
    assert found["metrics.csv"] == expected["metrics.csv"]


def test_a_run_with_another_mixup_is_not_resumed(
    run: Path, recipe: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    last = run / "checkpoints" / "last.ckpt"
    line = refused(capsys, "fit", "--config", recipe, "--ckpt_path", last, "--model.mixup", 0.4, "--run_dir", tmp_path)
    assert "model.mixup: 0.2 -> 0.4" in line


@pytest.mark.slow
def test_the_encoder_begins_a_training_of_segmentation(run: Path, tmp_path: Path) -> None:
    data, last = write_noise(tmp_path / "data", {"train": 2, "val": 1}), run / "checkpoints" / "last.ckpt"
    arguments = ["fit", "--data", "FolderDataModule", "--data.root", str(data), "--data.batch_size", "2"]
    arguments += ["--data.crop_size", "32", "--data.base_size", "56", "--data.num_workers", "0"]
    arguments += ["--model.network", "FCN", "--model.network.encoder", "resnest14_tiny", "--encoder_weights", str(last)]
    arguments += ["--model.frozen_stages", "4", "--trainer.max_steps", "1", "--trainer.accelerator", "cpu"]
    arguments += ["--trainer.enable_progress_bar", "false", "--trainer.limit_val_batches", "0"]
    assert main([*arguments, "--overlays", "0", "--run_dir", str(tmp_path / "run")]) == 0
    before = torch.load(last, weights_only=True)["state_dict"]
    after = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    name = "network.encoder.layer4.0.conv1.weight"
    assert torch.equal(after[name], before[name])


@pytest.mark.slow
def test_a_file_of_another_toolkit_is_scored(recipe: Path, tmp_path: Path) -> None:
    """timm's names: the encoder's without prefix, beside fc."""
    torch.manual_seed(0)
    network = Classifier("resnest14_tiny", 3)
    theirs = {**network.encoder.state_dict(), **{f"fc.{n}": t for n, t in network.fc.state_dict().items()}}
    torch.save(theirs, tmp_path / "theirs.pth")
    arguments = ["test", "--config", str(recipe), "--ckpt_path", str(tmp_path / "theirs.pth")]
    assert main([*arguments, "--run_dir", str(tmp_path / "t")]) == 0
    assert parse_json((tmp_path / "t" / "result.json").read_text())["num_images"] == 6


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--probe"], "--probe: has no effect on a classifier"),
        (["--overlays", "3"], "--overlays: has no effect on a classifier"),
        (["--protocol", "whole"], "centre crops are resnest, encoding, timm"),
        (["--protocol", "timm"], "give its crop_pct and interpolation"),
        (["--model.mixupp", "1"], "did you mean mixup?"),
        (["--data.num_classes", "999"], "3 classes, from n01440764 to n02119789, where 999 are expected"),
        (["--data.batch_size", "13"], "12 training images are fewer than one batch"),
        (["--init_from", "x"], "--init_from: has no effect on a classifier"),
        (["--data", "CamVidDataModule"], "data: no such class 'CamVidDataModule'; did you mean ImageNetDataModule"),
        (["--model.network", "FCN"], "model.network: no such class 'FCN'; allowed: Classifier"),
        (["--model.network", "Classifer"], "did you mean Classifier?"),
    ],
)
def test_what_does_not_fit_is_one_line(
    arguments: list[str], message: str, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(capsys, "fit", "--config", recipe, "--run_dir", tmp_path / "run", *arguments)
    assert message in line, line


@pytest.mark.slow
def test_other_classes_than_the_checkpoints_are_one_line(
    run: Path, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    names: Any = checkpoint["hyper_parameters"]["class_names"]
    names[:2] = names[1::-1]
    torch.save(checkpoint, tmp_path / "turned.ckpt")
    test = ["test", "--config", recipe, "--ckpt_path", tmp_path / "turned.ckpt", "--run_dir", tmp_path / "t"]
    assert "in another order (class 0 is 'n01443537', in the data 'n01440764')" in refused(capsys, *test)
    few = write_folders(tmp_path / "few", {k: v for k, v in files().items() if CLASSES[2] not in k})
    line = refused(capsys, *test[:4], run / "checkpoints/last.ckpt", "--data.root", few, "--data.num_classes", 2)
    assert "trained on 3 classes" in line
    assert "labels no pixels" in refused(
        capsys, "infer", "--checkpoint", run / "checkpoints/last.ckpt", "--output", tmp_path / "o", __file__
    )


@pytest.mark.slow
def test_a_damaged_image_ends_a_run_in_one_line(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_folders(tmp_path / "data", files() | {f"train/{CLASSES[0]}/broken.JPEG": jpeg(0, 0)[:200]})
    line = refused(
        capsys, "fit", "--config", recipe, "--data.root", data, "--data.batch_size", 13, "--run_dir", tmp_path
    )
    assert f"{CLASSES[0]}/broken.JPEG" in line


@pytest.mark.slow
def test_a_benchmark_has_the_score_of_the_test_beside_the_published(run: Path, recipe: Path, tmp_path: Path) -> None:
    published = {"top1": 50.0, "protocol": "encoding@32", "images": 6, "source": "a paper"}
    own = tmp_path / "own.yaml"
    own.write_text(yaml.safe_dump(yaml.safe_load(recipe.read_text()) | {"published": published}))
    last = str(run / "checkpoints" / "last.ckpt")
    options = ["--config", str(own), "--device", "cpu"]
    names = ["--protocol", "encoding", "resnest@40", "--output", str(tmp_path / "table")]
    assert main(["benchmark", last, *options, *names]) == 0
    rows = parse_json((tmp_path / "table" / "benchmark.json").read_text())["rows"]
    test = [
        "test",
        "--config",
        str(own),
        "--ckpt_path",
        last,
        "--protocol",
        "encoding",
        "--run_dir",
        str(tmp_path / "t"),
    ]
    assert main(test) == 0
    scores = parse_json((tmp_path / "t" / "result.json").read_text())["scores"]
    assert [row["protocol"] for row in rows] == ["encoding@32", "resnest@40"]
    assert rows[0]["top-1"] == scores["top1"]["value"] and rows[0]["top-5"] == scores["top5"]["value"] == 1
    assert rows[0]["interval"] == [scores["top1"]["low"], scores["top1"]["high"]]
    assert rows[0]["difference"] == pytest.approx(rows[0]["top-1"] - 0.5) and rows[0]["published top-1"] == 0.5
    assert "published for encoding@32, 6 images" in rows[1]["not comparable"] and "difference" not in rows[1]
    assert (rows[1]["GFLOPs"] > rows[0]["GFLOPs"]) and rows[0]["images"] == 6 and not rows[0]["partial"]
    text = (tmp_path / "table" / "benchmark.md").read_text()
    assert "| top-1 " in text and "| mIoU " not in text and "published top-1 50.00 (a paper); not compared" in text


def test_some_images_of_every_class_are_classified(run: Path, root: Path) -> None:
    data = ImageNetDataModule(root, 3, batch_size=2, crop_size=32, num_workers=0)
    network = read_classifier(run / "checkpoints" / "last.ckpt", "resnest14_tiny", class_names=data.class_names)
    seen: list[int] = []

    def spy(image: torch.Tensor) -> torch.Tensor:
        seen.append(len(image))
        return network(image)

    found = classify(spy, data, CentreCrop("resnest", 32), limit=3)
    assert found.images == 3 == sum(seen)
    labels = [int(item["label"]) for item in (data.datasets["test"][i] for i in (0, 2, 4))]
    assert labels == [0, 1, 2]


@pytest.mark.slow
def test_a_network_without_weights_has_its_cost(
    capsys: pytest.CaptureFixture[str], recipe: Path, tmp_path: Path
) -> None:
    plan = tmp_path / "plan.yaml"
    plan.write_text(yaml.safe_dump([{"config": str(recipe)}]))
    assert main(["benchmark", "--plan", str(plan), "--device", "cpu", "--output", str(tmp_path / "table")]) == 0
    (row,) = parse_json((tmp_path / "table" / "benchmark.json").read_text())["rows"]
    assert row["M params"] == pytest.approx(sum(p.numel() for p in Classifier("resnest14_tiny", 3).parameters()) / 1e6)
    assert "top-1" not in row and row["GFLOPs"] > 0


@pytest.mark.slow
def test_a_loss_that_is_no_number_is_kept_and_repeated(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = Classifier.forward
    monkeypatch.setattr(Classifier, "forward", lambda self, x: forward(self, x) * float("nan"))
    line = refused(capsys, "fit", "--config", recipe, "--run_dir", tmp_path / "run")
    assert "step 0" in line and "the loss is nan" in line
    (kept,) = (tmp_path / "run").glob("nonfinite-step000000.pt")
    assert replay(kept).loss != replay(kept).loss  # NaN again
    monkeypatch.undo()
    assert replay(kept).loss < 10 and replay(kept).first is None


@pytest.mark.slow
def test_too_large_a_batch_is_told_what_fits(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("no more")

    monkeypatch.setattr(ClassificationModule, "training_step", full)
    line = refused(capsys, "fit", "--config", recipe, "--run_dir", tmp_path / "run")
    assert "take --data.batch_size 2 --trainer.accumulate_grad_batches 2" in line


@pytest.mark.slow
def test_shapes_are_learned(tmp_path: Path) -> None:
    """Three kinds, so chance is 33 %; 70 % are right after six epochs, and with ten kinds 97 % after thirty."""
    root = write_shapes(tmp_path / "data", train=96, val=30, side=32)
    data = [
        "--data",
        "ImageNetDataModule",
        "--data.root",
        str(root),
        "--data.num_classes",
        "3",
        "--data.crop_size",
        "32",
    ]
    data += ["--data.batch_size", "24", "--data.num_workers", "0", "--data.rand_augment", "[1, 6]"]
    model = ["--model.network", "Classifier", "--model.network.encoder", "resnest14_tiny", "--model.mixup", "0.2"]
    model += ["--model.optim.name", "adamw", "--model.optim.lr", "0.005", "--model.optim.reference_batch", "0"]
    model += ["--model.optim.head_lr_mult", "1", "--model.optim.schedule", "cosine", "--model.label_smoothing", "0.1"]
    trainer = ["--trainer.accelerator", "cpu", "--trainer.max_epochs", "6", "--trainer.check_val_every_n_epoch", "6"]
    assert main(["fit", *data, *model, *trainer, "--run_dir", str(tmp_path / "run")]) == 0
    summary = parse_json((tmp_path / "run" / "summary.json").read_text())
    assert summary["last_top1"] > 0.55


@pytest.mark.slow
def test_two_processes_score_as_one(run: Path, recipe: Path, tmp_path: Path) -> None:
    """Six images in batches of four: the shares are uneven, and none is counted twice."""
    test = ["test", "--config", str(recipe), "--ckpt_path", str(run / "checkpoints" / "last.ckpt")]
    for world in (1, 2):
        devices = ["--trainer.devices", str(world), "--run_dir", str(tmp_path / str(world))]
        run_command(world, [*test, *devices], tmp_path / f"log{world}")
    one, two = (parse_json((tmp_path / str(world) / "result.json").read_text()) for world in (1, 2))
    assert one["scores"] == two["scores"] and two["num_images"] == 6 and not two["partial"]
