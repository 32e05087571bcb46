"""The files of a data set, in folders or in the published zip files, which need not be unpacked."""

import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TypeAlias

from segkit.archives import ZipMember, read_members
from segkit.errors import InputError
from segkit.paths import check_regular, is_left_out, walk_files

Source: TypeAlias = Path | ZipMember


def size_of(file: Source) -> int:
    """Size of the file's content in bytes."""
    return file.size if isinstance(file, ZipMember) else _stat(file).st_size


def fingerprint(file: Source) -> tuple[str, int, int]:
    """What identifies a file: its name, size, and modification time in ns (in a zip: its CRC-32)."""
    if isinstance(file, ZipMember):
        return str(file.archive.absolute()) + "/" + file.name, file.size, file.crc
    stat = _stat(file)
    return str(file.absolute()), stat.st_size, stat.st_mtime_ns


def _stat(file: Path) -> os.stat_result:
    check_regular(file)
    try:
        return file.stat()
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror}); check that it is there") from error


class Files:
    """The files below a data set's root: unpacked files first, then members of its archives.

    Nothing is read before it is needed.

    Args:
        root: A folder, or one of the archives itself.
        archives: File names of the zips that the data set is published as; those in `root` are searched.
        homes: Folders, below root or inside the archives, in which paths may begin; "" is the root itself.
    """

    def __init__(self, root: Path, archives: Sequence[str] = (), homes: Sequence[str] = ("",)) -> None:
        self.root = root
        self.archives = archives
        self.homes = homes

    def has(self, folder: str) -> bool:
        """Whether there is such a folder."""
        return self._on_disk(folder) is not None or self._in_archive(folder) is not None

    def below(self, folder: str, suffixes: Sequence[str] = ()) -> list[tuple[PurePosixPath, Source]]:
        """Files anywhere below `folder` by their relative paths; files that are no data are left out.

        On disk they are found by `walk_files`, which follows links to folders; archives have no links. A folder on disk
        without such files does not hide that of an archive: COCO's images and masks share one.

        Args:
            folder: Path below the root; "" is the root itself.
            suffixes: Suffixes to look for, in lower case; empty: all.

        Raises:
            InputError: There is no such folder.
        """
        disk, prefix = self._on_disk(folder), self._in_archive(folder)
        if disk is None and prefix is None:
            raise InputError(
                f"{self.describe(folder)}: no such folder{self._nor_archive()}; check --data.root and the layout "
                "(datasets/README.md)"
            )
        files: list[tuple[PurePosixPath, Source]] = []
        if disk is not None:
            found = walk_files(disk, suffixes)
            files = [(PurePosixPath(path.relative_to(disk).as_posix()), path) for path in found]
        return files or ([] if prefix is None else self._below(prefix, suffixes))

    def file(self, path: str) -> Source | None:
        """The file at `path`, or None if it does not exist."""
        for home in self.homes:
            full = _join(home, path)
            on_disk = self.root / full
            if not self._is_archive and on_disk.is_file():
                return on_disk
            if full in self._members:
                return self._members[full]
        return None

    def describe(self, path: str) -> str:
        """Where `path` is, or would be, for a message."""
        return f"{self.root}/{path}" if path else str(self.root)

    def _on_disk(self, folder: str) -> Path | None:
        if self._is_archive:
            return None
        return next((p for home in self.homes if (p := self.root / _join(home, folder)).is_dir()), None)

    def _in_archive(self, folder: str) -> str | None:
        """The path of a folder inside the archives, if they have it."""
        prefixes = (_join(home, folder) for home in self.homes)
        return next((prefix for prefix in prefixes if prefix in self._folders), None)

    def _below(self, prefix: str, suffixes: Sequence[str]) -> list[tuple[PurePosixPath, Source]]:
        """The members of that folder in the order in which `walk_files` would find them."""
        start = f"{prefix}/" if prefix else ""
        inside = [(PurePosixPath(n[len(start) :]), m) for n, m in self._members.items() if n.startswith(start)]
        data = [item for item in inside if not any(map(is_left_out, item[0].parts))]
        found = [item for item in data if not suffixes or item[0].name.lower().endswith(tuple(suffixes))]
        return sorted(found, key=lambda item: item[0].parts)

    def _nor_archive(self) -> str:
        return f" (nor {' or '.join(self.archives)} in {self.root})" if self.archives and not self._is_archive else ""

    @property
    def _is_archive(self) -> bool:
        return self.root.suffix.lower() == ".zip"

    @cached_property
    def _members(self) -> dict[str, ZipMember]:
        names = [self.root] if self._is_archive else [self.root / name for name in self.archives]
        members: dict[str, ZipMember] = {}
        for archive in names:
            if archive.is_file():
                members.update(_by_path(archive))
        return members

    @cached_property
    def _folders(self) -> set[str]:
        return {parent.as_posix().removeprefix(".") for name in self._members for parent in PurePosixPath(name).parents}


def _by_path(archive: Path) -> dict[str, ZipMember]:
    """All members of a zip, by name.

    Raises:
        InputError: It is not a zip that can be read, or has two members of one name.
    """
    members: dict[str, ZipMember] = {}
    for member in read_members(archive):
        if members.setdefault(member.name, member) is not member:
            raise InputError(f"{member}: is in this zip twice; download {archive.name} again, or unpack it")
    return members


def _join(home: str, path: str) -> str:
    return "/".join(part for part in (home, path) if part)
