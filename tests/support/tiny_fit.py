"""A training of seconds that has everything with a state, and what it leaves, to be compared."""

import csv
from pathlib import Path
from typing import Any

import torch

CLOCKS = ("samples/s", "data_wait")  # columns of metrics.csv that no two runs share


def recipe(root: Path) -> dict[str, Any]:
    """Batches of two; dropout, momentum, warm-up, an average of the weights, a validation after every epoch."""
    ema = {"decay": 0.9, "update_starting_at_step": 1}
    return {
        "data": {
            "class_path": "FolderDataModule",
            "init_args": {"root": str(root), "batch_size": 2, "base_size": 56, "crop_size": 32, "num_workers": 0},
        },
        "model": {
            "network": {"class_path": "FCN", "init_args": {"encoder": "resnest14_tiny", "output_stride": 16}},
            "optim": {"lr": 0.1, "warmup_steps": 2},
        },
        "trainer": {
            "accelerator": "cpu",
            "max_epochs": 2,
            "check_val_every_n_epoch": 1,
            "log_every_n_steps": 1,
            "num_sanity_val_steps": 0,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "callbacks": [
                {"class_path": "pytorch_lightning.callbacks.EMAWeightAveraging", "init_args": ema},
                {"class_path": "interrupt.Interrupt"},
            ],
        },
        "overlays": 0,
    }


def result(run: Path) -> dict[str, Any]:
    """All that a run leaves, but for clocks: checkpoints by name, and the rows of metrics.csv."""
    paths = [path for path in (run / "checkpoints").glob("*.ckpt") if "previous" not in path.name]
    found = {path.name: torch.load(path, weights_only=True) for path in paths}
    for checkpoint in found.values():
        metrics = checkpoint["segkit_position"]["metrics"]
        checkpoint["segkit_position"]["metrics"] = {k: v for k, v in metrics.items() if k not in CLOCKS}
        del checkpoint["loops"]  # Lightning's counters, of which a run that goes on takes the position only
    with (run / "metrics.csv").open() as file:
        rows = [{k: v for k, v in row.items() if k not in CLOCKS} for row in csv.DictReader(file)]
    return found | {"metrics.csv": rows}


def assert_equal(found: Any, expected: Any, where: str = "") -> None:
    """To the bit; a failure says where."""
    assert type(found) is type(expected), where
    if isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected), where
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for key in expected:
            assert_equal(found[key], expected[key], f"{where}/{key}")
    elif isinstance(expected, (list, tuple)):
        assert len(found) == len(expected), where
        for i, (one, other) in enumerate(zip(found, expected, strict=True)):
            assert_equal(one, other, f"{where}/{i}")
    else:
        assert found == expected, where
