"""How long commands take to start, and how many modules they import: prints a Markdown table.

    python scripts/benchmark_startup.py

Every command runs in a fresh process, once in each round, one after the other; files are warm in the operating system's
cache. The first two rows are what no command can be faster than: Python alone, and Python that imports PyTorch. Modules
are those in addition to a bare Python's; `tests/cli/test_startup.py` bounds them. `infer` segments one image of
20 x 30 pixels with the tiny network, on the CPU, and writes its four results.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from benchmark_common import header, measure, times_table

from segkit.io import write_png
from segkit.metadata.label_space import LabelSpace, distinct_palette, identity_table
from segkit.models.segmentation import DeepLabV3

PACKAGES = ("segkit", "python", "torch", "torchvision", "numpy", "pytorch-lightning")

HELP = ("", "data", "weights", "export", "demo", "benchmark", "benchmark score", "infer", "submission", "fit")

SEGKIT = "from segkit.cli import main; main(sys.argv[1:])"

# A command that ends by SystemExit, as `--help` does, is counted as well.
COUNT = """
import atexit, sys
bare = set(sys.modules) - {"atexit"}
atexit.register(lambda: sys.stderr.write(f" {len(sys.modules.keys() - bare)}"))
"""


def main() -> None:
    """Measure and print."""
    options = parse()
    with tempfile.TemporaryDirectory() as folder:
        processes = commands(Path(folder))
        print(header(PACKAGES))
        modules = {name: str(count(*process)) for name, process in processes.items()}
        contestants: dict[str, Callable[[], object]] = {
            name: partial(run, f"import sys; {code}", arguments) for name, (code, arguments) in processes.items()
        }
        print(times_table("process", "s", measure(contestants, options.rounds), float, 2, {"modules": modules}))


def parse() -> argparse.Namespace:
    """How often."""
    parser = argparse.ArgumentParser(description="Time and modules that commands need to start.")
    parser.add_argument("--rounds", type=int, default=5)
    return parser.parse_args()


def commands(folder: Path) -> dict[str, tuple[str, list[str]]]:
    """By name: the code that a fresh Python runs, and its arguments."""
    found: dict[str, tuple[str, list[str]]] = {"python": ("pass", []), "python, import torch": ("import torch", [])}
    for command in HELP:
        found[" ".join(["segkit", *command.split(), "--help"])] = (SEGKIT, [*command.split(), "--help"])
    checkpoint, image = write_files(folder)
    files = [str(image), "--checkpoint", str(checkpoint), "--output", str(folder / "out"), "--device", "cpu"]
    return found | {"segkit infer, one image": (SEGKIT, ["infer", *files])}


def write_files(folder: Path) -> tuple[Path, Path]:
    """A checkpoint of four classes, and a black image."""
    network = DeepLabV3("resnest14_tiny", num_classes=4)
    parts = {
        "network": network.config,
        "label_space": LabelSpace(("road", "tree", "sky", "car"), distinct_palette(4), identity_table(4)).to_dict(),
        "normalization": {"mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2]},
    }
    weights = {f"network.{name}": value for name, value in network.state_dict().items()}
    torch.save({"hyper_parameters": parts, "state_dict": weights}, folder / "tiny.ckpt")
    write_png(folder / "a.png", np.zeros((20, 30, 3), np.uint8))
    return folder / "tiny.ckpt", folder / "a.png"


def run(code: str, arguments: Sequence[str]) -> str:
    """The standard error of a fresh Python."""
    return subprocess.run([sys.executable, "-c", code, *arguments], check=True, capture_output=True, text=True).stderr


def count(code: str, arguments: Sequence[str]) -> int:
    """The modules that are there at the end and were not at the start."""
    return int(run(COUNT + code, arguments).split()[-1])


if __name__ == "__main__":
    main()
