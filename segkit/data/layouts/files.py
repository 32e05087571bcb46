"""The files of a data set: in folders, or in the zip files that its owner publishes, which need not be unpacked.

A member of a zip is read by its place in the archive: two reads and a decompression, without the archive's directory,
so that a loader worker opens nothing that it would have to share. Stored members are as fast as files; deflated ones
take the time to inflate them on top.
"""

import struct
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TypeAlias

from segkit.errors import InputError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")

_LOCAL_HEADER = struct.Struct("<26x2H")  # its end: the lengths of the name and of the extra field that follow


@dataclass(frozen=True)
class ZipMember:
    """A file inside a zip.

    Attributes:
        archive: The zip.
        name: Path inside it, with '/'.
        offset: Byte at which the member begins.
        packed: Bytes of its stored content.
        size: Bytes of its content.
        crc: CRC-32 of its content.
        method: How it is stored: `zipfile.ZIP_STORED` or `ZIP_DEFLATED`.
    """

    archive: Path
    name: str
    offset: int
    packed: int
    size: int
    crc: int
    method: int

    def __str__(self) -> str:
        """Archive and name, as an error shows them."""
        return f"{self.archive}/{self.name}"

    def read_bytes(self) -> bytes:
        """The content.

        Raises:
            InputError: It is damaged, or not what the archive's directory said.
            OSError: The archive cannot be read.
        """
        with self.archive.open("rb") as file:
            file.seek(self.offset)
            header = file.read(_LOCAL_HEADER.size)
            if len(header) == _LOCAL_HEADER.size:
                file.seek(sum(_LOCAL_HEADER.unpack(header)), 1)
            data = file.read(self.packed)
        if self.method == zipfile.ZIP_DEFLATED:
            try:
                data = zlib.decompress(data, -zlib.MAX_WBITS, self.size)
            except zlib.error:
                data = b""
        if zlib.crc32(data) != self.crc or len(data) != self.size:
            raise InputError(f"{self}: damaged in its zip file (wrong check sum); download {self.archive.name} again")
        return data


Source: TypeAlias = Path | ZipMember


def size_of(file: Source) -> int:
    """Bytes of the file's content."""
    return file.size if isinstance(file, ZipMember) else file.stat().st_size


def fingerprint(file: Source) -> tuple[str, int, int]:
    """What tells a file from another one: its name, size, and time of change in ns (in a zip: its CRC-32)."""
    if isinstance(file, ZipMember):
        return str(file.archive.absolute()) + "/" + file.name, file.size, file.crc
    stat = file.stat()
    return str(file.absolute()), stat.st_size, stat.st_mtime_ns


class Files:
    """The files below a data set's root: what is unpacked first, then what its archives hold.

    Nothing is read before it is asked for.

    Args:
        root: A folder, or one of the archives itself.
        archives: File names of the zips that the data set is published as; those that lie in `root` are looked into.
        homes: Folders, below root or inside the archives, in which paths may begin; "" is the root itself.
    """

    def __init__(self, root: Path, archives: Sequence[str] = (), homes: Sequence[str] = ("",)) -> None:
        self.root = root
        self.archives = archives
        self.homes = homes

    def has(self, folder: str) -> bool:
        """Whether there is such a folder."""
        return self._on_disk(folder) is not None or self._in_archive(folder) is not None

    def find(self, folder: str, suffixes: Sequence[str] = IMAGE_SUFFIXES) -> dict[str, Source]:
        """Files anywhere below `folder`, by name: the relative path without suffix. Hidden files are left out.

        A folder on the disk without such files does not hide that of an archive: COCO's pictures and masks share one.

        Raises:
            InputError: There is no such folder, or two files have one name.
        """
        disk, prefix = self._on_disk(folder), self._in_archive(folder)
        if disk is None and prefix is None:
            raise InputError(
                f"{self.describe(folder)}: no such folder{self._nor_archive()}; check --data.root and the layout "
                "(datasets/README.md)"
            )
        files: dict[str, Source] = {}
        if disk is not None:
            relative = ((PurePosixPath(path.relative_to(disk).as_posix()), path) for path in sorted(disk.rglob("*")))
            files = _by_name(relative, suffixes)
        if not files and prefix is not None:
            files = _by_name(self._below(prefix), suffixes)
        return files

    def file(self, path: str) -> Source | None:
        """The file at `path`; None where there is none."""
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
        """The archives' path of a folder that they have."""
        prefixes = (_join(home, folder) for home in self.homes)
        return next((prefix for prefix in prefixes if prefix in self._folders), None)

    def _below(self, prefix: str) -> list[tuple[PurePosixPath, Source]]:
        """In the order in which a folder would be walked."""
        start = f"{prefix}/" if prefix else ""
        found = [(PurePosixPath(n[len(start) :]), m) for n, m in self._members.items() if n.startswith(start)]
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
                members.update(_read_directory(archive))
        return members

    @cached_property
    def _folders(self) -> set[str]:
        return {parent.as_posix().removeprefix(".") for name in self._members for parent in PurePosixPath(name).parents}


def _by_name(found: Iterable[tuple[PurePosixPath, Source]], suffixes: Sequence[str]) -> dict[str, Source]:
    files: dict[str, Source] = {}
    for relative, file in found:
        if relative.suffix.lower() not in suffixes or relative.name.startswith("."):
            continue
        name = relative.with_suffix("").as_posix()
        if name in files:
            raise InputError(f"{files[name]} and {file} have the same name; rename or remove one of them")
        files[name] = file
    return files


def _read_directory(archive: Path) -> dict[str, ZipMember]:
    """All members of a zip, by name.

    Raises:
        InputError: It is not a zip, or has members that are encrypted or compressed in another way than by deflate.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            entries = opened.infolist()
    except (zipfile.BadZipFile, OSError) as error:
        raise InputError(f"{archive}: cannot be read as a zip file ({error}); download it again") from error
    members = {}
    for entry in entries:
        if entry.is_dir():
            continue
        if entry.flag_bits & 1 or entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise InputError(f"{archive}/{entry.filename}: encrypted, or compressed by an unusual method; unpack it")
        place = (entry.header_offset, entry.compress_size, entry.file_size, entry.CRC, entry.compress_type)
        members[entry.filename] = ZipMember(archive, entry.filename, *place)
    return members


def _join(home: str, path: str) -> str:
    return "/".join(part for part in (home, path) if part)
