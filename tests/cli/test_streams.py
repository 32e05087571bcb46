"""Standard output that is closed, full, or that nobody reads on: one line or none, and no noise at the end."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from segkit.files import write_text
from segkit.io import write_png

SEGKIT = f"{sys.executable} -m segkit"
HELP = ("--help", "--version", "data --help", "benchmark score --help")


def shell(command: str) -> tuple[int, str]:
    """Exit code and standard error of a command of the shell."""
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, text=True, check=False)
    return done.returncode, done.stderr


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("scored")
    for i in range(2):
        for kind in ("truth", "found"):
            write_png(home / kind / f"{i}.png", np.resize(np.arange(100, dtype=np.uint8), (40, 50)))
    write_text(home / "classes.txt", "".join(f"class {i}\n" for i in range(100)))
    return home


def score(folders: Path, output: Path) -> str:
    return f"{SEGKIT} benchmark score {folders}/found {folders}/truth --labels {folders} --metric all --output {output}"


@pytest.mark.parametrize("arguments", HELP)
def test_nobody_reads(arguments: str) -> None:
    code, error = shell(f"{SEGKIT} {arguments} | true")
    assert code in (0, 1, 141) and error == ""  # 1: argparse's own; 0: it was quicker than the other end


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_standard_output_is_one_line() -> None:
    code, error = shell(f"{SEGKIT} --help > /dev/full")
    assert code == 2 and error == (
        "segkit --help: error: standard output: cannot be written: the disk is full; free some of it, or name a place "
        "on another one\n"
    )
    assert shell(f"{SEGKIT} nonsense 2> /dev/full") == (2, "")


def test_a_closed_standard_output_is_no_fault() -> None:
    assert shell(f"{SEGKIT} --help >&-") == (0, "")
    code, error = shell(f"{SEGKIT} nonsense >&- 2>&-")
    assert code == 2 and error == ""


@pytest.mark.slow
def test_a_result_is_kept_where_nobody_reads_on(folders: Path, tmp_path: Path) -> None:
    code, error = shell(f"{score(folders, tmp_path / 'result.json')} | head -c 1 > /dev/null")
    assert code in (0, 141) and "Traceback" not in error and "ignored" not in error
    assert json.loads((tmp_path / "result.json").read_text())["scores"]["mIoU"] == 1
