"""`segkit benchmark explain`: from the command to the table, the JSON and the figure."""

import json
from pathlib import Path

import pytest

from segkit.cli import main

LATE = """\
from pathlib import Path
import numpy as np
from PIL import Image

ROOT = Path({root!r})
TRUTH = {{}}
for path in sorted((ROOT / "images/test").iterdir()):
    image, mask = np.asarray(Image.open(path)), np.asarray(Image.open(ROOT / "labels/test" / path.name))
    TRUTH[image.tobytes()] = mask

def late(image):
    mask = TRUTH[np.ascontiguousarray(image).tobytes()].astype(int)
    return np.where(mask == 255, 255, mask + 1)
"""


def test_the_shift_of_a_functions_numbers_is_named(
    benchmark_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "numbers_late.py").write_text(LATE.format(root=str(benchmark_folder / "data")))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    folder, data = str(tmp_path / "out"), str(benchmark_folder / "data.yaml")
    code = main(["benchmark", "explain", "numbers_late:late", "--data", data, "--claimed", "100", "--output", folder])
    assert code == 0
    found = json.loads((tmp_path / "out/explain.json").read_text())
    assert found["steps"][0]["change"] == "label table: the model's numbers -1"
    assert found["steps"][0]["mIoU"] == pytest.approx(1)
    assert (tmp_path / "out/explain.png").is_file()
    assert "label table" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["a.ckpt"], "no data to score on"),
        (["a.ckpt", "--data", "DATA", "--claimed", "0.442"], "not a number in percent"),
        (["missing.ckpt", "--data", "DATA"], "missing.ckpt: no such file"),
    ],
)
def test_what_is_wrong_is_one_line(
    benchmark_folder: Path, arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [str(benchmark_folder / "data.yaml") if a == "DATA" else a for a in arguments]
    assert main(["benchmark", "explain", *given, "--output", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line and not (tmp_path / "out").exists()
