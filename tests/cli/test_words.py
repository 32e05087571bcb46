"""Names of classes and files that would steer a terminal are printed as escapes, by every command that prints them."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from segkit.cli import main
from segkit.errors import printable
from segkit.files import write_text
from segkit.io import write_png
from segkit.metadata.label_space import LabelSpace, distinct_palette, identity_table

EVIL = "\x1b]0;mine\x07"
SHOWN = r"\x1b]0;mine\x07"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Classes and images with escapes in their names; a mask is absent, and another one has an undeclared value."""
    root = tmp_path / "data"
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for i in range(3):
            name = f"{split}/{i}{EVIL}\nsegkit: all is well.png"
            write_png(root / f"images/{name}", rng.integers(0, 256, (8, 12, 3), np.uint8))
            write_png(root / f"labels/{name}", np.resize(np.array([0, 1, 2, 5 * (i == 2)], np.uint8), (8, 12)))
        (root / f"labels/{split}/0{EVIL}\nsegkit: all is well.png").unlink()
    write_text(root / "classes.txt", f"road\ntree{EVIL}\nboat\u202etaob\n")
    return root


def assert_harmless(text: str) -> None:
    allowed = re.sub(r"\x1b\[A", "", text)  # by which tqdm moves to another bar
    assert not set(map(chr, range(32))) - {"\n", "\r"} & set(allowed), repr(text)
    assert "\x1b" not in allowed and "\u202e" not in text and "\nsegkit: all is well" not in text


def test_every_command_escapes_them(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found, sheet = tmp_path / "found", tmp_path / "sheet.html"
    for path in (root / "images/val").iterdir():
        write_png(found / path.name, np.resize(np.array([0, 1, 2, 2], np.uint8), (8, 12)))
    write_png(found / f"lone{EVIL}.png", np.zeros((8, 12), np.uint8))
    score = ["benchmark", "score", str(found), str(root / "labels/val"), "--labels", str(root), "--metric", "all"]
    commands: list[tuple[list[str], int, str]] = [
        (["data", "check", "folder", str(root)], 1, f"tree{SHOWN}"),
        (["data", "stats", "folder", str(root)], 2, SHOWN),
        (["data", "browse", "folder", str(root), "--output", str(sheet)], 2, SHOWN),
        ([*score, "--plot", "--bootstrap", "5", "--output", str(tmp_path / "r.json")], 1, f"tree{SHOWN}"),
        (["submission", "make", "ade20k", str(found), "-o", str(tmp_path / f"{EVIL}.zip")], 2, "no label map"),
        ([f"fi{EVIL}"], 2, SHOWN),
    ]
    for arguments, code, shown in commands:
        assert main(arguments) == code, arguments
        said = capsys.readouterr()
        assert_harmless(said.out), assert_harmless(said.err)
        assert shown in said.out + said.err, arguments
    assert json.loads((tmp_path / "r-partial.json").read_text())["classes"][1]["name"] == f"tree{SHOWN}"


def test_a_sheet_of_good_files_escapes_them_too(root: Path, tmp_path: Path, capsys) -> None:
    for kind in ("images", "labels"):
        for path in (root / kind).rglob("[02]*.png"):
            path.unlink()
    sheet = tmp_path / "sheet.html"
    assert main(["data", "browse", "folder", str(root), "--output", str(sheet)]) == 0
    page = sheet.read_text()
    assert "\x1b" not in page and f"tree{SHOWN}" in page and rf"1{SHOWN}\nsegkit" in page
    said = capsys.readouterr()
    assert_harmless(said.out), assert_harmless(said.err)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("Gebäude, 建物, \u3000 👩\u200d👧", "Gebäude, 建物, \u3000 👩\u200d👧"),
        ("a\x1b[2Jb\r\n\x9bc\x7f", r"a\x1b[2Jb\r\n\x9bc\x7f"),
        ("\u202eabc\u2028", r"\u202eabc\u2028"),
        (b"caf\xe9.png".decode("utf-8", "surrogateescape"), r"caf\udce9.png"),
    ],
)
def test_what_is_escaped(text: str, wanted: str) -> None:
    assert printable(text) == wanted


def test_a_label_space_holds_names_that_can_be_printed() -> None:
    names = (f"a{EVIL}", "b\nc")
    space = LabelSpace(names, distinct_palette(2), identity_table(2))
    assert space.class_names == (f"a{SHOWN}", r"b\nc")
    assert LabelSpace.from_dict(space.to_dict()) == space
