"""Temporary names beside the files that they become, and what processes that were killed have left under such names."""

import os
import platform
import re
import time
import uuid
import zlib
from contextlib import suppress
from functools import cache
from pathlib import Path

_TEMPORARY = re.compile(r"\..+\.(?P<place>[0-9a-f]{8})\.(?P<pid>\d+)\.[0-9a-f]{8}\.tmp")
_DAY = 24 * 60 * 60.0  # seconds
_cleaned: set[Path] = set()  # folders in which this process has removed what others left


def temporary_name(target: Path) -> Path:
    """A name in the folder of `target` that says which process writes it, where others cannot tell by themselves.

    What processes that were killed have left in that folder is removed when this one first asks for a name there.
    """
    folder = target.parent.absolute()
    if folder not in _cleaned:
        _cleaned.add(folder)
        remove_left_behind(folder)
    return target.with_name(f".{target.name}.{_place()}.{os.getpid()}.{uuid.uuid4().hex[:8]}.tmp")


def remove_left_behind(folder: Path, all_of_them: bool = False) -> None:
    """Remove the files of `temporary_name` in a folder that nobody will rename: their processes are dead.

    A process is looked for where its number means something, on this machine and in this container; a file of another
    one goes when it is older than a day.

    Args:
        folder: It need not exist.
        all_of_them: Nobody else writes here.
    """
    for path in folder.glob(".*.tmp"):
        found = _TEMPORARY.fullmatch(path.name)
        if found is not None and (all_of_them or _is_left_behind(path, found["place"], int(found["pid"]))):
            with suppress(OSError):  # another process was faster, or may and this one may not
                path.unlink()


def _is_left_behind(path: Path, place: str, pid: int) -> bool:
    if place == _place():
        return not _is_alive(pid)
    with suppress(OSError):
        return time.time() - path.stat().st_mtime > _DAY
    return False


def _is_alive(pid: int) -> bool:
    if os.name != "posix":  # where signal 0 is not a question
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is another user's
        return True
    return True


@cache
def _place() -> str:
    """Eight letters for this machine and, in a container, its numbering of processes."""
    try:
        numbering = os.readlink("/proc/self/ns/pid")
    except OSError:
        numbering = ""
    return f"{zlib.crc32(f'{platform.node()} {numbering}'.encode()):08x}"
