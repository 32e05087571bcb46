"""`segkit infer` of an ONNX or OpenVINO file needs no PyTorch, and writes what it would write with it."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from segkit.cli.infer import main
from segkit.inference.exported import label_model
from segkit.io import write_png

_HEAVY = "torch torchvision pytorch_lightning matplotlib scipy pandas sympy onnx nncf albumentations"
_RUN = f"""
import sys
from pathlib import Path
from segkit.cli import main
code = main(sys.argv[1:])
status = Path("/proc/self/status")  # of Linux; getrusage begins with the peak of the process that started this one
lines = status.read_text().splitlines() if status.exists() else []
peak = [line.split()[1] for line in lines if line.startswith("VmHWM")] or ["0"]
print("\\nENDED", len(sys.modules), *peak, *(sys.modules.keys() & set({_HEAVY!r}.split())))
sys.exit(code)
"""
_RESULTS = ("_labels.png", "_color.png", "_overlay.png", "_area.json")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    write_png(tmp_path / "a.png", np.random.default_rng(0).integers(0, 256, (33, 47, 3), dtype=np.uint8))
    return tmp_path / "a.png"


def infer(image: Path, file: Path, output: Path, *more: str) -> int:
    return main([str(image), "--checkpoint", str(file), "--output", str(output), *more])


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
def test_imports_no_pytorch_and_writes_the_same_files(
    files: dict[str, Path], image: Path, tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["infer", str(image), "--checkpoint", str(files[suffix]), "--output", str(tmp_path / "without")]
    done = subprocess.run([sys.executable, "-c", _RUN, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    modules, kilobytes, *heavy = done.stdout.rpartition("ENDED")[2].split()
    assert not heavy and int(modules) < 700 and int(kilobytes) < 300_000

    monkeypatch.setattr(label_model, "open_label_model", lambda *_: None)
    assert infer(image, files[suffix], tmp_path / "with") == 0
    for name in _RESULTS:
        assert (tmp_path / f"without/a{name}").read_bytes() == (tmp_path / f"with/a{name}").read_bytes(), name


@pytest.mark.slow
def test_annotation_files_need_no_pytorch_either(files: dict[str, Path], image: Path, tmp_path: Path) -> None:
    arguments = ["infer", str(image), "--checkpoint", str(files[".onnx"]), "--output", str(tmp_path / "out")]
    arguments += ["--output_kinds", "coco", "panoptic", "geojson", "cvat", "labelstudio", "yolo", "area.csv"]
    done = subprocess.run([sys.executable, "-c", _RUN, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.rpartition("ENDED")[2].split()[2:] == []
    assert (tmp_path / "out" / "cvat.zip").is_file() and (tmp_path / "out" / "a.geojson").is_file()


def test_an_image_that_may_not_fit_is_left_to_pytorch(
    files: dict[str, Path], image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert infer(image, files[".onnx"], tmp_path / "whole") == 0
    monkeypatch.setattr(label_model.LabelModel, "queue", None)
    # More than the image's 1551 pixels need in PyTorch by far, and less than twice 2080 bytes for each.
    assert infer(image, files[".onnx"], tmp_path / "left", "--memory", "6MB") == 0
    for name in _RESULTS:
        assert (tmp_path / f"whole/a{name}").read_bytes() == (tmp_path / f"left/a{name}").read_bytes(), name
