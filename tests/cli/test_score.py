"""`segkit benchmark score`: folders of PNGs to a result file; and what stays of an evaluation that goes wrong."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from disks import file_limit
from PIL import Image

from segkit.cli import main
from segkit.io import write_png
from segkit.metadata.ade20k import ADE20K
from segkit.metadata.cityscapes import CITYSCAPES
from segkit.predictions import folders as scored_folders

RNG = np.random.default_rng(0)
CLASSES = ("sky", "road", "car", "boat")
COUNT = 6


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Predictions and truth of six images, of train ids; no truth and no prediction has a boat."""
    for i in range(COUNT):
        mask = RNG.choice(np.array([0, 1, 2, 255], np.uint8), (20 + i, 30))
        labels = np.where(RNG.random(mask.shape) < 0.7, mask % 3, RNG.integers(0, 3, mask.shape)).astype(np.uint8)
        write_png(tmp_path / "truth" / "town" / f"{i}.png", mask)
        write_png(tmp_path / "found" / "town" / f"{i}.png", labels, [[1, 2, 3]] * 4 if i % 2 else None)
    (tmp_path / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    return tmp_path / "found", tmp_path / "truth"


def run(folders: tuple[Path, Path], *more: str) -> int:
    found, truth = folders
    labels = ["--labels", str(truth.parent / "classes.txt")]
    out = ["--output", str(truth.parent / "result.json")]
    return main(["benchmark", "score", str(found), str(truth), *labels, *out, *more])


def result(folders: tuple[Path, Path], name: str = "result.json") -> dict:
    return json.loads((folders[0].parent / name).read_text())


def plain_matrix(folders: tuple[Path, Path], names: list[str]) -> np.ndarray:
    """Pixel after pixel, with nothing but NumPy."""
    matrix = np.zeros((256, 256), np.int64)
    for name in names:
        mask, labels = (np.array(Image.open(folder / name)) for folder in folders[::-1])
        np.add.at(matrix, (mask, labels), 1)
    return matrix[: len(CLASSES), : len(CLASSES)]


def test_the_result_is_the_plain_count(folders, capsys) -> None:
    assert run(folders, "--metric", "encoding", "all") == 0
    found = result(folders)
    matrix = plain_matrix(folders, [f"town/{i}.png" for i in range(COUNT)])
    assert found["confusion_matrix"] == matrix.tolist() and found["num_images"] == COUNT and not found["partial"]
    iou = np.diag(matrix)[:3] / (matrix.sum(0) + matrix.sum(1) - np.diag(matrix))[:3]
    assert found["metric"] == "encoding" and found["scores"]["mIoU"] == pytest.approx(iou.sum() / 4)
    assert found["conventions"]["mmseg"]["mIoU"] == pytest.approx(iou.mean())
    assert found["protocol"]["name"].startswith("unknown") and found["problems"] == []
    said = capsys.readouterr()
    assert "metric encoding (mIoU: mean of I / (U + 2^-52) over all K classes" in said.out
    assert "paddleseg" in said.out and f"{COUNT} images, " in said.out and "Mpx/s" in said.err
    assert run(folders) == 0 and result(folders, "result-2.json")["metric"] == "segkit"  # nothing is written over
    assert result(folders) == found


def test_limit_and_workers(folders) -> None:
    assert run(folders, "--limit", "2", "--workers", "3") == 0
    found = result(folders)
    assert found["partial"] and found["num_images"] == 2 and found["dataset"]["num_images"] == COUNT
    assert found["confusion_matrix"] == plain_matrix(folders, ["town/0.png", "town/1.png"]).tolist()


def test_raw_ids_of_cityscapes_and_ade20k(tmp_path: Path) -> None:
    ids = RNG.integers(0, 19, (30, 40)).astype(np.uint8)
    names = "bonn_000001_000019"
    write_png(tmp_path / f"city/truth/bonn/{names}_gtFine_labelIds.png", CITYSCAPES.unmap_labels(ids))
    write_png(tmp_path / f"city/raw/{names}_pred_labelIds.png", CITYSCAPES.unmap_labels(ids))
    write_png(tmp_path / f"city/train/{names}_leftImg8bit.png", ids)
    write_png(tmp_path / "ade/truth/ADE_val_00000001.png", ids + 1)
    write_png(tmp_path / "ade/raw/ADE_val_00000001.png", ids + 1)
    write_png(tmp_path / "ade/train/ADE_val_00000001.png", ids)
    for data, labels in (("city", "cityscapes"), ("ade", "ade20k")):
        for kind, more in (("raw", ["--prediction_ids", "raw"]), ("train", [])):
            home, out = tmp_path / data, tmp_path / f"{data}-{kind}.json"
            arguments = [str(home / kind), str(home / "truth"), "--labels", labels, "--output", str(out), *more]
            assert main(["benchmark", "score", *arguments]) == 0
            assert json.loads(out.read_text())["scores"]["mIoU"] == 1.0
    assert len(json.loads((tmp_path / "ade-raw.json").read_text())["classes"]) == ADE20K.num_classes


def test_the_wrong_option_is_noticed(tmp_path: Path, capsys) -> None:
    ids = np.arange(1200, dtype=np.uint16).reshape(30, 40).astype(np.uint8) % 100
    write_png(tmp_path / "truth/a.png", ids + 1)
    write_png(tmp_path / "found/a.png", ids + 1)
    common = [str(tmp_path / "found"), str(tmp_path / "truth"), "--output", str(tmp_path / "r.json")]
    assert main(["benchmark", "score", *common, "--labels", "ade20k"]) == 0
    assert "one class too high" in capsys.readouterr().out
    assert main(["benchmark", "score", *common, "--labels", "cityscapes"]) == 2
    assert "raw label value 34 is not declared" in capsys.readouterr().err


def spoil(folders: tuple[Path, Path]) -> list[str]:
    """Make five of six images unusable, each in another way; return the words that the messages must have."""
    found, truth = (folder / "town" for folder in folders)
    (found / "0.png").unlink()
    cv2.imwrite(str(found / "1.png"), np.zeros((21, 30), np.uint16))
    write_png(found / "2.png", np.zeros((11, 15), np.uint8))
    write_png(found / "3.png", np.full((23, 30), 77, np.uint8))
    write_png(truth / "4.png", np.full((24, 30), 4, np.uint8))
    return [
        "missing prediction: town/0: no prediction below",
        "1.png: label map has mode I;16 (1 value, 0 at row 0, column 0 and in 630 pixels); allowed is one 8-bit",
        f"{found / '2.png'} is 15x11 but the truth {truth / '2.png'} is 30x22; was it predicted at a resized",
        f"{found / '3.png'}: raw label value 77 is not declared: 690 pixels, first at row 0, column 0",
        f"{truth / '4.png'}: raw label value 4 is not declared: 720 pixels, first at row 0, column 0",
    ]


def test_bad_images_are_listed_and_the_rest_is_kept(folders, capsys) -> None:
    words = spoil(folders)
    assert run(folders) == 1
    said = capsys.readouterr()
    lines = [line for line in said.err.splitlines() if line and "image/s" not in line]
    assert len(lines) == 5 and all(any(word in line for line in lines) for word in words), said.err
    assert "1 of 6 images (partial)" in said.out and "result-partial.json" in said.out
    kept = result(folders, "result-partial.json")
    assert (
        kept["partial"]
        and kept["num_images"] == 1
        and [p["name"] for p in kept["problems"]] == [f"town/{i}" for i in range(5)]
    )
    assert kept["confusion_matrix"] == plain_matrix(folders, ["town/5.png"]).tolist()
    assert not (folders[0].parent / "result.json").exists()


def test_many_bad_images_take_few_lines(folders, capsys) -> None:
    for i in range(1, COUNT):
        (folders[0] / "town" / f"{i}.png").unlink()
    assert run(folders) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("missing")]
    assert len(lines) == 4 and lines[-1] == "missing prediction: ... 5 images in all"
    assert run(folders, "--allow_missing") == 0
    assert result(folders)["partial"] and result(folders)["num_images"] == 1 and result(folders)["problems"] == []
    (folders[0] / "town" / "0.png").write_bytes(b"")
    assert run(folders, "--allow_missing") == 2
    assert "none of 6 images could be scored" in capsys.readouterr().err


def test_an_interruption_keeps_what_was_scored(folders, monkeypatch, capsys) -> None:
    real = scored_folders.score_pairs

    def stopped(*arguments):
        for number, item in enumerate(real(*arguments)):
            if number == 4:
                raise KeyboardInterrupt
            yield item

    monkeypatch.setattr(scored_folders, "score_pairs", stopped)
    assert run(folders) == 130
    kept = result(folders, "result-partial.json")
    assert kept["partial"] and kept["num_images"] == 4
    assert kept["confusion_matrix"] == plain_matrix(folders, [f"town/{i}.png" for i in range(4)]).tolist()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (["--metric", "mmsge"], "no such convention 'mmsge'; did you mean mmseg?"),
        (["--limit", "0"], "--limit: '0' is not a whole number from 1"),
        (["--labels", "ade"], "--labels ade: no such file; allowed: cityscapes, ade20k, a classes.txt, or none"),
        (["--labels", "none"], "--labels none and --num_classes K go together"),
        (["--num_classes", "3"], "--labels none and --num_classes K go together"),
        (["--prediction_ending", "_x.png"], "found: no label map here (*_x.png)"),
    ],
)
def test_typing_errors_take_one_line(folders, capsys, change: list[str], words: str) -> None:
    assert run(folders, *change) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and words in lines[0], lines


def test_without_classes_the_options_are_named(folders, capsys) -> None:
    assert main(["benchmark", "score", *map(str, folders)]) == 2
    assert "has no predictions.json that names the classes; give --labels" in capsys.readouterr().err


@pytest.mark.slow
def test_no_network_and_no_lightning_is_needed(folders) -> None:
    code = "import sys; from segkit.cli import main; main(sys.argv[1:])"
    code += "; heavy = {'pytorch_lightning', 'timm', 'albumentations', 'jsonargparse'} & sys.modules.keys()"
    code += "; print(*heavy, file=sys.stderr)"
    arguments = ["benchmark", "score", *map(str, folders), "--labels", str(folders[0].parent / "classes.txt")]
    arguments += ["--output", str(folders[0].parent / "r.json")]
    done = subprocess.run([sys.executable, "-c", code, *arguments], check=True, capture_output=True, text=True)
    assert done.stderr.splitlines()[-1] == ""


def lightning(command: str, folder: Path, out: Path, *more: str) -> int:
    """`segkit test` or `predict` on the five images of tests/cli/conftest.py."""
    data = ["--data", "FolderDataModule", "--data.root", str(folder / "data"), "--data.num_workers", "0"]
    trainer = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false", "--run_dir", str(out)]
    return main([command, *data, "--ckpt_path", str(folder / "a.ckpt"), *trainer, *more])


@pytest.mark.slow
def test_saved_predictions_score_as_the_test_did(benchmark_folder: Path, tmp_path: Path) -> None:
    """Nothing but the two folders is given: classes, table and protocol are in predictions.json."""
    protocol = ["--protocol", "ms-flip"]
    assert lightning("test", benchmark_folder, tmp_path, *protocol) == 0
    assert lightning("predict", benchmark_folder, tmp_path, *protocol, "--output", str(tmp_path / "labels")) == 0
    truth = str(benchmark_folder / "data" / "labels" / "test")
    arguments = [str(tmp_path / "labels"), truth, "--output", str(tmp_path / "scored.json")]
    assert main(["benchmark", "score", *arguments]) == 0
    tested, scored = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("result", "scored"))
    for key in ("confusion_matrix", "missed", "num_images", "num_pixels", "scores", "classes", "protocol"):
        assert tested[key] == scored[key], key
    assert scored["weights"]["file"] == "a.ckpt"
    assert main(["benchmark", "score", *arguments, "--prediction_ids", "raw"]) == 2
    assert main(["benchmark", "score", *arguments, "--labels", "ade20k"]) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("write", "words"),
    [
        (lambda p: write_png(p, np.zeros((9, 9), np.uint8)), "but its mask {} is 9x9"),
        (lambda p: cv2.imwrite(str(p), np.zeros((49, 61), np.uint16)), "{}: label map has mode I;16"),
        (lambda p: cv2.imwrite(str(p), np.zeros((49, 61, 3), np.uint8)), "{}: label map has mode RGB"),
        (lambda p: write_png(p, np.full((49, 61), 9, np.uint8)), "{}: raw label value 9 is not declared: 2989 pixels"),
    ],
)
def test_a_test_that_dies_keeps_what_it_scored(benchmark_folder: Path, tmp_path: Path, capsys, write, words) -> None:
    """The fourth of five masks is wrong: three images are in result-partial.json, and one line says why."""
    folder = tmp_path / "copy"
    shutil.copytree(benchmark_folder / "data", folder / "data")
    shutil.copy(benchmark_folder / "a.ckpt", folder)
    assert lightning("test", folder, tmp_path / "whole", "--trainer.limit_test_batches", "3") == 0
    mask = folder / "data" / "labels" / "test" / "3.png"
    write(mask)
    capsys.readouterr()
    assert lightning("test", folder, tmp_path / "run") == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("segkit test: error: ") and words.format(mask) in last
    kept = json.loads((tmp_path / "run" / "result-partial.json").read_text())
    whole = json.loads((tmp_path / "whole" / "result.json").read_text())
    assert kept["partial"] and kept["num_images"] == 3 and kept["dataset"]["num_images"] == 5
    assert kept["confusion_matrix"] == whole["confusion_matrix"]
    assert not (tmp_path / "run" / "result.json").exists()


def test_the_scores_are_shown_though_they_cannot_be_kept(folders, capsys) -> None:
    with file_limit(512):
        assert run(folders) == 2
    said = capsys.readouterr()
    assert "mean       " in said.out and f"{COUNT} images, " in said.out and not list(folders[0].parent.glob("*.json"))
    assert f"{folders[0].parent / 'result.json'}: cannot be written: " in said.err and "Traceback" not in said.err
