"""Handles other people's paths: what is in a folder, what can be read as a file, and which names lead outside."""

import errno
import os
import re
import stat
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

from segkit.errors import InputError, printable

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".npy")
EXPORTED_SUFFIXES = (".onnx", ".xml", ".pt2")  # of the files that `segkit export` writes for other runtimes

# Names that file servers and systems write into any folder, besides hidden files.
_NO_DATA = {"@eadir", "@recycle", "#recycle", "$recycle.bin", "__macosx", "system volume information", "lost+found"}
_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
_DRIVE = re.compile(r"[A-Za-z]:")
_ADDRESS = re.compile(r"(?!(rtsps?|rtmp|udp|tcp|srt)://)[a-z][a-z0-9+.-]+(::|://)")  # streams are videos


class Address(str):
    """Where files are, as fsspec takes it: `s3://bucket/images`, `zip://::images.zip`."""


def path_or_address(text: str) -> "Path | Address":
    """What a user gives for a place: with `://` an address, otherwise a path."""
    return Address(text) if "://" in text and _ADDRESS.match(text) else Path(text)


def cache_folder() -> Path:
    """The folder that segkit keeps between runs: $SEGKIT_CACHE, or ~/.cache/segkit."""
    return Path(os.environ.get("SEGKIT_CACHE") or "~/.cache/segkit").expanduser()


def is_exported(path: str | Path) -> bool:
    """Whether a file's name says that it is for another runtime than segkit."""
    return Path(path).suffix.lower() in EXPORTED_SUFFIXES


def looked_for(path: Path) -> str:
    """Say, for a message about a missing relative path, where it was looked for; "" for an absolute one."""
    if path.is_absolute():
        return ""
    return f" (looked for {path.absolute()}: a relative path begins at the folder in which segkit is run)"


def walk_files(
    folder: Path, suffixes: Sequence[str] = (), failed: Callable[[Path, InputError], None] | None = None
) -> list[Path]:
    """List everything but folders, anywhere below a folder, in the order of the paths.

    Names that match `is_left_out`, and all below them, are left out. Links to folders are followed: each folder is
    entered once, by its own name rather than a link's, and a link to a folder that contains it is left out.

    Args:
        folder: Where to begin; it may be hidden, or a link.
        suffixes: Suffixes to include, in lower case, whatever the case of the files'; all if none is given.
        failed: Called for each folder that cannot be read and each name that is not UTF-8, after which the walk
            continues; without it, the first one is raised.

    Raises:
        InputError: There is no such folder, or something failed and `failed` is not given.
    """
    walk = _Walk(tuple(suffixes), failed or raise_error)
    walk.tree(folder, ())
    while walk.links:  # after all real folders, so that files with real names are found by them
        walk.tree(*walk.links.popleft())
    return sorted(walk.found)


class _Walk:
    """The state of one walk: the paths found, the real folders entered, and the links to folders set aside."""

    def __init__(self, suffixes: tuple[str, ...], failed: Callable[[Path, InputError], None]) -> None:
        self._suffixes, self._failed = suffixes, failed
        self.found: list[Path] = []
        self.links: deque[tuple[Path, tuple[Path, ...]]] = deque()
        self._entered: set[Path] = set()

    def tree(self, top: Path, holders: tuple[Path, ...]) -> None:
        """Enter a folder and the real ones below it; `holders` are the real folders of the links that led to it."""
        real_top = Path(os.path.realpath(top))
        if any(real_top == holder or real_top in holder.parents for holder in holders):
            return
        folders = [(top, real_top)]
        while folders:
            here, real = folders.pop()
            if real in self._entered:
                continue
            self._entered.add(real)
            for entry in self._entries(here):
                path = here / entry.name
                if not os.path.isdir(path):  # not the entry's own is_dir, which raises for a link to itself
                    self.found.append(path)
                elif entry.is_symlink():
                    self.links.append((path, (*holders, real)))
                else:
                    folders.append((path, real / entry.name))

    def _entries(self, folder: Path) -> list["os.DirEntry[str]"]:
        try:
            with os.scandir(folder) as entries:
                wanted = sorted(filter(self._is_wanted, entries), key=lambda entry: entry.name)
        except OSError as error:
            self._failed(
                folder,
                InputError(f"{shown(folder)}: cannot read this folder ({error.strerror}); check its permissions"),
            )
            return []
        return [entry for entry in wanted if self._is_text(folder / entry.name)]

    def _is_wanted(self, entry: "os.DirEntry[str]") -> bool:
        if is_left_out(entry.name):
            return False
        return not self._suffixes or entry.name.lower().endswith(self._suffixes) or os.path.isdir(entry)

    def _is_text(self, path: Path) -> bool:
        try:
            _check_text(path)
        except InputError as error:
            self._failed(path, error)
            return False
        return True


def is_left_out(name: str) -> bool:
    """Whether a file or folder of this name is not data: hidden, or written by a file server or system."""
    return name.startswith(".") or name.lower() in _NO_DATA


def leads_outside(name: str) -> bool:
    """Whether a name in a list or archive, parts joined by '/', may lead out of the folder to which it is relative.

    This covers any system: absolute paths, "..", drives and backslashes.
    """
    steps_up = any(part.strip() == ".." for part in name.split("/"))
    return steps_up or name.startswith("/") or "\\" in name or "\0" in name or _DRIVE.match(name) is not None


def check_regular(path: Path) -> None:
    """Refuse what exists but can be read neither as a file nor as a folder: opening a pipe would block forever.

    Raises:
        InputError: It is a pipe, a socket, a device or a dangling link, or its name is not UTF-8.
    """
    _check_text(path)
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise InputError(f"{path}: is a link that leads to itself; remove it") from None
        if error.errno == errno.ENOENT and os.path.islink(path):
            target = shown(os.readlink(path))
            raise InputError(f"{path}: is a link to {target}, which is not there; correct the link") from None
        return  # its reader says what is wrong
    if stat.S_IFMT(mode) in _KINDS:
        raise InputError(f"{path}: is {_KINDS[stat.S_IFMT(mode)]}, not a file; remove it, or give a file")


def read_file(path: Path) -> bytes:
    """The content of a file.

    Raises:
        InputError: It is not a regular file; see `check_regular`.
        OSError: It is missing, a folder, or cannot be read.
    """
    check_regular(path)
    return path.read_bytes()


def shown(path: str | os.PathLike[str]) -> str:
    r"""A path as messages show it, with bytes that are not UTF-8 or not printable as `\xff`."""
    return printable(os.fsencode(path).decode("utf-8", "backslashreplace"))


def _check_text(path: Path) -> None:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise InputError(f"{shown(path)}: this name is not UTF-8; rename it") from None


def raise_error(path: Path, error: Exception) -> None:
    """What is done with a path that failed where nobody else takes care of it: the error is raised."""
    raise error
