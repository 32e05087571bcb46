"""Commands that are stopped at random moments: what they leave is whole, and the same command then does the rest."""

import json
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from campaign import Campaign
from checkpoints import write_checkpoint
from noise import CLASSES, write_noise
from safetensors.torch import load_file
from shot import shoot

from segkit.metadata.label_space import LabelSpace, distinct_palette, identity_table
from segkit.models.segmentation import FCN

_CODES = {signal.SIGKILL: 137, signal.SIGTERM: 143, signal.SIGINT: 130}
_CLOCKS = {"date", "seconds", "command", "run"}  # in JSON: what no two runs share


def commands(home: Path, to: Path) -> dict[str, list[str]]:
    """Each with all that it writes below `to`, to be run again after a stop."""
    data, model = home / "data", home / "model.ckpt"
    sizes = ["--data.num_workers", "0", "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
    tested = ["--data", "FolderDataModule", "--data.root", data, *sizes, "--ckpt_path", model]
    truth = data / "labels/test"
    words: dict[str, list[Any]] = {
        "infer": (infer := ["infer", data / "images/test", "--checkpoint", model, "--output", to, "--device", "cpu"]),
        "infer into shards": [*infer, "--shards", 5],
        "predict": ["predict", *tested, "--output", to, "--run_dir", home / "logs"],
        "score": ["benchmark", "score", truth, truth, "--labels", data, "--output", to / "scores.json"],
        "data cache": ["data", "cache", "folder", data, "--split", "test", "--cache_dir", to],
        "export": ["export", model, "-o", to / "model.safetensors", "--overwrite"],
    }
    return {name: [str(word) for word in line] for name, line in words.items()}


def outputs(folder: Path) -> dict[str, Any]:
    """What has been written, by name; not what is begun and says so."""
    paths = [path for path in folder.rglob("[!.]*") if path.is_file() and not any(".part" in p for p in path.parts)]
    found = {str(path.relative_to(folder)): path for path in paths if path.suffix not in (".tmp", ".lock")}
    return {name: content(path) for name, path in found.items()}


def content(path: Path) -> Any:
    if path.suffix == ".json":
        return {name for name in json.loads(path.read_text()) if name not in _CLOCKS}
    if path.suffix == ".safetensors":
        return {name: tensor.sum().item() for name, tensor in load_file(path).items()}
    return path.read_bytes()


def make_home(home: Path) -> Path:
    write_noise(home / "data", {"test": 12})
    torch.manual_seed(0)
    space = LabelSpace(CLASSES, distinct_palette(len(CLASSES)), identity_table(len(CLASSES)))
    write_checkpoint(home / "model.ckpt", FCN("resnest14_tiny", len(CLASSES)), space)
    return home


def attack(number: int, seed: int, home: Path, figures: Callable[[str], None]) -> None:
    """Stop commands so often in all."""
    make_home(home)
    generator = random.Random(seed)
    campaign = Campaign("commands stopped and run again", figures)
    expected: dict[str, dict[str, Any]] = {}
    seconds: dict[str, float] = {}  # that a command takes: anywhere in it a signal may come
    for i in range(number):
        names = list(commands(home, home))
        name = names[i % len(names)]
        if name not in expected:
            code, text, seconds[name] = shoot(commands(home, home / name)[name], home / "log", [])
            assert code == 0, text
            expected[name] = outputs(home / name)
        to, signum = home / f"case {i}", generator.choice(list(_CODES))
        with campaign.case(f"seed {seed}, case {i}: {name}, {signum.name}"):
            code, text, _ = shoot(
                commands(home, to)[name], home / "log", [(generator.uniform(0, seconds[name]), signum)]
            )
            assert code in (0, _CODES[signum]), f"{code}\n{text}"
            assert "Traceback" not in text, text
            left = outputs(to)
            assert {file: text for file, text in left.items() if file in expected[name]} == {
                file: text for file, text in expected[name].items() if file in left
            }, "half an output"
            code, text, _ = shoot(commands(home, to)[name], home / "log", [])
            assert code == 0, text
            again = outputs(to)
            assert {file: again.get(file) for file in expected[name]} == expected[name], "another result"
            assert not list(to.rglob("*.tmp"))
    campaign.finish()


@pytest.mark.slow
def test_each_command_stopped_once(tmp_path: Path, figures: Callable[[str], None]) -> None:
    attack(6, 0, tmp_path, figures)


@pytest.mark.campaign
def test_fifty_stops(tmp_path: Path, figures: Callable[[str], None]) -> None:
    attack(50, 1, tmp_path, figures)
