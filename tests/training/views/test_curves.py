"""The image of a run's curves: what is read from the log, and that half an image never appears."""

import csv
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.loggers.logger import DummyLogger

from segkit.errors import InputError
from segkit.training.views import curves
from segkit.training.views.curves import CurvePlotter, plot_class_iou, plot_curves, read_class_iou, read_curves

LOG = """epoch,step,train/loss,lr-SGD,val/mIoU,val/loss
0,0,2.0,0.01,,
0,5,1.5,,,
0,5,,,0.25,1.75
1,10,nan,0.005,,
1,15,0.5
"""


def test_columns_are_read_without_their_gaps(tmp_path: Path) -> None:
    log = tmp_path / "metrics.csv"
    log.write_text(LOG)
    assert read_curves(log) == {
        "train/loss": ([0.0, 5.0, 15.0], [2.0, 1.5, 0.5]),
        "lr-SGD": ([0.0, 10.0], [0.01, 0.005]),
        "val/mIoU": ([5.0], [0.25]),
        "val/loss": ([5.0], [1.75]),
    }


@pytest.mark.slow
@pytest.mark.parametrize("columns", [("train/loss", "lr", "val/mIoU"), ("train/loss",)])
def test_an_image_with_a_panel_a_kind_is_written_whole(tmp_path: Path, columns: tuple[str, ...]) -> None:
    log, output = tmp_path / "metrics.csv", tmp_path / "new" / "curves.png"
    rows = [",".join(["step", *columns])] + [",".join([str(i), *("0.5" for _ in columns)]) for i in range(150)]
    log.write_text("\n".join(rows))
    plot_curves(log, output)
    with Image.open(output) as image:
        assert image.width == len(columns) * 624  # 5.2 inches of 120 pixels
    assert list(output.parent.iterdir()) == [output]


@pytest.mark.parametrize(
    ("text", "message"), [(None, "no such file"), ("", "no rows"), ("a,b\n1,2\n", "no rows"), ("step,x\n1,2\n", "draw")]
)
def test_what_cannot_be_drawn_is_said(tmp_path: Path, text: str | None, message: str) -> None:
    log = tmp_path / "metrics.csv"
    if text is not None:
        log.write_text(text)
    with pytest.raises(InputError, match=message):
        plot_curves(log, tmp_path / "curves.png")
    assert not (tmp_path / "curves.png").exists()


NAMES = ("traffic light", 'sea, ocean/"coast"', "gloss accuracy", "never")  # two that other panels might take


def log_of(path: Path, *validations: tuple[int, int, list[float]]) -> Path:
    """A log as Lightning writes it: columns by name, one row of losses and one of scores a validation."""
    columns = ["epoch", "lr", "step", *sorted(f"val/IoU/{name}" for name in NAMES), "val/mIoU", "train/loss"]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        for epoch, step, iou in validations:
            scores = {f"val/IoU/{name}": value for name, value in zip(NAMES, iou, strict=True)}
            writer.writerow({"epoch": epoch, "step": step, "lr": 0.1, "train/loss": 1 / step})
            writer.writerow({"epoch": epoch, "step": step, "val/mIoU": iou[0]} | scores)
    return path


def test_a_step_logged_again_counts_once_with_its_last_value(tmp_path: Path) -> None:
    log = tmp_path / "metrics.csv"
    log.write_text(
        "epoch,step,train/loss,val/mIoU\n0,9,4,\n0,9,,0.1\n1,19,3,\n1,29,2,\n1,19,1,\n1,19,,0.2\n1,29,nan,\n"
    )
    assert read_curves(log) == {"train/loss": ([9.0, 19.0], [4.0, 1.0]), "val/mIoU": ([9.0, 19.0], [0.1, 0.2])}


def test_scores_of_classes_are_a_table_of_their_own(tmp_path: Path) -> None:
    nan = math.nan
    log = log_of(tmp_path / "m.csv", (0, 9, [0.1, 0.2, nan, nan]), (1, 19, [0.5, 0.7, 0.6, nan]))
    scores = read_class_iou(log)
    assert scores.class_names == (NAMES[1], NAMES[2], NAMES[0], NAMES[3])
    np.testing.assert_array_equal(scores.iou, [[0.2, 0.7], [nan, 0.6], [0.1, 0.5], [nan, nan]])
    assert (scores.unit, scores.at) == ("epoch", (0, 1))


def test_of_a_resumed_run_the_last_validation_of_a_step_counts_and_several_in_an_epoch_are_named_by_step(
    tmp_path: Path,
) -> None:
    log = log_of(tmp_path / "m.csv", (0, 9, [0.1] * 4), (0, 29, [0.9] * 4), (0, 19, [0.2] * 4), (1, 29, [0.3] * 4))
    scores = read_class_iou(log)
    np.testing.assert_array_equal(scores.iou, [[0.1, 0.2, 0.3]] * 4)
    assert (scores.unit, scores.at) == ("step", (9, 19, 29))


def test_scores_of_classes_are_in_no_panel_of_the_curves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = []
    monkeypatch.setattr(curves, "_draw", lambda axes, title, found, noisy: shown.append((title, list(found))))
    plot_curves(log_of(tmp_path / "m.csv", (0, 9, [0.1] * 4)), tmp_path / "curves.png")
    assert shown == [("loss", ["train/loss"]), ("learning rate", ["lr"]), ("validation score", ["val/mIoU"])]


def test_a_log_without_classes_has_no_heat_map(tmp_path: Path) -> None:
    log = tmp_path / "metrics.csv"
    log.write_text(LOG)
    with pytest.raises(InputError, match="no val/IoU/"):
        plot_class_iou(log, tmp_path / "class_iou.png")


def test_the_heat_map_has_the_colour_of_each_score_and_grey_for_none(tmp_path: Path) -> None:
    plot_class_iou(log_of(tmp_path / "m.csv", (0, 9, [1.0, 0.0, 0.5, math.nan])), tmp_path / "new" / "class_iou.png")
    with Image.open(tmp_path / "new" / "class_iou.png") as image:
        colours = {colour: count for count, colour in image.convert("RGB").getcolors(1 << 20)}
    cells = [
        tuple(int(255 * x) for x in curves.colormaps["viridis"](index)[:3]) for index in (255, 0, 128)
    ]  # of 1, 0 and 0.5
    areas = [colours.get(colour, 0) for colour in [*cells, (211, 211, 211)]]
    assert min(areas) > 1000 and max(areas) < 1.2 * min(areas), areas
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["class_iou.png"]


@pytest.mark.slow
@pytest.mark.parametrize(("count", "pixels"), [(11, (400, 600)), (150, (1400, 1700))])
def test_many_classes_stand_in_blocks(tmp_path: Path, count: int, pixels: tuple[int, int]) -> None:
    log = tmp_path / "metrics.csv"
    names = ",".join(f"val/IoU/class {i}" for i in range(count))
    log.write_text(f"epoch,step,{names}\n" + "".join(f"{e},{e}{',0.5' * count}\n" for e in range(2)))
    plot_class_iou(log, tmp_path / "class_iou.png")
    with Image.open(tmp_path / "class_iou.png") as image:
        assert image.height < 1400 and pixels[0] <= image.width <= pixels[1]


@pytest.mark.curves
@pytest.mark.parametrize("name", [None, "fit"])
def test_the_plotter_draws_both_beside_the_csv_file_whatever_else_logs(tmp_path: Path, name: str | None) -> None:
    logger = CSVLogger(tmp_path, name="", version="")
    trainer = SimpleNamespace(
        state=SimpleNamespace(fn=name), sanity_checking=False, is_global_zero=True, loggers=[DummyLogger(), logger]
    )
    logger.log_metrics({"epoch": 0, "train/loss": 1.0, "val/IoU/road, street": 0.5}, step=9)
    CurvePlotter().on_validation_end(trainer, None)
    drawn = {path.name for path in tmp_path.iterdir()}
    assert drawn == ({"metrics.csv", "curves.png", "class_iou.png"} if name == "fit" else set())
