"""The score does not depend on the number of processes: `segkit test` under gloo on the CPU."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from checkpoints import write_module
from gloo import run_command

pytestmark = pytest.mark.slow

NUM_CLASSES = 3


def folder(root: Path, count: int) -> Path:
    """`count` random images, each of another size."""
    generator = np.random.default_rng(0)
    for i in range(count):
        shape = (20 + 5 * i, 40 - 3 * i)
        for kind, array in (
            ("images", generator.integers(0, 256, (*shape, 3), np.uint8)),
            ("labels", generator.integers(0, NUM_CLASSES, shape, np.uint8)),
        ):
            (root / kind / "test").mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(root / kind / "test" / f"{i}.png"), array)
    (root / "classes.txt").write_text("a\nb\nc\n")
    return root


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `fit` would write, with random weights."""
    return write_module(tmp_path_factory.mktemp("checkpoint") / "random.ckpt", num_classes=NUM_CLASSES)


def test_one_two_and_three_processes_count_the_same_pixels(checkpoint: Path, tmp_path: Path) -> None:
    count = 5  # which neither two nor three processes share evenly
    root = folder(tmp_path / "data", count)
    results = {}
    for world in (1, 2, 3):
        out = tmp_path / f"run{world}"
        arguments = ["test", "--data", "FolderDataModule", "--data.root", str(root), "--data.num_workers", "0"]
        arguments += ["--ckpt_path", str(checkpoint), "--trainer.accelerator", "cpu", "--run_dir", str(out)]
        arguments += ["--trainer.devices", str(world), "--trainer.strategy", "ddp" if world > 1 else "auto"]
        arguments += ["--calibration"]
        run_command(world, arguments, tmp_path / f"log{world}")
        results[world] = json.loads((out / "result.json").read_text())
    assert [r["num_images"] for r in results.values()] == [count] * 3
    pixels = sum((20 + 5 * i) * (40 - 3 * i) for i in range(count))
    assert np.sum(results[1]["confusion_matrix"]) == pixels
    assert results[1]["confusion_matrix"] == results[2]["confusion_matrix"] == results[3]["confusion_matrix"]
    assert results[1]["scores"] == results[2]["scores"] == results[3]["scores"]
    assert results[1]["calibration"] == results[2]["calibration"] == results[3]["calibration"]
    assert sum(b["pixels"] for b in results[1]["calibration"]["bins"]) == pixels
