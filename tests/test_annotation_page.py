"""docs/annotation.md, Annotate, train, correct, train again: its commands on drawn images, corrected by the truth."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segkit.cli import main
from segkit.formats.base import Labelled, rasterized
from segkit.formats.names import read_annotations, writer_of
from segkit.io import read_label
from segkit.metadata.label_space import LabelSpace, distinct_palette, identity_table
from segkit.models.weights import read_checkpoint

PAGE = (Path(__file__).parents[1] / "docs/annotation.md").read_text(encoding="utf-8")
SECTION = PAGE.split("\n## Annotate, train, correct, train again\n")[1].split("\n## ")[0]
FIRST, SECOND = (block.splitlines() for block in re.findall(r"```sh\n(.*?)```", SECTION, re.DOTALL))
SMALL = shlex.split("--config overlays/smoke --data.crop_size 32 --data.base_size 48 --trainer.logger false")
STILL = ["--model.optim.lr", "1e-12"]  # what is trained then is what training began with
SPACE = LabelSpace(("grass", "path"), distinct_palette(2), identity_table(2))
COLOURS = np.array([(10, 200, 30), (40, 50, 60)], np.uint8)


def draw(folder: str, numbers: range) -> dict[str, np.ndarray]:
    """Images of two classes in a folder, and their true masks."""
    rng, truth = np.random.default_rng(numbers.start), {}
    Path(folder).mkdir()
    for i in numbers:
        mask = (rng.random((5, 6)) < 0.5).repeat(8, 0).repeat(8, 1).astype(np.uint8)  # (40, 48)
        truth[f"image_{i:02}"] = mask
        Image.fromarray(COLOURS[mask]).save(f"{folder}/image_{i:02}.jpg")
    return truth


def export(path: str, truth: dict[str, np.ndarray]) -> None:
    writer_of("cvat")([Labelled(f"{name}.jpg", mask) for name, mask in truth.items()], Path(path), SPACE, 0.0)


def follow(command: str, *options: str) -> None:
    _, *args = shlex.split(command)
    assert main([*args, *(SMALL if args[0] == "fit" else ()), *options]) == 0, args


@pytest.mark.slow
def test_the_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    first, others = draw("photos", range(24)), draw("unlabelled", range(24, 54))
    Path("classes.txt").write_text("grass\npath\n")
    export("first.zip", first)
    for command in FIRST:
        follow(command)

    uncertain = [Path(line).stem for line in Path("out/uncertain.txt").read_text().splitlines()]
    proposed = read_annotations("cvat", Path("out/cvat.zip"))
    made = {Path(image.name).stem: rasterized(image, None, {"grass": 0, "path": 1})[0] for image in proposed.images}
    assert len(uncertain) == 20 and made.keys() == set(uncertain) <= others.keys()
    assert all(mask.shape == (40, 48) and mask.max() <= 1 for mask in made.values())

    export("corrected.zip", {name: others[name] for name in made})
    follow(SECOND[0])
    follow(SECOND[1], *STILL)
    masks = {path.stem: read_label(path) for path in Path("my_images/labels").iterdir()}
    expected = first | {name: others[name] for name in uncertain}
    assert masks.keys() == expected.keys() and all((masks[name] == expected[name]).all() for name in masks)
    assert {path.stem for path in Path("my_images/images").iterdir()} == masks.keys()
    begun, gone_on = (read_checkpoint(f"runs/{run}/checkpoints/last.ckpt").state_dict for run in ("first", "second"))
    kernels = [name for name, value in begun.items() if value.ndim == 4]
    assert all(np.allclose(begun[name], gone_on[name], atol=1e-6) for name in kernels) and kernels
