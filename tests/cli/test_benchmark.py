"""`segkit benchmark` through the front door, on five tiny images and networks with random weights."""

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from segkit.benchmark import rows as benchmark_rows
from segkit.benchmark.cost import flops, parameters
from segkit.benchmark.table import short_names
from segkit.cli import main
from segkit.files import write_text
from segkit.inference.segmenter import load

NUM_CLASSES, IMAGES = 4, 5  # of conftest.py

Run = Callable[..., int]


@pytest.fixture
def labelled(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows with every image that a network labels."""
    calls: list[int] = []
    label = benchmark_rows._label
    monkeypatch.setattr(benchmark_rows, "_label", lambda *args: (calls.append(1), label(*args))[1])
    return calls


def rows_of(folder: Path) -> list[dict]:
    return json.loads((folder / "benchmark.json").read_text())["rows"]


def plain_miou(
    folder: Path, checkpoint: str, protocol: str, absent: float | None = None, images: Sequence[int] = range(IMAGES)
) -> float:
    """mIoU with loops and numpy only; what a class without any pixel counts, or that it is left out."""
    segmenter = load(folder / checkpoint, "cpu", protocol, precision="exact")
    both = np.zeros((NUM_CLASSES, 3))
    for i in images:
        truth = np.asarray(Image.open(folder / f"data/labels/test/{i}.png"))
        labels = segmenter.predict(folder / f"data/images/test/{i}.png")
        for k in range(NUM_CLASSES):
            mine, theirs = (labels == k) & (truth != 255), truth == k
            both[k] += (mine & theirs).sum(), mine.sum(), theirs.sum()
    union = both[:, 1] + both[:, 2] - both[:, 0]
    ious = [both[k, 0] / union[k] if union[k] else absent for k in range(NUM_CLASSES)]
    return float(np.mean([iou for iou in ious if iou is not None]))


def write_protocol(path: Path) -> Path:
    write_text(path, "scales: [0.5, 1.0]\nflip: true\n")
    return path


@pytest.mark.slow
def test_models_times_protocols(
    run_benchmark: Run, benchmark_folder: Path, tmp_path: Path, labelled: list[int], capsys
) -> None:
    both = str(write_protocol(tmp_path / "both.yaml"))
    command = [str(benchmark_folder / "a.ckpt"), str(benchmark_folder / "b.ckpt"), "--protocol", "whole", both]
    assert run_benchmark(*command) == 0
    rows = rows_of(tmp_path / "table")
    assert [(Path(row["model"]).name, row["protocol"]) for row in rows] == [
        ("a.ckpt", "whole"),
        ("a.ckpt", "both"),
        ("b.ckpt", "whole"),
        ("b.ckpt", "both"),
    ]
    for row in rows:
        assert row["mIoU"] == pytest.approx(
            plain_miou(benchmark_folder, Path(row["model"]).name, both if row["protocol"] == "both" else "whole"),
            abs=1e-12,
        )
        assert (row["images"], row["partial"], row["data"], row["size"]) == (IMAGES, False, "data", [32, 64])
        assert row["images/s"] > 0 and list(row["class IoU"]) == ["road", "tree", "sky", "boat"]
    assert len({row["mIoU"] for row in rows}) >= 3
    network = load(benchmark_folder / "a.ckpt", "cpu", precision="exact").network
    assert rows[0]["M params"] == parameters(network) / 1e6
    assert rows[0]["GFLOPs"] == flops(network, (32, 64)) / 1e9
    assert rows[0]["GFLOPs/image"] == flops(network, (40, 56)) / 1e9
    views = 2 * flops(network, (20, 28)) + 2 * flops(network, (40, 56))
    assert rows[1]["GFLOPs/image"] == views / 1e9
    assert rows[1]["protocol fields"]["flip"] is True

    table = tmp_path / "table"
    lines = (table / "benchmark.md").read_text().splitlines()
    assert len({len(line) for line in lines[:6]}) == 1 and f"{100 * rows[0]['mIoU']:.2f}" in lines[2]
    assert "a multiply-add counted as 2" in "\n".join(lines[6:]) and "published" not in lines[0]
    assert lines[2] in capsys.readouterr().out
    with (table / "benchmark.csv").open(newline="") as file:
        read = list(csv.DictReader(file))
    assert [float(row["mIoU"]) for row in read] == [row["mIoU"] for row in rows]
    assert cv2.imread(str(table / "benchmark.png")).shape[1] > 500

    before = {path.name: path.read_bytes() for path in table.iterdir() if path.is_file()}
    done = len(labelled)
    assert run_benchmark(*command) == 0 and len(labelled) == done == 4 * IMAGES
    assert {path.name: path.read_bytes() for path in table.iterdir() if path.is_file()} == before


@pytest.mark.slow
def test_the_number_is_that_of_segkit_test(run_benchmark: Run, benchmark_folder: Path, tmp_path: Path) -> None:
    checkpoint = str(benchmark_folder / "b.ckpt")
    assert run_benchmark(checkpoint, "--protocol", "ms-flip") == 0
    command = [
        "test",
        "--ckpt_path",
        checkpoint,
        "--data",
        str(benchmark_folder / "data.yaml"),
        "--protocol",
        "ms-flip",
    ]
    assert main([*command, "--trainer.accelerator", "cpu", "--run_dir", str(tmp_path / "test")]) == 0
    result = json.loads((tmp_path / "test" / "result.json").read_text())
    assert rows_of(tmp_path / "table")[0]["mIoU"] == result["scores"]["mIoU"]


@pytest.mark.slow
def test_limit_marks_a_row_partial(
    run_benchmark: Run, benchmark_folder: Path, tmp_path: Path, labelled: list[int]
) -> None:
    assert run_benchmark(str(benchmark_folder / "a.ckpt")) == 0
    assert run_benchmark(str(benchmark_folder / "a.ckpt"), "--limit", "2") == 0
    rows = rows_of(tmp_path / "table")
    assert [(row["images"], row["partial"]) for row in rows] == [(IMAGES, False), (2, True)]
    assert len(labelled) == IMAGES + 2 and rows[0]["mIoU"] != rows[1]["mIoU"]
    assert "2 (partial)" in (tmp_path / "table" / "benchmark.md").read_text()
    # Of two images are drawn the first twice, each once, or the second twice: more often than in 1 of 40 samples.
    drawn = [plain_miou(benchmark_folder, "a.ckpt", "whole", images=images) for images in ((0, 0), (0, 1), (1, 1))]
    assert rows[1]["interval"] == pytest.approx([min(drawn), max(drawn)], abs=1e-12)


@pytest.mark.slow
def test_another_metric_needs_no_network(
    run_benchmark: Run, benchmark_folder: Path, tmp_path: Path, labelled: list[int]
) -> None:
    assert run_benchmark(str(benchmark_folder / "a.ckpt")) == 0
    assert run_benchmark(str(benchmark_folder / "a.ckpt"), "--metric", "encoding") == 0
    assert len(labelled) == IMAGES
    own, encoding = rows_of(tmp_path / "table")
    assert (own["metric"], encoding["metric"]) == ("segkit", "encoding")
    # Boats are in no truth, and this network predicts none: left out of the mean, or counted as 0.
    assert encoding["mIoU"] == pytest.approx(plain_miou(benchmark_folder, "a.ckpt", "whole", absent=0.0), abs=1e-12)
    assert own["mIoU"] == pytest.approx(4 / 3 * encoding["mIoU"]) and own["peak MB"] == encoding["peak MB"]
    assert own["interval"][0] <= own["mIoU"] <= own["interval"][1] and encoding["interval"] is None


def recipe(path: Path, folder: Path, published: dict | None, stride: int = 16) -> str:
    write_text(
        path,
        f"""\
published: {json.dumps(published)}
data: {folder / "data.yaml"}
model: {{network: {{class_path: FCN, init_args: {{encoder: resnest14_tiny, output_stride: {stride}}}}}}}
protocol: whole
""",
    )
    return str(path)


def plan(path: Path, *rows: dict) -> list[str]:
    write_text(path, json.dumps(rows))  # JSON is YAML
    return ["--plan", str(path)]


@pytest.mark.slow
def test_plan_with_published_numbers_and_costs(run_benchmark: Run, benchmark_folder: Path, tmp_path: Path) -> None:
    number = {"mIoU": 20, "pixel_accuracy": 50.5, "protocol": "whole", "images": IMAGES, "source": "somewhere"}
    mine = recipe(tmp_path / "mine.yaml", benchmark_folder, number)
    other = recipe(tmp_path / "other.yaml", benchmark_folder, number, stride=8)
    few = recipe(tmp_path / "few.yaml", benchmark_folder, number | {"images": 7})
    words = recipe(tmp_path / "words.yaml", benchmark_folder, None)
    a = str(benchmark_folder / "a.ckpt")
    arguments = plan(
        tmp_path / "plan.yaml",
        {"name": "first", "model": a, "config": mine, "protocol": ["whole", "window"]},
        {"model": str(benchmark_folder / "b.ckpt"), "config": few, "metric": "mmseg"},
        {"name": "stride", "model": a, "config": other, "metric": "encoding"},
        {"name": "words", "model": a, "config": words, "metric": "csail"},
        {"name": "cost", "config": other},
        {"model": a, "data": {"class_path": "FolderDataModule", "init_args": {"root": str(benchmark_folder / "data")}}},
    )
    assert run_benchmark(*arguments, data=False) == 0
    first, window, few_row, stride, no_number, cost, _ = rows_of(tmp_path / "table")
    assert first["published mIoU"] == 0.2 and first["difference"] == pytest.approx(first["mIoU"] - 0.2)
    assert first["published"]["pixel_accuracy"] == 0.505 and first["mIoU"] == window["mIoU"]
    reasons = [row.get("not comparable") for row in (first, window, few_row, stride)]
    assert reasons[0] is None and "the protocol window, published for whole" in reasons[1]
    assert "5 images were scored, published for 7" in reasons[2]
    assert (
        "output_stride=16" in reasons[3] and "published for FCN(encoder=resnest14_tiny, output_stride=8" in reasons[3]
    )
    assert not any("published mIoU" in row for row in (window, few_row, stride, no_number))
    assert cost["data"] is None and cost.get("mIoU") is None and cost["images/s"] > 0
    assert cost["GFLOPs"] == cost["GFLOPs/image"] > first["GFLOPs"] and cost["M params"] == first["M params"]

    lines = (tmp_path / "table" / "benchmark.md").read_text().splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[:9]]
    place = {title: i for i, title in enumerate(cells[0])}
    assert cells[2][place["published mIoU"]] == "20.00" and cells[3][place["difference"]] == "-"
    assert cells[2][place["difference"]] == f"{100 * first['difference']:+.2f}"
    assert [row[place["mIoU"]] == "-" for row in cells[2:]] == [False] * 5 + [True, False]
    notes = "\n".join(lines[9:])
    assert "published mIoU 20.00, pixel accuracy 50.50 (somewhere)" in notes and "not compared: scored with" in notes


@pytest.mark.slow
def test_recipe_on_the_command_line(run_benchmark: Run, benchmark_folder: Path, tmp_path: Path) -> None:
    number = {"mIoU": 30, "protocol": "whole", "images": IMAGES, "source": "there"}
    path = recipe(tmp_path / "r.yaml", benchmark_folder, number)
    assert run_benchmark(str(benchmark_folder / "a.ckpt"), path, "--config", path, data=False) == 0
    scored, cost = rows_of(tmp_path / "table")
    assert scored["published mIoU"] == 0.3 and cost.get("mIoU") is None and cost["model"] == path


@pytest.mark.parametrize(
    "content, words",
    [
        ("[{modle: a.ckpt}]", "row 1: no such key 'modle'; did you mean model? allowed: name, model, config, data"),
        ("[{model: a.ckpt, protocol: whole}]", "row 1: no data to score on; give it with the key data, or config"),
        ("[{protocol: whole}]", "row 1: neither model nor config"),
        ("[{config: absent.yaml}]", "absent.yaml: no such file (looked for /"),
        ("[{config: DATA}]", "data.yaml: not a recipe"),
        ("[{model: a.ckpt, data: DATA}, 3]", "row 2: 3 is not a mapping"),
        ("[{model: a.ckpt, data: DATA, protocol: ms}]", "'ms' is not known"),
        (
            "[{model: a.ckpt, data: DATA, protocol: {scale: 2}}]",
            "row 1: protocol: 'scale' is no field of a protocol; did you mean scales?",
        ),
        ("[{model: a.ckpt, data: DATA, metric: best}]", "row 1: metric: no such convention 'best'; allowed: segkit"),
        ("[{model: a.ckpt, data: absent.yaml}]", "absent.yaml"),
        ("[{model: a.ckpt, data: 3}]", "row 1: data is 3"),
        ("model: a.ckpt", "not a list of rows"),
        ("[{model: a.ckpt", "not valid YAML"),
    ],
)
def test_wrong_plans_are_one_line(
    run_benchmark: Run, benchmark_folder: Path, tmp_path: Path, capsys, content: str, words: str
) -> None:
    write_text(tmp_path / "plan.yaml", content.replace("DATA", str(benchmark_folder / "data.yaml")))
    assert run_benchmark("--plan", str(tmp_path / "plan.yaml"), data=False) == 2
    assert words in capsys.readouterr().err.strip().splitlines()[-1]
    assert not (tmp_path / "table").exists()


def test_short_names_tell_models_apart() -> None:
    assert short_names(["runs/1/last.ckpt", "runs/1/last.ckpt", "b/best.ckpt"]) == [
        "last.ckpt",
        "last.ckpt",
        "best.ckpt",
    ]
    assert short_names(["runs/1/c/last.ckpt", "runs/2/c/last.ckpt"]) == ["1/c/last.ckpt", "2/c/last.ckpt"]
