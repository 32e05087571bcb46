"""Reads untrusted zip and tar files: their claims are trusted only if they fit, and members are read by position.

Reading a member takes two reads and a decompression, without the archive's directory, so that a loader worker opens
nothing that it would have to share. Stored members are as fast as files; deflated ones also have to be inflated.
"""

import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from segkit.errors import InputError
from segkit.paths import leads_outside, shown, walk_files

# Errors of zipfile for a file that is not a zip, or a damaged one.
ZIP_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    IndexError,
    MemoryError,
    NotImplementedError,
    OverflowError,
    RuntimeError,
    ValueError,
    struct.error,
)

_LOCAL_HEADER = struct.Struct("<4s2xH18x2H")  # signature, flags; lengths of the name and of the extra field that follow
_LOCAL_START = b"PK\x03\x04"
_UTF8, _ENCRYPTED = 0x800, 0x1 | 0x40 | 0x2000  # bits of a member's flags
_RATIO = 1033  # deflate's highest compression ratio, so a larger content is a lie
_LARGEST = 1 << 30  # bytes of a member; an uncompressed mask of 32768 x 32768


@dataclass(frozen=True)
class ZipMember:
    """A file inside a zip.

    Attributes:
        archive: The zip's path.
        name: Path inside it, with '/'.
        stored_name: The same path as stored in the zip.
        offset: Byte at which the member begins.
        packed: Size of its stored content in bytes.
        size: Size of its content in bytes.
        crc: CRC-32 of its content.
        method: How it is stored: `zipfile.ZIP_STORED` or `ZIP_DEFLATED`.
    """

    archive: Path
    name: str
    stored_name: str
    offset: int
    packed: int
    size: int
    crc: int
    method: int

    def __str__(self) -> str:
        """Archive and name, as an error shows them."""
        return shown(self.archive / self.name)

    def read_bytes(self) -> bytes:
        """The content.

        Raises:
            InputError: It is damaged, or not what the archive's directory says.
            OSError: The archive cannot be read.
        """
        with self.archive.open("rb") as file:
            file.seek(self.offset)
            header = file.read(_LOCAL_HEADER.size)
            if len(header) == _LOCAL_HEADER.size and self._is_own(header, file.read(_name_length(header))):
                file.seek(_LOCAL_HEADER.unpack(header)[-1], 1)
                data = self._unpacked(file.read(self.packed))
                if zlib.crc32(data) == self.crc and len(data) == self.size:
                    return data
        raise InputError(f"{self}: damaged in its zip file (wrong check sum); download {self.archive.name} again")

    def _is_own(self, header: bytes, name: bytes) -> bool:
        """Whether the header before the content belongs to this member."""
        start, flags, _, _ = _LOCAL_HEADER.unpack(header)
        encoding = "utf-8" if flags & _UTF8 else "cp437"
        return bool(start == _LOCAL_START) and name.decode(encoding, "replace") == self.stored_name

    def _unpacked(self, data: bytes) -> bytes:
        """Unpack, but at most one byte more than the directory promised, however large the data would become."""
        if self.method == zipfile.ZIP_STORED:
            return data
        try:
            return zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, self.size + 1)
        except zlib.error:
            return b""


def read_members(archive: Path) -> list[ZipMember]:
    """All files of a zip, in the order of its directory; a name may occur twice.

    Raises:
        InputError: It is not a zip; or a member's name leads out of the folder it is unpacked to, or the member is a
            link, encrypted, not stored or deflated, or has an impossible position or size.
    """
    try:
        size = archive.stat().st_size
        with zipfile.ZipFile(archive) as opened:
            entries = opened.infolist()
    except (OSError, *ZIP_ERRORS) as error:
        raise InputError(f"{archive}: cannot be read as a zip file ({error}); download it again") from error
    check_entries(archive, entries)
    members = [_member(archive, entry) for entry in entries if not entry.is_dir()]
    _check_places(members, size)
    return members


def files_of(place: Path, suffixes: tuple[str, ...] = ()) -> dict[str, Path | ZipMember]:
    """All files below a folder (`walk_files`) or in a zip, by their paths there with '/'.

    Args:
        place: The folder or zip.
        suffixes: Suffixes to include, in lower case, whatever the case of the files'; all if none is given.

    Raises:
        InputError: It cannot be read, or is no zip.
    """
    if place.is_dir():
        return {path.relative_to(place).as_posix(): path for path in walk_files(place, suffixes)}
    return {one.name: one for one in read_members(place) if not suffixes or one.name.lower().endswith(suffixes)}


def check_entries(archive: Path, entries: Iterable[zipfile.ZipInfo]) -> None:
    """Refuse links, invalid names, and names that lead out of the folder to which the zip is unpacked.

    Raises:
        InputError: There is such an entry; names the first.
    """
    for entry in entries:
        name = entry.orig_filename  # as it stands there; `filename` ends at a zero byte
        if not name.strip("./") or leads_outside(name) or stat.S_ISLNK(entry.external_attr >> 16):
            raise InputError(f"{archive}: {name!a} in it leads out of the folder, or is a link; get another archive")


def _member(archive: Path, entry: zipfile.ZipInfo) -> ZipMember:
    if entry.flag_bits & _ENCRYPTED or entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        name = shown(archive / entry.filename)
        raise InputError(f"{name}: encrypted, or compressed by an unusual method; unpack it")
    place = (entry.header_offset, entry.compress_size, entry.file_size, entry.CRC, entry.compress_type)
    name = PurePosixPath(entry.filename).as_posix()  # "./a//b" is a/b
    member = ZipMember(archive, name, entry.orig_filename, *place)
    most = member.packed if member.method == zipfile.ZIP_STORED else member.packed * _RATIO
    if member.size > min(most, _LARGEST) or (member.method == zipfile.ZIP_STORED and member.size != member.packed):
        raise InputError(
            f"{member}: {member.packed} bytes that claim to become {member.size}: damaged, or too large to be read "
            f"packed (at most {_LARGEST}); unpack it, or download {archive.name} again"
        )
    return member


def _check_places(members: list[ZipMember], size: int) -> None:
    """Refuse members that lie beyond the end of the archive or overlap."""
    ordered = sorted(members, key=lambda member: member.offset)
    ends = [*(member.offset for member in ordered[1:]), size]
    for member, end in zip(ordered, ends, strict=True):
        if not 0 <= member.offset <= end - _LOCAL_HEADER.size - member.packed:
            raise InputError(f"{member}: overlaps another file of its zip, or lies beyond its end; download it again")


def _name_length(header: bytes) -> int:
    return int(_LOCAL_HEADER.unpack(header)[2])


@dataclass(frozen=True, slots=True)
class TarMember:
    """A file inside an uncompressed tar, or inside a tar that lies in one.

    Attributes:
        archive: The outer tar's path.
        name: Path inside it, with '/'.
        offset: Byte at which the content begins.
        size: Size of the content in bytes.
    """

    archive: Path
    name: str
    offset: int
    size: int

    def __str__(self) -> str:
        """Archive and name, as an error shows them."""
        return shown(self.archive / self.name)

    def read_bytes(self) -> bytes:
        """The content.

        Raises:
            InputError: The archive is shorter than it was.
            OSError: The archive cannot be read.
        """
        with self.archive.open("rb") as file:
            file.seek(self.offset)
            data = file.read(self.size)
        if len(data) != self.size:
            raise InputError(f"{self}: {self.archive.name} ends within it; download it again")
        return data


def read_tar(archive: Path) -> list[TarMember]:
    """All files of an uncompressed tar, in its order; a tar `a.tar` inside it is a folder `a`.

    Only headers are read, from one to the next.

    Raises:
        InputError: It is no uncompressed tar, is cut off, or a name leads out of the folder it would be unpacked to.
    """
    try:
        with archive.open("rb") as file:
            members = [TarMember(archive, *found) for found in _tar_files(file)]
            length = file.seek(0, 2)
    except InputError as error:
        raise InputError(f"{archive}: {error}; download it again") from error
    except (tarfile.TarError, OSError, ValueError) as error:
        raise InputError(f"{archive}: cannot be read as an uncompressed tar ({error}); download it again") from error
    last = max(members, key=lambda member: member.offset, default=None)
    if last is not None and last.offset + last.size > length:
        raise InputError(f"{last}: lies beyond the end of the tar; the download was cut off, continue it")
    return members


def _tar_files(file: BinaryIO, start: int = 0, folder: str = "") -> Iterator[tuple[str, int, int]]:
    """Name, offset and size of each file of the tar that begins at this byte."""
    file.seek(start)
    with tarfile.open(fileobj=file, mode="r:") as opened:
        for entry in opened:
            name = folder + PurePosixPath(entry.name).as_posix()
            if entry.isdir():
                continue
            if not entry.isreg() or leads_outside(entry.name):
                raise InputError(f"{shown(entry.name)} in it is a link, or leads out of the folder")
            if not name.endswith(".tar"):
                yield name, entry.offset_data, entry.size
            elif folder or not (inner := list(_tar_files(file, entry.offset_data, f"{name.removesuffix('.tar')}/"))):
                raise InputError(f"{shown(name)} in it is empty, or lies too deep")
            else:
                yield from inner
            opened.members = []  # type: ignore[attr-defined]  # of a million none is kept
