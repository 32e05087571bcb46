"""Files by fsspec's addresses (`s3://bucket/images`, `zip://::images.zip`): the border to fsspec and its file systems.

Failures that may pass are tried again; a final one is an `InputError`, or a `PlaceError` where the whole place fails.
The classes of errors differ by file system: botocore's and aiohttp's are no `OSError`.
"""

import logging
import os
import shutil
import tarfile
import threading
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from fsspec.archive import AbstractArchiveFileSystem
from fsspec.core import strip_protocol, url_to_fs
from fsspec.implementations.local import LocalFileSystem

from segkit.errors import InputError, one_line
from segkit.files import check_writable, replacing, write_bytes, write_new
from segkit.paths import IMAGE_SUFFIXES, check_regular, is_left_out

_log = logging.getLogger(__name__)

WAITS = (1.0, 4.0, 16.0)  # seconds before another try

_LARGEST = 1 << 30  # bytes of a member of an archive, which may claim to be small and become large
_DAMAGED = (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, NotImplementedError)
_ABSENT = (FileNotFoundError, IsADirectoryError, NotADirectoryError)
_OPENING = threading.Lock()  # `lru_cache` lets threads that come together open one each
_SYSTEMS = 64  # that are kept, as each zip of a list is one


class PlaceError(InputError):
    """A file system fails or refuses, so that nothing else can be read or written there either."""


class RefusedError(InputError):
    """One file is missing, or must not be read."""


class Bucket:
    """A folder, or a file, by address.

    Args:
        address: As fsspec takes it, or a path. The credentials are those of its file system (`~/.aws`, ...).

    Attributes:
        address: The same, without a final slash.

    Raises:
        InputError: There is no such file system, or its package is missing.
    """

    def __init__(self, address: str) -> None:
        try:
            self._fs, root = url_to_fs(address)
        except Exception as error:
            raise InputError(f"{address}: cannot be opened ({_words(error)}); install that, or check it") from error
        _check_chain(self._fs, address)
        self._root: str = root.rstrip("/") or root
        self._chain = "".join(address.partition("::")[1:])
        self._is_local = isinstance(self._fs, LocalFileSystem)
        self.address = self._address(self._root)

    def check_writable(self) -> None:
        """Raise `InputError` if nothing can be written here, as far as that is known without trying."""
        if isinstance(self._fs, AbstractArchiveFileSystem):
            raise InputError(f"{self.address}: archives are only read; give --output a folder")
        if self._is_local:
            check_writable(Path(self._root))

    def images(self, leave_out: str) -> Iterator[str]:
        """The addresses of all images below, folder by folder in the order of their names; one folder's are held.

        Hidden names, and those of file servers, are left out, and so are links to folders.

        Args:
            leave_out: The address of a folder that is passed over.

        Raises:
            InputError: There is nothing here.
            PlaceError: It cannot be listed.
        """
        folders = [self._root]
        while folders:
            entries = self._listed(folder := folders.pop())
            for name, kind in entries:
                if kind != "directory" and (name == self._root or name.lower().endswith(IMAGE_SUFFIXES)):
                    yield self._address(name)
            below = [name for name, kind in entries if kind == "directory" and self._address(name) != leave_out]
            folders += [name for name in reversed(below) if name != folder]

    def _listed(self, folder: str) -> list[tuple[str, str]]:
        try:
            found = _asked(self._address(folder), self._fs.ls, folder, detail=True)
        except _ABSENT as error:
            raise InputError(f"{self._address(folder)}: no such place; check the address") from error
        self._fs.invalidate_cache(folder)  # which would keep each name
        entries = ((entry["name"].rstrip("/"), entry) for entry in found)
        return sorted(
            (name, entry["type"])
            for name, entry in entries
            if name == self._root
            or not (is_left_out(name.rpartition("/")[2]) or (entry["type"] == "directory" and entry.get("islink")))
        )

    def _address(self, name: str) -> str:
        return name if self._is_local else f"{self._fs.unstrip_protocol(name)}{self._chain}"

    def _below(self, name: str, call: Callable[..., Any], *args: object, **how: object) -> Any:
        """What a call gives for a file below; raises `PlaceError`, or that there is none."""
        return _asked(self.at(name), call, f"{self._root}/{name}", *args, **how)

    def at(self, name: str) -> str:
        """The address of a file below."""
        return self._address(f"{self._root}/{name}")

    def get(self, name: str) -> bytes | None:
        """The content of a file below; None if there is none. Raises `PlaceError`, as all that follow."""
        with suppress(*_ABSENT):
            return bytes(self._below(name, self._fs.cat_file))
        return None

    def put(self, name: str, source: Path) -> None:
        """Copy a local file to one below, whole: a bucket shows an object, and a disk a file, once it is complete."""
        if self._is_local:
            with replacing(f"{self._root}/{name}") as new, source.open("rb") as old, new.open("wb") as copy:
                shutil.copyfileobj(old, copy)  # not `copyfile`: its error names the source where the disk is full
        else:
            self._below(name, lambda target: self._fs.put_file(str(source), target))

    def write(self, name: str, data: bytes, only_new: bool = False) -> bool:
        """Write a small file below; whether it was, which it is not where `only_new` and it exists.

        Raises:
            InputError: There is no such bucket.
        """
        if self._is_local and not only_new:
            write_bytes(f"{self._root}/{name}", data)
            return True
        try:
            if self._is_local:
                return write_new(Path(self._root, name), data)
            if self._root.startswith("/"):  # others have no folders, and would create a bucket
                self._below(name.rpartition("/")[0], self._fs.makedirs, exist_ok=True)
            self._below(name, self._fs.pipe_file, data, mode="create" if only_new else "overwrite")
        except FileExistsError:
            return False
        except FileNotFoundError as error:
            raise InputError(
                f"{self.address}: no such bucket ({_words(error)}); create it, or check the name"
            ) from error
        return True

    def names(self, folder: str) -> list[str]:
        """The names in a folder below, in order; none if there is no such folder."""
        with suppress(*_ABSENT):
            return sorted(name.rpartition("/")[2] for name in self._below(folder, self._fs.ls, detail=False))
        return []


class Remote:
    """A file by address, as `segkit.io` reads it, once; its `str` is the address."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._content: bytes | None = None  # no cached_property, whose lock in Python 3.11 is one for all files

    def __str__(self) -> str:
        """The address."""
        return self._address

    def read_bytes(self) -> bytes:
        """The content.

        Raises:
            InputError: It is damaged in its archive, or no file that can be read.
            RefusedError: It is missing, or must not be read.
            PlaceError: Its file system fails.
        """
        self._content = self._read() if self._content is None else self._content
        return self._content

    def _read(self) -> bytes:
        first, _, chain = self._address.partition("::")
        try:
            with _OPENING:
                fs, alone = _system(first.partition("://")[0] if "://" in first else "", chain)
            _check_chain(fs, self._address)
            if isinstance(fs, LocalFileSystem):
                check_regular(Path(strip_protocol(first)))
            with alone:
                if isinstance(fs, AbstractArchiveFileSystem) and fs.size(first) > _LARGEST:
                    raise InputError(f"{self}: more than {_LARGEST} bytes; unpack it")
                return bytes(_tried(fs.cat_file, first))
        except InputError:
            raise
        except _ABSENT as error:
            raise RefusedError(f"{self}: no such image; check the list") from error
        except PermissionError as error:
            raise RefusedError(f"{self}: must not be read ({_words(error)}); change its permissions") from error
        except _DAMAGED as error:
            raise InputError(f"{self}: damaged in its archive ({_words(error)}); copy that again") from error
        except Exception as error:
            raise _failure(str(self), error) from error


def read_lines(address: str) -> Iterator[str]:
    """The lines of a UTF-8 text, one after another, without those that are empty.

    Raises:
        InputError: It cannot be read.
    """
    try:
        fs, path = url_to_fs(address)
        with fs.open(path, "rb") as file:
            for line in file:
                if text := line.decode("utf-8-sig").strip("\r\n"):
                    yield text
    except UnicodeDecodeError as error:
        raise InputError(f"{address}: is not UTF-8; write it as such") from error
    except Exception as error:
        raise InputError(f"{address}: cannot be read ({_words(error)}); give a list, one address a line") from error


@lru_cache(_SYSTEMS)
def _system(protocol: str, chain: str) -> tuple[Any, AbstractContextManager[object]]:
    """One file system for all threads, and what keeps those apart that read an archive, whose place they share.

    fsspec itself would make one, with its connections, for each thread.
    """
    address = f"{protocol}://{f'::{chain}' if chain else ''}" if protocol else os.curdir
    # s3fs asks for the size of a file that it might read in pieces: two requests for each image.
    how = {"s3": {"max_concurrency": 1}} if "s3://" in address else {}
    try:
        fs, _ = url_to_fs(address, **how)
    except ValueError as error:
        raise InputError(f"{address}: is no address ({one_line(error)}); check the list") from error
    return fs, threading.Lock() if isinstance(fs, AbstractArchiveFileSystem) else nullcontext()


def _check_chain(fs: object, address: str) -> None:
    """Refuse what fsspec chains but archives: others, such as caches, name their files in their own ways."""
    if "::" in address and not isinstance(fs, AbstractArchiveFileSystem):
        raise InputError(f"{address}: only archives are read through `::` (zip://..., tar://...); leave it out")


def _tried(
    call: Callable[..., Any],
    *args: object,
    failed: Callable[[Exception, float], None] = lambda error, wait: None,
    **how: object,
) -> Any:
    """What a call gives, tried again after each of `WAITS` where it fails for a reason that may pass."""
    for wait in WAITS:
        try:
            return call(*args, **how)
        except (InputError, FileExistsError, PermissionError, *_ABSENT, *_DAMAGED):
            raise
        except Exception as error:
            failed(error, wait)
            time.sleep(wait)
    return call(*args, **how)


def _asked(address: str, call: Callable[..., Any], *args: object, **how: object) -> Any:
    """The same, with words on each failure; raises `PlaceError`, or that something exists or is missing."""

    def again(error: Exception, wait: float) -> None:
        _log.warning("%s: fails (%s); tried again in %g s", address, _words(error), wait)

    try:
        return _tried(call, *args, failed=again, **how)
    except (InputError, FileExistsError, *_ABSENT):
        raise
    except Exception as error:
        raise _failure(address, error) from error


def _failure(address: str, error: Exception) -> PlaceError:
    what = "refuses access" if isinstance(error, PermissionError) else "fails"
    return PlaceError(f"{address}: {what} ({_words(error)}); check address, credentials and network, and run it again")


def _words(error: BaseException) -> str:
    return f"{type(error).__name__}: {one_line(error)}"
