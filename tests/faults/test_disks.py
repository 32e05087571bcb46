"""Disks that are full, read-only, or fill up at work: one line, nothing half-written, and what was there stays.

Each command writes to a disk of its own, of a few kilobytes. Skipped where nothing may be mounted.
"""

import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from campaign import Campaign
from disks import disk, fill_up, make_read_only
from noise import write_noise
from PIL import Image
from safetensors.torch import load_file

from segkit.cli import main
from segkit.errors import InputError
from segkit.io import write_png
from segkit.models.weight_files import read_torch_file

SEED = 13
SIZE = "16m"  # of a disk
SMALL = 3  # disks that fill up at work, each command is tried on
# kB that a command writes at most, about; 24 where not said
WRITTEN = {"fit": 12_000, "export": 3000, "weights": 3000, "data cache": 60}

Say = Callable[[str], None]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """On a good disk: data, a run with its checkpoint, predictions, label maps to be sent in."""
    home = tmp_path_factory.mktemp("home")
    data = write_noise(home / "data", {"train": 2, "val": 2, "test": 2})
    network = ["--model.network", "FCN", "--model.network.encoder", "resnest14_tiny", "--trainer.max_epochs", "1"]
    assert main(["fit", *of_data(data), *network, "--run_dir", str(home / "run")]) == 0
    for i in range(2):
        write_png(home / f"predicted/{i}.png", np.full((40, 56), i, np.uint8))
        write_png(home / f"sent/ADE_test_{i + 1:08d}.png", np.full((40, 56), i, np.uint8))
        image = np.zeros((40, 56, 3), np.uint8)
        write_png(home / f"ade/release_test/testing/ADE_test_{i + 1:08d}.png", image)
    (home / "data.yaml").write_text(f"class_path: FolderDataModule\ninit_args: {{root: {data}, num_workers: 0}}\n")
    return home


def of_data(data: Path) -> list[str]:
    sizes = ["--data.batch_size", "2", "--data.crop_size", "32", "--data.base_size", "40", "--data.num_workers", "0"]
    trainer = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
    return ["--data", "FolderDataModule", "--data.root", str(data), *sizes, *trainer]


def commands(home: Path, to: Path) -> dict[str, list[str]]:
    """Each command, with all that it writes below `to`."""
    data, checkpoint = home / "data", str(home / "run/checkpoints/last.ckpt")
    network = ["--model.network", "FCN", "--model.network.encoder", "resnest14_tiny"]
    tested = [*of_data(data), "--ckpt_path", checkpoint]
    scored = [home / "predicted", data / "labels/test", "--labels", data]
    drawn = ["--samples", "5", "--permutations", "5"]
    given: dict[str, list[object]] = {
        "fit": ["fit", *of_data(data), *network, "--trainer.max_epochs", "1", "--run_dir", to / "run"],
        "test": ["test", *tested, "--run_dir", to / "run"],
        "predict": ["predict", *tested, "--output", to / "labels", "--run_dir", home / "predict"],
        "export": ["export", checkpoint, "-o", to / "earlier.safetensors", "--overwrite"],
        "weights": ["weights", "convert", checkpoint, "-o", to / "earlier.safetensors", "--overwrite"],
        "data stats": ["data", "stats", "folder", data, "--output", to / "statistics.json"],
        "data browse": ["data", "browse", "folder", data, "--output", to / "sheet.png"],
        "data cache": ["data", "cache", "folder", data, "--cache_dir", to / "cache"],
        "data check": ["data", "check", "folder", data, "--json", to / "report.json"],
        "score": ["benchmark", "score", *scored, "--plot", "--output", to / "earlier.json"],
        "compare": ["benchmark", "compare", home / "predicted", *scored, *drawn, "--output", to / "comparison.json"],
        "benchmark": ["benchmark", checkpoint, "--data", home / "data.yaml", "--device", "cpu", "--output", to],
        "submission": ["submission", "make", "ade20k", home / "sent", "--data", home / "ade", "-o", to / "sent.zip"],
        "infer": ["infer", data / "images/test", "--checkpoint", checkpoint, "--output", to / "found"],
    }
    return {name: [str(word) for word in words] for name, words in given.items()}


def attack(
    campaign: Campaign, home: Path, place: Path, name: str, kind: str, heard: Callable[[], tuple[str, str]]
) -> None:
    """One command on one disk; what it says and leaves is looked at.

    Args:
        campaign: That counts.
        home: What the command reads.
        place: Where the disk is.
        name: Of the command.
        kind: "full", "read-only", or the free bytes.
        heard: Gives what was said since it was last asked: on standard error, and in all.
    """
    earlier = {"earlier.json": b"mine", "earlier.safetensors": b"also mine"}
    with disk(place, SIZE), campaign.case(f"{name} on a disk: {kind}"):
        for file, content in earlier.items():
            (place / file).write_bytes(content)
        fill_up(place, keep=int(kind) if kind.isdigit() else 0)
        if kind == "read-only":
            make_read_only(place)
        heard()
        code = main(commands(home, place)[name])
        lines = refusals(code, *heard(), shown=SHOWN.get(name) if kind.isdigit() else None)
        assert code == 0 or {file: (place / file).read_bytes() for file in earlier} == earlier, "earlier files changed"
        assert_whole(place)
        if lines:
            raise InputError(lines[0])


SHOWN = {"test": "mean   ", "score": "mean   ", "compare": "mIoU   ", "benchmark": "mIoU |", "data check": "raw  id"}


def refusals(code: int, err: str, said: str, shown: str | None) -> list[str]:
    """The lines that say what is wrong: one, of the disk, and none where the command has done its work."""
    lines = [line for line in err.replace("\r", "\n").split("\n") if ": error: " in line]
    assert "Traceback" not in said and "Exception ignored" not in said, said
    assert len(lines) == 1 if code == 2 else bool(lines) == (code == 1) and code in (0, 1), (code, said)
    assert all("disk" in line for line in lines), lines
    assert shown is None or shown in said, f"the finished result is not shown: {said}"
    return lines


def assert_whole(place: Path) -> None:
    """No temporary file is left, and every file can be read to its end."""
    readers: dict[str, Callable[[Path], object]] = {
        ".json": lambda path: json.loads(path.read_text()),
        ".png": lambda path: Image.open(path).load(),
        ".safetensors": load_file,
        ".ckpt": read_torch_file,
    }
    for path in place.rglob("*"):
        assert not path.name.endswith(".tmp"), f"left behind: {path.name}"
        if path.is_file() and path.suffix in readers and not path.name.startswith("earlier."):
            readers[path.suffix](path)


def run(count: int, home: Path, place: Path, say: Say, heard: Callable[[], tuple[str, str]]) -> None:
    dice, cases = random.Random(SEED), []
    for name in commands(home, place):
        most = WRITTEN.get(name, 24)
        cases += [(name, kind) for kind in ("full", "read-only")]
        cases += [(name, str(4096 * dice.randint(1, max(1, most // 4)))) for _ in range(SMALL)]
    dice.shuffle(cases)
    campaign = Campaign("disks", say)
    for i, (name, kind) in enumerate(cases[:count]):
        attack(campaign, home, place / str(i), name, kind, heard)
    campaign.finish()


@pytest.fixture
def heard(capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> Callable[[], tuple[str, str]]:
    def ask() -> tuple[str, str]:
        out, err = capfd.readouterr()
        logged = list(caplog.messages)
        caplog.clear()
        return err, "\n".join([out, err, *logged])

    caplog.set_level("INFO")
    return ask


@pytest.mark.slow
def test_a_few_disks(home: Path, tmp_path: Path, figures: Say, heard: Callable[[], tuple[str, str]]) -> None:
    run(8, home, tmp_path, figures, heard)


@pytest.mark.campaign
@pytest.mark.parametrize("free", [40_960, 1 << 20])
def test_a_process_ends_without_noise_of_its_threads(home: Path, tmp_path: Path, free: int) -> None:
    """On the first disk TensorBoard's thread cannot write, on the second one the checkpoint is what does not fit."""
    with disk(tmp_path / "disk", SIZE) as place:
        fill_up(place, keep=free)
        command = [sys.executable, "-m", "segkit", *commands(home, place)["fit"]]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        lines = refusals(done.returncode, done.stderr, done.stdout + done.stderr, None)
        assert done.returncode == 2 and str(place / "run") in lines[0], lines


@pytest.mark.campaign
def test_disks(home: Path, tmp_path: Path, figures: Say, heard: Callable[[], tuple[str, str]]) -> None:
    run(70, home, tmp_path, figures, heard)
