"""How fast commands start, told by the modules that they import: seconds would be a property of the machine, too.

The bounds are 10 % above what is imported today. A command that passes its bound imports something new: if it needs
that when it runs, and not for `--help`, import it there; if it needs it always, raise the bound.
"""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from checkpoints import write_checkpoint

from segkit.io import write_png
from segkit.metadata.label_space import LabelSpace, distinct_palette, identity_table
from segkit.models.segmentation import DeepLabV3

# Each takes from 0.2 s to 10 s to import. NumPy and OpenCV take 0.3 s together.
HEAVY = {
    *("torch", "torchvision", "pytorch_lightning", "lightning_fabric", "torchmetrics", "jsonargparse", "scipy"),
    *("matplotlib", "albumentations", "timm", "segmentation_models_pytorch", "cityscapesscripts", "tensorboard"),
}

# `--help` of ...      modules, in addition to those of a bare Python     of which
HELP = {
    "":                    (40,  set()),
    "data":                (85,  set()),
    "data check":          (85,  set()),
    "data stats":          (85,  set()),
    "data cache":          (85,  set()),
    "data browse":         (85,  set()),
    "data convert":        (85,  set()),
    "weights":             (100, set()),
    "weights inspect":     (100, set()),
    "weights convert":     (100, set()),
    "weights recalibrate": (100, set()),
    "export":              (100, set()),
    "demo":                (100, set()),
    "reproduce":           (130, set()),
    "study":               (135, set()),
    "doctor":              (160, set()),
    "explain":             (170, set()),
    "benchmark":           (220, {"numpy"}),
    "benchmark score":     (220, {"numpy"}),
    "benchmark compare":   (220, {"numpy"}),
    "infer":               (370, {"numpy", "cv2"}),
    "submission":          (330, {"numpy", "cv2"}),
    "submission make":     (330, {"numpy", "cv2"}),
    "submission check":    (330, {"numpy", "cv2"}),
    "submission score":    (330, {"numpy", "cv2"}),
}  # fmt: skip

_RUN = """
import sys
bare = set(sys.modules)
from segkit.cli import main
code = main(sys.argv[1:])
sys.stderr.write("MODULES " + " ".join(sys.modules.keys() - bare))
sys.exit(code)
"""


def run(*arguments: str) -> tuple[str, set[str]]:
    """What a command prints, and the modules that it imported; it must succeed."""
    done = subprocess.run([sys.executable, "-c", _RUN, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout, set(done.stderr.rpartition("MODULES ")[2].split())


@pytest.mark.slow
@pytest.mark.parametrize("command", HELP)
def test_help(command: str) -> None:
    most, needed = HELP[command]
    printed, modules = run(*command.split(), "--help")
    assert printed.startswith(f"usage: segkit {command or 'COMMAND'} ")
    assert modules & (HEAVY | {"numpy", "cv2"}) == needed
    assert len(modules) <= most, sorted(modules)


@pytest.mark.slow
def test_infer(tmp_path: Path) -> None:
    """PyTorch and nothing of its compiler, which torchvision drags in: half of the time that it takes to start."""
    network = DeepLabV3("resnest14_tiny", num_classes=4)
    space = LabelSpace(("road", "tree", "sky", "car"), distinct_palette(4), identity_table(4))
    write_checkpoint(tmp_path / "tiny.ckpt", network, space)
    write_png(tmp_path / "a.png", np.zeros((20, 30, 3), np.uint8))
    files = [str(tmp_path / name) for name in ("a.png", "tiny.ckpt", "out")]
    _, modules = run("infer", files[0], "--checkpoint", files[1], "--output", files[2], "--device", "cpu")
    assert modules & (HEAVY | {"sympy", "torch._dynamo", "torch._inductor"}) == {"torch"}
    assert len(modules) <= 1440, len(modules)
