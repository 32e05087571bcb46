"""docs/extending.md, followed literally: each section in a folder of its own."""

import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import pytest

from segkit.cli import main
from segkit.models.segmentation import NETWORKS

PAGE = (Path(__file__).parents[1] / "docs/extending.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (.+)\n((?:(?!## ).*\n)*)", PAGE, re.M))
BLOCK = re.compile(r"(?P<above>[^\n]*)\n\n```(?P<kind>\w+)\n(?P<content>.*?)^```", re.M | re.S)


def blocks(section: str) -> Iterator[tuple[str, str, str]]:
    """What the line above a block names first in backticks, the block's kind, and its content."""
    for block in BLOCK.finditer(section):
        named = re.search(r"`([^`]+)`", block["above"])
        yield named[1] if named else "", block["kind"], block["content"]


def run(command: str) -> None:
    program, *args = shlex.split(command)
    if program == "python":
        runpy.run_path(args[0], run_name="__main__")
    else:
        assert program == "segkit", command
        assert main(args) == 0, command


@pytest.mark.slow
@pytest.mark.parametrize("title", SECTIONS)
def test_section(
    title: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    with patch.dict(NETWORKS):  # a network is known from then on
        follow(title, tmp_path, capsys)


def follow(title: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A block `sh` holds commands, `text` what the last ones print among other lines; all others are files."""
    for name, kind, content in blocks(SECTIONS[title]):
        if kind == "sh":
            capsys.readouterr()
            for command in content.splitlines():
                run(command)
            printed = {" ".join(line.split()) for line in capsys.readouterr().out.splitlines()}
        elif kind == "text":
            assert {" ".join(line.split()) for line in content.splitlines()} <= printed
        else:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content, encoding="utf-8")
