"""Masks of 0 and 255, wrongly and rightly declared: what `fit`, `test` and `score` say of them."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest

from segkit.cli import main
from segkit.files import write_text
from segkit.io import write_png

CURE = "--data.masks binary (with a path: --data.masks 'binary PATH')"


def write_data(root: Path, values: tuple[int, int]) -> Path:
    """Images of 32x40 whose masks hold `values`, the second one in a square."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 2)):
        for i in range(count):
            mask = np.full((32, 40), values[0], np.uint8)
            mask[8:24, 4 * i : 4 * i + 16] = values[1]
            write_png(root / f"images/{split}/{i}.png", rng.integers(0, 256, (32, 40, 3), np.uint8))
            write_png(root / f"labels/{split}/{i}.png", mask)
    write_text(root / "classes.txt", "background\npolyp\n")
    return root


def run(command: str, root: Path, run_dir: Path, *more: str) -> int:
    network = ["--model.network", "FCN", "--model.network.encoder", "resnest14_tiny", "--trainer.accelerator", "cpu"]
    data = ["--data", "FolderDataModule", "--data.root", str(root), "--data.batch_size", "2"]
    sizes = ["--data.crop_size", "32", "--data.base_size", "40", "--data.num_workers", "0"]
    quiet = ["--trainer.enable_progress_bar", "false", "--run_dir", str(run_dir)]
    return main([command, *network, *data, *sizes, *quiet, *more])


def words(caplog: pytest.LogCaptureFixture) -> str:
    text = "\n".join(record.getMessage() for record in caplog.records)
    caplog.clear()
    return text


@pytest.mark.slow
@pytest.mark.parametrize("values", [(0, 255), (255, 255)])
def test_fit_says_that_nothing_can_be_learned_and_how_to_read_them(values, tmp_path, caplog) -> None:
    root = write_data(tmp_path / "data", values)
    with caplog.at_level(logging.INFO):
        assert run("fit", root, tmp_path / "run", "--trainer.max_epochs", "1") == 0
    said = words(caplog)
    first, last = said.index("nothing can be learned here: in the 4 crops of epoch 0 only the value"), said.rindex(CURE)
    assert CURE in said[first:] and "in the validation masks only the value" in said[:last]
    assert "never: background, polyp" in said if values[0] else "never: polyp" in said
    assert ("best mIoU    none\n" in said) == (values[0] == 255) and "nothing is learned of" not in said
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert CURE in summary["note"] and (summary["best_mIoU"] is None) == (values[0] == 255)

    assert main(["test", *options_of(tmp_path)]) == 0
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert CURE in result["note"] and f"note: in the truth {result['note']}" in words(caplog)


def options_of(folder: Path) -> list[str]:
    run = folder / "run"
    return [
        "--config",
        str(run / "config.yaml"),
        "--ckpt_path",
        str(run / "checkpoints/last.ckpt"),
        "--run_dir",
        str(run),
    ]


@pytest.mark.slow
def test_read_as_two_classes_there_is_nothing_to_say(tmp_path, caplog) -> None:
    root = write_data(tmp_path / "data", (0, 255))
    with caplog.at_level(logging.INFO):
        assert run("fit", root, tmp_path / "run", "--trainer.max_epochs", "1", "--data.masks", "binary") == 0
    said = words(caplog)
    assert "learned" not in said and "note" not in said and "never" not in said and "best mIoU" in said


@pytest.mark.slow
def test_a_class_that_never_occurs_in_training_is_a_warning(tmp_path, caplog) -> None:
    root = write_data(tmp_path / "data", (0, 1))
    write_text(root / "classes.txt", "background\npolyp\nboat\nship\n")
    with caplog.at_level(logging.INFO):
        assert run("fit", root, tmp_path / "run", "--trainer.max_epochs", "2") == 0
    wanted = "nothing is learned of boat, ship: none of the 4 crops of epoch 0 has a pixel of it"
    assert words(caplog).count(wanted) == 1


@pytest.mark.parametrize(("values", "mean"), [((0, 255), "100.00"), ((255, 255), "-")])
def test_a_score_over_one_class_says_so(values, mean, tmp_path, capsys) -> None:
    root = write_data(tmp_path / "data", values)
    for i in range(2):
        write_png(tmp_path / f"found/{i}.png", np.zeros((32, 40), np.uint8))
    arguments = [str(tmp_path / "found"), str(root / "labels/val"), "--labels", str(root), "--output"]
    assert main(["benchmark", "score", *arguments, str(tmp_path / "wrong.json")]) == 0
    said = capsys.readouterr().out
    assert (
        ["mean", mean] == next(line.split()[:2] for line in said.splitlines() if line.startswith("mean "))
        and "nan" not in said
        and "inf" not in said
    )
    note = json.loads((tmp_path / "wrong.json").read_text())["note"]
    assert f"note: in the truth {note}" in said and "--data.masks binary" in note and "polyp" in note


def test_masks_of_0_and_255_are_scored_as_two_classes(tmp_path, capsys) -> None:
    root = write_data(tmp_path / "data", (0, 255))
    for i in range(2):
        write_png(tmp_path / f"found/{i}.png", np.zeros((32, 40), np.uint8))
    scored = ["score", str(tmp_path / "found"), str(root / "labels/val"), "--labels", str(root), "--output"]
    assert main(["benchmark", *scored, str(tmp_path / "right.json"), "--data.masks", "binary"]) == 0
    result = json.loads((tmp_path / "right.json").read_text())
    background = 1 - 16 * 16 / (32 * 40)  # of all pixels, all of which are predicted as such
    assert result["note"] is None and result["scores"]["mIoU"] == pytest.approx(background / 2)
    assert "note" not in capsys.readouterr().out
    scored[4] = "cityscapes"
    assert main(["benchmark", *scored, str(tmp_path / "r.json"), "--data.masks", "binary"]) == 2
    assert "--data.masks binary: " in capsys.readouterr().err
