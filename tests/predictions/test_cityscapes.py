"""Official Cityscapes scores against our matrix and values worked out by hand; cityscapesScripts is left as it was."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from gloo import run_command
from PIL import Image

from segkit.cli import main
from segkit.errors import InputError
from segkit.evaluation.confusion import ConfusionMatrix
from segkit.io import read_label, write_png
from segkit.metadata.cityscapes import CITYSCAPES
from segkit.predictions.cityscapes import check_instances, differences, official, official_pairs, official_scores
from segkit.predictions.pairs import LabelPair

PRISTINE = dict(vars(official.args))  # before any test

FRAMES = ("frankfurt_000000_000294", "frankfurt_000001_000538", "lindau_000000_000019")
WITH_INSTANCES = (24, 25, 26, 27, 28, 31, 32, 33)
ABSENT = (16, 27, 31)  # truck, train, and a void id


def save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three validation images of two cities, 48x64, in the true layout; blocks of labels, each object an instance."""
    root = tmp_path_factory.mktemp("cityscapes")
    generator = np.random.default_rng(0)
    ids = np.array([i for i in range(34) if i not in ABSENT], np.uint8)
    for frame in FRAMES:
        blocks = generator.choice(ids, (6, 8))
        labels = blocks.repeat(8, 0).repeat(8, 1)
        number = np.arange(48).reshape(6, 8)
        instances = np.where(np.isin(blocks, WITH_INSTANCES), blocks.astype(np.uint16) * 1000 + number, blocks)
        stem = f"{frame.split('_')[0]}/{frame}"
        image = generator.integers(0, 256, (48, 64, 3), dtype=np.uint8)
        save(root / f"leftImg8bit/val/{stem}_leftImg8bit.png", image)
        save(root / f"gtFine/val/{stem}_gtFine_labelIds.png", labels)
        save(root / f"gtFine/val/{stem}_gtFine_instanceIds.png", instances.astype(np.uint16).repeat(8, 0).repeat(8, 1))
    return root


@pytest.fixture(scope="module")
def predictions(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train ids as `segkit predict` writes them: three quarters right, without one class of the truth."""
    folder = tmp_path_factory.mktemp("predictions")
    generator = np.random.default_rng(1)
    for frame in FRAMES:
        city = frame.split("_")[0]
        mask = CITYSCAPES.map_labels(read_label(root / f"gtFine/val/{city}/{frame}_gtFine_labelIds.png"), frame)
        guess = generator.choice([i for i in range(19) if i not in (5, 14, 16)], mask.shape).astype(np.uint8)
        right = (generator.random(mask.shape) < 0.75) & (mask < 19) & (mask != 5)
        write_png(folder / city / f"{frame}_leftImg8bit.png", np.where(right, mask, guess))
    return folder


@pytest.fixture(scope="module")
def confusion(root: Path, predictions: Path) -> ConfusionMatrix:
    confusion = ConfusionMatrix(19)
    for pair in official_pairs(predictions, root / "gtFine/val"):
        prediction, truth = pair.prediction, pair.truth
        mask = CITYSCAPES.map_labels(read_label(truth), str(truth))
        confusion.update(torch.from_numpy(mask.copy()), torch.from_numpy(read_label(prediction).copy()))
    return confusion


def score(*arguments: object) -> int:
    return main(["submission", "score", "cityscapes", *map(str, arguments)])


def test_class_scores_are_ours_to_the_last_digit(root, predictions, confusion, tmp_path, capsys):
    assert score(predictions, root / "gtFine/val", "-o", tmp_path / "official.json") == 0
    found = json.loads((tmp_path / "official.json").read_text())
    ours = confusion.scores()
    assert [found["classes"][name]["IoU"] for name in CITYSCAPES.class_names] == [
        None if np.isnan(value) else value for value in ours.class_iou
    ]
    assert found["classes"]["truck"]["IoU"] is None and found["classes"]["pole"]["IoU"] == 0
    assert found["averages"]["classes"]["IoU"] == pytest.approx(ours.miou, rel=1e-15)
    assert differences(found, ours.class_iou) == []
    assert list(found["categories"]) == ["flat", "construction", "object", "nature", "sky", "human", "vehicle"]
    assert 0 < found["classes"]["car"]["iIoU"] < 1 and found["classes"]["road"]["iIoU"] is None
    assert 0 < found["averages"]["categories"]["iIoU"] < 1
    printed = capsys.readouterr().out
    assert f"{100 * ours.miou:.2f}" in printed and "iIoU" in printed and "3 images" in printed


@pytest.mark.parametrize(
    ("value", "named"), [(0.5, []), (np.nextafter(0.5, 1), ["car"]), (0.51, ["car", "mean"]), (np.nan, ["car"])]
)
def test_a_score_that_differs_is_named(value, named):
    found = {"classes": {n: {"IoU": 0.5} for n in CITYSCAPES.class_names}, "averages": {"classes": {"IoU": 0.5}}}
    ours = np.full(19, 0.5)
    ours[13] = value
    assert [line.split(":")[0] for line in differences(found, ours)] == named


def test_without_instances_the_class_scores_are_the_same(root, predictions, tmp_path):
    truth = root / "gtFine/val"
    with_iiou, without = tmp_path / "a.json", tmp_path / "b.json"
    assert score(predictions, truth, "-o", with_iiou) == score(predictions, truth, "-o", without, "--no-instances") == 0
    a, b = (json.loads(path.read_text()) for path in (with_iiou, without))
    for part in ("classes", "categories"):
        assert {n: row["IoU"] for n, row in a[part].items()} == {n: row["IoU"] for n, row in b[part].items()}
        assert {row["iIoU"] for row in b[part].values()} == {None}


def test_iiou_is_the_value_worked_out_by_hand(tmp_path):
    """A person of 4 pixels, 3 of them found, one called rider; two road pixels called person."""
    truth, instances = np.full((4, 4), 7, np.uint8), np.full((4, 4), 7, np.uint16)
    truth[0], instances[0] = 24, 24001
    prediction = truth.copy()
    prediction[0, 3], prediction[1, :2] = 25, 24
    stem = tmp_path / "a_000000_000000"
    for ending, array in (("_p", prediction), ("_gtFine_labelIds", truth), ("_gtFine_instanceIds", instances)):
        save(Path(f"{stem}{ending}.png"), array)
    found = official_scores([LabelPair("a", Path(f"{stem}_gtFine_labelIds.png"), Path(f"{stem}_p.png"))])
    weight = 3462.4756337644 / 4  # average person over this one
    assert found["classes"]["person"]["iIoU"] == pytest.approx(3 * weight / (3 * weight + 2 + weight), rel=1e-12)
    assert found["categories"]["human"]["iIoU"] == pytest.approx(
        4 * weight / (4 * weight + 2), rel=1e-12
    )  # rider: human
    assert found["classes"]["person"]["IoU"] == 3 / 6 and found["categories"]["flat"]["IoU"] == 10 / 12


@pytest.mark.parametrize("broken", [False, True])
def test_cityscapesscripts_is_left_as_it_was(root, predictions, tmp_path, capsys, broken):
    before = official.np, official.printError, PRISTINE
    truth = root / "gtFine/val/frankfurt" / f"{FRAMES[0]}_gtFine_labelIds.png"
    write_png(tmp_path / "p.png", np.zeros((5, 7), np.uint8) if broken else read_label(truth))
    if broken:
        with pytest.raises(InputError, match=r"cityscapesScripts: Image widths of .*p\.png .* are not equal"):
            official_scores([LabelPair("p", truth, tmp_path / "p.png")])
    else:
        assert official_scores([LabelPair("p", truth, tmp_path / "p.png")])["averages"]["classes"] == {
            "IoU": 1.0,
            "iIoU": 1.0,
        }
    assert (official.np, official.printError, dict(vars(official.args))) == before
    assert official.np is np and capsys.readouterr().out == ""
    assert sorted(p.name for p in tmp_path.iterdir()) == ["p.png"]


def test_label_ids_are_scored_as_they_are(root, tmp_path, capsys):
    for frame in FRAMES:
        city = frame.split("_")[0]
        truth = read_label(root / f"gtFine/val/{city}/{frame}_gtFine_labelIds.png")
        write_png(tmp_path / f"{frame}_pred.png", truth)
    assert score(tmp_path, root / "gtFine/val", "--prediction_ids", "raw", "-o", tmp_path / "o.json") == 0
    assert json.loads((tmp_path / "o.json").read_text())["averages"]["classes"] == {"IoU": 1.0, "iIoU": 1.0}
    assert score(tmp_path, root / "gtFine/val") == 2
    assert "is no train id" in (error := capsys.readouterr().err) and "--prediction_ids raw" in error


def test_what_cannot_be_scored_is_said_in_one_line(root, predictions, tmp_path, capsys):
    truth = root / "gtFine/val"
    cases = [
        ([predictions, root / "leftImg8bit"], "give gtFine/val"),
        ([tmp_path / "none", truth], "no such folder"),
        ([predictions / "lindau", truth], "2 of 3 images have no prediction, the first is frankfurt_000000_000294"),
        ([predictions, truth, "--prediction_ids", "raw"], "hold train ids"),
    ]
    for arguments, expected in cases:
        assert score(*arguments) == 2
        assert expected in capsys.readouterr().err.splitlines()[-1]
    write_png(tmp_path / f"{FRAMES[2]}.png", np.zeros((48, 60), np.uint8))
    assert score(tmp_path, truth / "lindau") == 2
    assert "is 60x48, its truth" in capsys.readouterr().err.splitlines()[-1]
    write_png(tmp_path / f"{FRAMES[2]}_b.png", np.zeros((48, 64), np.uint8))
    assert score(tmp_path, truth / "lindau") == 2
    assert f"two predictions of {FRAMES[2]}" in capsys.readouterr().err
    with pytest.raises(InputError, match=r"c_instanceIds.png: no such file \(1 of 1 are missing\)"):
        check_instances([tmp_path / "c_labelIds.png"])


@pytest.mark.slow
def test_a_wrong_environment_variable_is_one_line(tmp_path):
    environment = os.environ | {"CITYSCAPES_EXPORT_DIR": str(tmp_path / "gone")}
    command = [sys.executable, "-m", "segkit", "submission", "score", "cityscapes", str(tmp_path), str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and "CITYSCAPES_EXPORT_DIR" in done.stderr and "Traceback" not in done.stderr


def test_arguments(root: Path, run: Path, *more: str, data: str = "CityscapesDataModule") -> list[str]:
    return [
        "test", "--data", data, "--data.root", str(root), "--data.num_workers", "0", "--model.network", "FCN",
        "--model.network.encoder", "resnest14_tiny", "--trainer.accelerator", "cpu", "--run_dir", str(run), *more,
    ]  # fmt: skip


test_arguments.__test__ = False  # a helper


@pytest.mark.slow
def test_segkit_test_scores_officially_too(root, tmp_path, capsys):
    arguments = test_arguments(root, tmp_path, "--official", "--trainer.enable_progress_bar", "false")
    assert main(arguments) == 0
    found, ours = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("official", "result"))
    assert found["equals_segkit"] and found["num_images"] == 3
    assert [found["classes"][c["name"]]["IoU"] for c in ours["classes"]] == [c["IoU"] for c in ours["classes"]]
    assert sorted(p.name for p in (tmp_path / "official").iterdir()) == [f"{f}_pred_labelIds.png" for f in FRAMES]
    assert (
        main(["submission", "check", "cityscapes", str(tmp_path / "official"), "--data", str(root), "--split", "val"])
        == 0
    )
    kept = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    assert main(arguments) == 0  # a second one writes beside the first
    assert all(p.read_bytes() == data for p, data in kept.items())
    assert (tmp_path / "official-2.json").is_file() and len(list((tmp_path / "official-2").iterdir())) == 3


@pytest.mark.slow
def test_two_processes_write_their_own_images_and_one_scores(root, tmp_path):
    arguments = test_arguments(root, tmp_path / "run", "--official", "--trainer.devices", "2")
    run_command(2, [*arguments, "--trainer.strategy", "ddp"], tmp_path / "log")
    outputs = [(tmp_path / f"log.{rank}").read_text() for rank in range(2)]
    found, ours = (json.loads((tmp_path / f"run/{name}.json").read_text()) for name in ("official", "result"))
    assert found["equals_segkit"] and found["num_images"] == ours["num_images"] == 3
    assert sorted(p.name for p in tmp_path.glob("run/official*")) == ["official", "official.json"]
    assert "equal segkit's to the last digit" in outputs[0] and "cityscapesScripts" not in outputs[1]


@pytest.mark.slow
def test_official_refuses_what_it_cannot_score(root, tmp_path, capsys):
    for more, expected in (
        (["--trainer.limit_test_batches", "2"], "of a whole split"),
        (["--trainer.fast_dev_run", "true"], "of a whole split"),
    ):
        assert main(test_arguments(root, tmp_path / "run", "--official", *more)) == 2
        assert expected in capsys.readouterr().err.splitlines()[-1]
    (tmp_path / "official.yaml").write_text("official: true\n")
    for more, expected in (
        (["--official"], "--official: has no effect on validate, only on test"),
        (["--config", str(tmp_path / "official.yaml")], "those of `segkit test`"),
    ):
        validate = ["validate", *test_arguments(root, tmp_path / "run", *more)[1:]]
        assert main(validate) == 2 and expected in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "run").exists()


def test_official_refuses_other_data(tmp_path, capsys):
    for kind in ("images", "labels"):
        write_png(tmp_path / f"data/{kind}/test/a.png", np.zeros((48, 48), np.uint8))
    (tmp_path / "data/classes.txt").write_text("\n".join(CITYSCAPES.class_names))
    arguments = test_arguments(tmp_path / "data", tmp_path / "run", "--official", data="FolderDataModule")
    assert main(arguments) == 2
    assert "CityscapesDataModule only" in capsys.readouterr().err.splitlines()[-1]
