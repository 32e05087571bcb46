"""Writes each file under a temporary name in the same folder, then renames it, so that no run leaves half a file.

It also refuses, before work is spent on it, a file that cannot be written or must not be replaced.
"""

import errno
import json
import os
import platform
import re
import shutil
import time
import uuid
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from segkit.errors import InputError

# errno               why a file cannot be written, and what to do
_REFUSALS = {
    errno.ENOSPC:       "the disk is full; free some of it, or name a place on another one",
    errno.EDQUOT:       "the disk quota is used up; free some of it, or name a place on another disk",
    errno.EFBIG:        "the file is larger than this disk, or this process (ulimit -f), may have; name another place",
    errno.EROFS:        "the disk is read-only; name a place on another one",
    errno.EIO:          "the disk fails (input/output error); name a place on another one",
    errno.EACCES:       "no permission; change it, or name another place",
    errno.EPERM:        "not permitted; change that, or name another place",
    errno.ENOTDIR:      "a part of this path is a file, not a folder; name another place",
    errno.EEXIST:       "a part of this path is a file, not a folder; name another place",
    errno.EISDIR:       "is a folder; name a file",
    errno.ENAMETOOLONG: "the name is too long; give a shorter one",
    errno.EMFILE:       "too many files are open; raise the limit (ulimit -n)",
    errno.ENFILE:       "too many files are open on this machine; close some",
}  # fmt: skip
_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)  # whatever is written where
# The words of PyTorch and safetensors, which raise no OSError.
_NOT_TAKEN = re.compile(r"PytorchStreamWriter|file write failed|unexpected pos")
_OS_ERROR = re.compile(r"os error (\d+)")

_TEMPORARY = re.compile(r"\..+\.(?P<place>[0-9a-f]{8})\.(?P<pid>\d+)\.[0-9a-f]{8}\.tmp")
_DAY = 24 * 60 * 60.0  # seconds
_cleaned: set[Path] = set()  # folders in which this process has removed what others left


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write UTF-8 text atomically, creating the folder."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: str | os.PathLike[str], obj: object) -> None:
    """Write `obj` as indented JSON atomically, creating the folder."""
    write_text(path, json.dumps(obj, indent=2, ensure_ascii=False) + "\n")


def parse_json(text: str | bytes) -> Any:
    """The content of a JSON text.

    Raises:
        ValueError: The text is not JSON, or nested too deeply; the caller knows the file's name.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("lists or mappings are too deep inside each other") from None


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write bytes atomically, creating the folder."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_new(path: Path, data: bytes) -> bool:
    """The same if there is no such file; whether there was none. Unlike one opened with "x", it is never seen half."""
    write_bytes(whole := temporary_name(path), data)
    try:
        os.link(whole, path)
    except FileExistsError:
        return False
    except OSError:  # a disk without links, as FAT is
        if path.exists():
            return False
        os.replace(whole, path)
    finally:
        whole.unlink(missing_ok=True)
    return True


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary name in the folder of `path` (created if missing); rename it to `path` if nothing is raised.

    Raises:
        InputError: The file cannot be written, for example on a full or read-only disk; `path` keeps its content.
    """
    target = Path(path)
    # Not tempfile: its 0600 mode would survive the rename.
    temporary = temporary_name(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)  # by the umask, whatever mode the writer chose: safetensors makes it 0600
        os.replace(temporary, target)
    except Exception as error:  # libraries raise errors of their own for a full disk
        of_this = getattr(error, "filename", None) in (None, str(temporary), *map(str, (target, *target.parents)))
        refusal = write_refusal(error, target) if of_this else None
        if refusal is None:
            raise
        raise refusal from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_refusal(error: BaseException, path: str | os.PathLike[str] | None = None) -> InputError | None:
    """Turn an error of the file system, or of a library that met one, into one line.

    Args:
        error: An error of the system, `torch.save` or safetensors.
        path: The file that was being written; None means the one that the error names.

    Returns:
        The one-line error; None if `error` is about something else.
    """
    if isinstance(error, InputError):
        return None
    name = path if path is not None else getattr(error, "filename", None)
    number = _number(error)
    if number not in _REFUSALS or (name is None and number not in _OF_THE_DISK):
        return None
    return InputError(f"{'a file' if name is None else os.fspath(name)}: cannot be written: {_REFUSALS[number]}")


def _number(error: BaseException) -> int | None:
    """The errno of the first system error behind `error`."""
    cause: BaseException | None = error
    while cause is not None:
        said = _OS_ERROR.search(str(cause))
        if isinstance(cause, OSError) and cause.errno is not None:
            return cause.errno
        if said is not None:
            return int(said.group(1))
        cause = cause.__cause__ or cause.__context__
    return errno.ENOSPC if _NOT_TAKEN.search(str(error)) else None


def check_new_file(path: Path, force: bool) -> None:
    """Refuse, before work is spent on it, a file that exists (unless `force`) or that cannot be written.

    Raises:
        InputError: The file exists or cannot be written; says which.
    """
    if path.is_dir():
        raise InputError(f"{path}: is a folder; name a file in it")
    if path.exists() and not force:
        raise InputError(f"{path}: exists already; give another name, or --overwrite to replace it")
    check_writable(path.absolute().parent)


def check_writable(folder: Path, option: str = "--output") -> None:
    """Refuse an output folder that cannot be created or written; nothing is created.

    Args:
        folder: The folder for results.
        option: The option that names another folder.

    Raises:
        InputError: The folder cannot be used; says why.
    """
    existing = nearest_existing(folder)
    if not existing.is_dir():
        raise InputError(f"{existing}: is a file, so {folder} cannot be an output folder; give another {option}")
    if not os.access(existing, os.W_OK | os.X_OK):
        why = "the disk is read-only" if _is_read_only(existing) else "no permission to write here"
        raise InputError(f"{existing}: {why}; give another {option}")
    disk = shutil.disk_usage(existing)
    if disk.total and disk.used >= disk.total:
        raise InputError(f"{existing}: the disk is full; free some of it, or give another {option}")


def nearest_existing(path: Path) -> Path:
    """`path`, absolute, or its nearest existing parent if it does not exist yet."""
    return next(place for place in (path.absolute(), *path.absolute().parents) if place.exists())


def _is_read_only(folder: Path) -> bool:
    return hasattr(os, "statvfs") and bool(os.statvfs(folder).f_flag & os.ST_RDONLY)


def free_path(path: Path) -> Path:
    """`path`, or with -2, -3, ... before its suffix if it exists, so that nothing is overwritten."""
    free, number = path, 1
    while free.exists():
        number += 1
        free = path.with_name(f"{path.stem}-{number}{path.suffix}")
    return free


def temporary_name(target: Path) -> Path:
    """A name in the folder of `target` that tells other processes who writes it.

    When this process first asks for a name in a folder, files left there by killed processes are removed.
    """
    folder = target.parent.absolute()
    if folder not in _cleaned:
        _cleaned.add(folder)
        remove_left_behind(folder)
    return target.with_name(f".{target.name}.{_place()}.{os.getpid()}.{uuid.uuid4().hex[:8]}.tmp")


def remove_left_behind(folder: Path, all_of_them: bool = False) -> None:
    """Remove the files of `temporary_name` in a folder whose processes are dead, so that nobody will rename them.

    Whether a process lives is known only on this machine and in this container; files of other ones are removed once
    they are older than a day.

    Args:
        folder: The folder; it need not exist.
        all_of_them: Whether to remove all of them, because nobody else writes here.
    """
    for path in folder.glob(".*.tmp"):
        found = _TEMPORARY.fullmatch(path.name)
        if found is not None and (all_of_them or _is_left_behind(path, found["place"], int(found["pid"]))):
            with suppress(OSError):  # another process was faster, or this one lacks permission
                path.unlink()


def _is_left_behind(path: Path, place: str, pid: int) -> bool:
    if place == _place():
        return not _is_alive(pid)
    with suppress(OSError):
        return time.time() - path.stat().st_mtime > _DAY
    return False


def _is_alive(pid: int) -> bool:
    if os.name != "posix":  # signal 0 does not just ask there
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's process
        return True
    return True


@cache
def _place() -> str:
    """Eight characters that identify this machine and, in a container, its process numbering."""
    try:
        numbering = os.readlink("/proc/self/ns/pid")
    except OSError:
        numbering = ""
    return f"{zlib.crc32(f'{platform.node()} {numbering}'.encode()):08x}"
