"""docs/own-data.md: its five commands on each kind of data in its table, two steps long, on data of a few pixels."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segkit.cli import main

PAGE = (Path(__file__).parents[1] / "docs/own-data.md").read_text(encoding="utf-8")
COMMANDS = re.search(r"```sh\n(.*?)```", PAGE, re.DOTALL)[1].splitlines()
ROWS = dict(re.findall(r"^\| ([^|]+) \| (?:`(--[^|]+)` )?\|$", PAGE, re.MULTILINE))
SMALL = shlex.split("--config overlays/smoke --data.crop_size 32 --data.base_size 48 --trainer.logger false")
COLOURS = np.array([(10, 200, 30), (40, 50, 60)], np.uint8)


def draw(root: Path, kind: str) -> None:
    """Thirty images, darker where the second class is, and masks as a row of the table has them."""
    rng = np.random.default_rng(0)
    is_moved = "gt/a_mask" in kind or kind.startswith("the same")
    images, masks = ("img/{}.jpg", "gt/{}_mask.png") if is_moved else ("images/{}.jpg", "labels/{}.png")
    for i in range(30):
        ids = (rng.random((5, 6)) < 0.5).repeat(8, 0).repeat(8, 1).astype(np.uint8)  # (40, 48)
        image, mask = Image.fromarray(COLOURS[ids]), Image.fromarray(ids)
        if "palette (" in kind:
            mask.putpalette([9, 9, 9, 200, 0, 0])
        elif "255" in kind and "ignored" not in kind:
            mask = Image.fromarray(255 * ids)
        elif "colours" in kind:
            mask = image
        for path, drawn in ((images, image), (masks, mask)):
            (root / path.format(i)).parent.mkdir(parents=True, exist_ok=True)
            drawn.save(root / path.format(i))
    lists = Path("lists") if "elsewhere" in kind else root
    lists.mkdir(exist_ok=True)
    (lists / "classes.txt").write_text("grass\npath\n")
    if "colours" in kind:
        rows = "\n".join(f"{i},,{r},{g},{b}" for i, (r, g, b) in enumerate(COLOURS.tolist()))
        (root / "palette.csv").write_text(f"id,name,r,g,b\n{rows}\n")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ROWS)
def test_five_commands(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    draw(tmp_path / "my_images", kind)
    assert len(COMMANDS) == 5
    for command in COMMANDS:
        _, *args = shlex.split(command)
        if args[0] != "infer":
            args += shlex.split(ROWS[kind])
        if args[0] in ("fit", "test"):
            args += SMALL
        if args[0] == "infer" and (tmp_path / "my_images/img").is_dir():
            args[1] = "my_images/img"
        assert main(args) == 0, args
    assert len(list((tmp_path / "segmented").glob("*_overlay.png"))) == 30
    assert (tmp_path / "sheet.html").is_file()
