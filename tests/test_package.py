"""The wheel: what is in it, what it asks for, and that it works in an empty folder without a clone."""

import re
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

from segkit.errors import DISTRIBUTION, install_extra
from segkit.recipes import CONFIGS, own_recipes

REPOSITORY = Path(__file__).parents[1]
PACKAGE = REPOSITORY / "segkit"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the tree by the build backend itself, which is installed: nothing is fetched."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    return path


def test_the_wheel_holds_all_modules_recipes_and_the_mark_of_types(wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    modules = {path.relative_to(REPOSITORY).as_posix() for path in PACKAGE.rglob("*.py")}
    recipes = {f"segkit/configs/{path.relative_to(CONFIGS).as_posix()}" for path in CONFIGS.rglob("*.yaml")}
    page = ("report.html.j2", "report.css", "matrix.js", "images.js", "report.js")
    report = {f"segkit/evaluation/report/{name}" for name in page}
    assert names == modules | recipes | report | {"segkit/py.typed"}


def test_what_the_wheel_says_of_itself(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (path,) = (name for name in archive.namelist() if name.endswith("METADATA"))
        said = Parser().parsestr(archive.read(path).decode())
    assert said["Name"] == DISTRIBUTION
    named = set(re.findall(r"install_extra\(['\"]([\w-]+)", "".join(p.read_text() for p in PACKAGE.rglob("*.py"))))
    assert named and named <= set(said.get_all("Provides-Extra", []))  # what messages tell people to install
    assert all(f"{DISTRIBUTION}[" in install_extra(name) for name in named)
    always = [one for one in said.get_all("Requires-Dist", []) if "extra ==" not in one]
    assert not any(name in " ".join(always) for name in ("tensorboard", "rasterio", "mypy", "pytest>", "resnest"))


def test_an_installed_wheel_finds_its_recipes_in_an_empty_folder(wheel: Path, tmp_path: Path) -> None:
    installed, empty = tmp_path / "site", tmp_path / "empty"
    empty.mkdir()
    zipfile.ZipFile(wheel).extractall(installed)
    code = f"import sys; sys.path.insert(0, {str(installed)!r}); from segkit.cli import main; main(['recipes'])"
    listed = subprocess.run([sys.executable, "-c", code], cwd=empty, check=True, capture_output=True, text=True).stdout
    assert {line.split()[0] for line in listed.splitlines()} == {*own_recipes()}
