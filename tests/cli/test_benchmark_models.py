"""`segkit benchmark` on models of any kind: the scores are those of plain NumPy, and what is wrong is one line."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scored import plain_miou, rows_of
from torch import nn

from segkit.benchmark.models.base import labels_of
from segkit.errors import InputError
from segkit.files import write_text
from segkit.inference.segmenter import load

IMAGES = 5  # of conftest.py

Run = Callable[..., int]

MODULE = """\
import numpy as np
import torch

def by_red(image):
    assert image.dtype == np.uint8 and image.shape[2] == 3
    return image[..., 0] // 64

def logits(image):
    half = torch.from_numpy(image[::2, ::2].copy()).permute(2, 0, 1).float()
    return torch.cat([half, half.mean(0, keepdim=True)])[None]

class Network:
    class_names = ("void", "boat", "sky", "tree", "road")
    preprocessing = "the red channel, by 64"

    def preprocess(self, image):
        self.seen = image.shape
        return torch.from_numpy(image[..., 0] // 64)

    def __call__(self, red):
        assert isinstance(red, torch.Tensor) and not torch.is_grad_enabled()
        return (4 - red).long()

made = Network()
number = 7

def raises(image):
    raise KeyError("no weights")

def words(image):
    return "road"

def small(image):
    return image[::2, ::2, 0]

def wrong_class(image):
    return image[..., 0] * 0 + 9

def grey(image):
    return image[..., 0] / 255

def truth(image):
    return image[..., 0] > 3

def nan(image):
    return np.full((4, 9, 9), np.nan)

class Broken:
    def __init__(self):
        raise OSError("weights.pth is missing")
"""


@pytest.fixture
def functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Name of a module with models; another one for each test, as Python keeps what it has imported."""
    name = f"functions_{abs(hash(tmp_path))}"
    write_text(tmp_path / "modules" / f"{name}.py", MODULE)
    monkeypatch.syspath_prepend(tmp_path / "modules")
    return name


def plain_logits(image: np.ndarray) -> np.ndarray:
    half = torch.from_numpy(image[::2, ::2].copy()).permute(2, 0, 1)[None].float()
    logits = torch.cat([half, half.mean(1, keepdim=True)], 1)
    full = nn.functional.interpolate(logits, image.shape[:2], mode="bilinear", align_corners=False)
    return full.argmax(1)[0].numpy()


@pytest.mark.slow
def test_functions_are_scored_as_networks_are(
    run_benchmark: Run, benchmark_folder: Path, functions: str, tmp_path: Path, capsys
) -> None:
    models = [f"{functions}:by_red", f"{functions}:logits", f"{functions}:Network", f"{functions}:made"]
    assert run_benchmark(*models) == 0
    red, logits, matched, made = rows_of(tmp_path / "table")
    assert red["mIoU"] == pytest.approx(plain_miou(benchmark_folder, lambda image: image[..., 0] // 64), abs=1e-12)
    assert logits["mIoU"] == pytest.approx(plain_miou(benchmark_folder, plain_logits), abs=1e-12)
    assert red["mIoU"] == matched["mIoU"] == made["mIoU"]  # by name: 4 - red is the same class in the other order
    assert matched["preprocessing"] == {"words": "the red channel, by 64"}
    assert (red["protocol"], red["images"], red["GFLOPs"], red["M params"]) == ("own", IMAGES, None, None)
    assert red["images/s"] > 0
    err = capsys.readouterr().err
    assert "Network, whole): matched by name: 4 of 5 classes; not in the data: void" in err
    assert "by_red, whole): preprocessing: its own, timed with the network" in err
    notes = (tmp_path / "table" / "benchmark.md").read_text()
    assert "Network, own: preprocessing: the red channel, by 64; matched by name: 4 of 5 classes" in notes
    assert run_benchmark(*models) == 0
    assert capsys.readouterr().err.count("already in") == 4


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, words",
    [
        ("raises", "raised KeyError: 'no weights'"),
        ("words", "returned str; needed are integer labels (H, W), or floating point logits (K, h, w)"),
        ("small", "returned labels uint8 (20, 28) for an image of 40 x 56 pixels; resize them by nearest"),
        ("wrong_class", "labels 2240 pixels of 0 9, but its classes are 0..3 (255: none)"),
        ("grey", "returned float64 (40, 56) for an image of 40 x 56 pixels; needed are integer labels"),
        ("truth", "returned bool (40, 56)"),
        ("nan", "returned NaN or infinite logits; look at its preprocessing"),
        ("Broken", "raised OSError: weights.pth is missing"),
        ("number", "is int, which cannot be called"),
        ("by_read", "no such name; did you mean by_red?"),
    ],
)
def test_what_is_wrong_with_a_function_is_one_line(
    run_benchmark: Run, functions: str, tmp_path: Path, capsys, name: str, words: str
) -> None:
    assert run_benchmark(f"{functions}:{name}", f"{functions}:by_red") == 1  # the other row goes on
    (line,) = [li for li in capsys.readouterr().err.splitlines() if "error" in li and "row 1" in li][:1]
    assert words in line and len(rows_of(tmp_path / "table")) == 1


@pytest.mark.slow
def test_no_such_module_and_no_protocols(run_benchmark: Run, functions: str, capsys) -> None:
    assert run_benchmark("no_such_module:f") == 2
    assert "there is no module 'no_such_module', neither in this folder nor installed" in capsys.readouterr().err
    assert run_benchmark(f"{functions}:by_red", "--protocol", "ms-flip") == 2
    assert "sees images in its own way, so the protocol ms-flip cannot be followed" in capsys.readouterr().err


@pytest.mark.slow
def test_a_table_of_classes_by_option_and_plan(
    run_benchmark: Run, benchmark_folder: Path, functions: str, tmp_path: Path, capsys
) -> None:
    write_text(tmp_path / "classes.yaml", "0: sky\n2: road\n3: null\n")
    assert run_benchmark(f"{functions}:by_red", "--classes", str(tmp_path / "classes.yaml")) == 0
    wide = {"model": str(benchmark_folder / "wide.ckpt"), "data": str(benchmark_folder / "data.yaml")}
    plan = [wide, wide | {"classes": {"void": "boat"}}]
    write_text(tmp_path / "plan.yaml", json.dumps(plan))
    assert run_benchmark("--plan", str(tmp_path / "plan.yaml"), data=False) == 0
    red, by_name, corrected = rows_of(tmp_path / "table")
    table = np.array([2, 1, 0, 255], np.uint8)
    assert red["mIoU"] == pytest.approx(
        plain_miou(benchmark_folder, lambda image: table[image[..., 0] // 64]), abs=1e-12
    )
    labels = load(benchmark_folder / "wide.ckpt", "cpu", precision="exact").predict
    for row, void in ((by_name, 255), (corrected, 3)):
        ids = np.array([void, 0, 1, 2, 3])
        assert row["mIoU"] == pytest.approx(
            plain_miou(benchmark_folder, lambda image, ids=ids: ids[labels(image)]), abs=1e-12
        )
    assert by_name["classes"] == "matched by name: 4 of 5 classes; not in the data: void"
    assert run_benchmark(f"{functions}:by_red", "--classes", "absent.yaml", output="x") == 2
    assert "absent.yaml: no such file" in capsys.readouterr().err


def test_labels_of_batches_of_one_and_of_tensors() -> None:
    labels = torch.tensor([[0, 1, 2]])
    for output, count in ((labels[None], None), (labels.numpy(), None), (torch.eye(3)[:, None], 3)):
        found = labels_of(output, (1, 3), "m", count)
        assert found[0].tolist() == [[0, 1, 2]] and found[1] == count
    with pytest.raises(InputError, match=r"returned logits float32 \(3, 1, 3\), but has 5 classes"):
        labels_of(torch.eye(3)[:, None], (1, 3), "m", 5)
