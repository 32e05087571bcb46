"""Writing files: each under a temporary name in the same folder, then renamed, so that no run leaves half a file.

And the refusals before work is spent on a file that cannot be written or must not be replaced.
"""

import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from segkit.errors import InputError


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write UTF-8 text atomically; the folder is made."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: str | os.PathLike[str], obj: object) -> None:
    """Write `obj` as indented JSON atomically; the folder is made."""
    write_text(path, json.dumps(obj, indent=2, ensure_ascii=False) + "\n")


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write bytes atomically; the folder is made."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary name in the folder of `path` (which is made) to write to; renamed to `path` if nothing is raised."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    # Not tempfile: its 0600 mode would survive the rename.
    temporary = target.with_name(f".{target.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        yield temporary
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def check_new_file(path: Path, force: bool) -> None:
    """Refuse, before work is spent on it, a file that exists (unless `force`) or that cannot be written.

    Raises:
        InputError: Says which.
    """
    if path.is_dir():
        raise InputError(f"{path}: is a folder; name a file in it")
    if path.exists() and not force:
        raise InputError(f"{path}: exists already; give another name, or --force to replace it")
    check_writable(path.absolute().parent)


def check_writable(folder: Path, option: str = "--output") -> None:
    """Refuse an output folder that cannot be made or written; makes nothing.

    Args:
        folder: It.
        option: What the user changes to name another one.

    Raises:
        InputError: Says why.
    """
    existing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    if not existing.is_dir():
        raise InputError(f"{existing}: is a file, so {folder} cannot be an output folder; give another {option}")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise InputError(f"{existing}: no permission to write here; give another {option}")


def free_path(path: Path) -> Path:
    """`path`, or with -2, -3, ... before its suffix if that exists: what is there is never written over."""
    free, number = path, 1
    while free.exists():
        number += 1
        free = path.with_name(f"{path.stem}-{number}{path.suffix}")
    return free
