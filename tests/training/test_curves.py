"""The picture of a run's curves: what is read from the log, and that half a picture never appears."""

from pathlib import Path

import pytest
from PIL import Image

from segkit.errors import InputError
from segkit.training.curves import plot_curves, read_curves

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


@pytest.mark.parametrize("columns", [("train/loss", "lr", "val/mIoU"), ("train/loss",)])
def test_a_picture_with_a_panel_a_kind_is_written_whole(tmp_path: Path, columns: tuple[str, ...]) -> None:
    log, output = tmp_path / "metrics.csv", tmp_path / "new" / "curves.png"
    rows = [",".join(["step", *columns])] + [",".join([str(i), *("0.5" for _ in columns)]) for i in range(150)]
    log.write_text("\n".join(rows))
    plot_curves(log, output)
    with Image.open(output) as picture:
        assert picture.width == len(columns) * 624  # 5.2 inches of 120 pixels
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
