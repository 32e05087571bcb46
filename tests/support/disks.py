"""Disks that are full, read-only or small; and a limit on the size of files, which needs no right to mount."""

import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def disk(folder: Path, size: str) -> Iterator[Path]:
    """A disk of its own at `folder`, of `size` ("64k"); the test is skipped where nothing may be mounted."""
    folder.mkdir(parents=True, exist_ok=True)
    made = _run("mount", "-t", "tmpfs", "-o", f"size={size}", "segkit-test", str(folder))
    if made.returncode:
        pytest.skip(f"no disk can be mounted here: {made.stderr.decode(errors='replace').strip()}")
    try:
        yield folder
    finally:
        _run("umount", "-l", str(folder))


def make_read_only(folder: Path) -> None:
    """Mount a `disk` again so that nothing can be written to it."""
    assert _run("mount", "-o", "remount,ro", str(folder)).returncode == 0


def fill_up(folder: Path, keep: int = 0) -> None:
    """Leave no byte free but so many, a multiple of 4096."""
    path = folder / "filler"
    with path.open("wb", buffering=0) as file:
        try:
            while file.write(b"x" * 4096):
                pass
        except OSError:
            file.truncate(file.tell() - keep)


@contextmanager
def file_limit(size: int) -> Iterator[None]:
    """No file of this process may become longer than `size` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def _run(*command: str) -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run(command, capture_output=True, check=False)
