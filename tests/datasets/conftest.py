"""The programs in datasets/, loaded by path, and zips in the true layouts made of a few bytes."""

import importlib
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType

import pytest

PROGRAMS = Path(__file__).parents[2] / "datasets"


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """A program as Python finds it when it is run: its own folder comes first."""
    monkeypatch.syspath_prepend(str(PROGRAMS))
    return importlib.import_module


@pytest.fixture
def common(load: Callable[[str], ModuleType]) -> ModuleType:
    return load("prepare_common")


@pytest.fixture
def write_zip() -> Callable[[Path, Mapping[str, bytes]], Path]:
    def write(path: Path, files: Mapping[str, bytes]) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for folder in sorted({f"{name.rpartition('/')[0]}/" for name in files if "/" in name}):
                archive.mkdir(folder)
            for name, data in files.items():
                archive.writestr(name, data)
        return path

    return write


@pytest.fixture
def tree() -> Callable[[Path], dict[str, bytes]]:
    """All files below a folder but the lock; names ending in "/" are empty folders."""

    def read(folder: Path) -> dict[str, bytes]:
        paths = [p for p in folder.rglob("*") if p.name != ".prepare.lock"]
        files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in paths if p.is_file()}
        empty = {f"{p.relative_to(folder).as_posix()}/": b"" for p in paths if p.is_dir() and not any(p.iterdir())}
        return files | empty

    return read
