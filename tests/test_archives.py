"""Zips that lie: each is refused by name in one line, and what is only unusual is read."""

import stat
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from segkit.archives import read_members
from segkit.errors import InputError

CONTENT = {"a/1.txt": b"one" * 100, "a/2.txt": b"two", "a/empty.txt": b""}


def write_zip(path: Path, files: dict[str, bytes] = CONTENT, method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.mkdir("a")
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def read(path: Path) -> dict[str, bytes]:
    return {member.name: member.read_bytes() for member in read_members(path)}


def refused(call: Callable[[], object], *words: str) -> None:
    with pytest.raises(InputError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message and not [word for word in words if word not in message], message


def edit_directory(path: Path, index: int, offset: int, value: bytes) -> None:
    """Change a field of the directory's entry of that number; entry 0 is the folder."""
    data = bytearray(path.read_bytes())
    place = -1
    for _ in range(index + 1):
        place = data.index(b"PK\x01\x02", place + 1)
    data[place + offset : place + offset + len(value)] = value
    path.write_bytes(data)


FLAGS, METHOD, CRC, PACKED, SIZE, OFFSET, NAME = 8, 10, 16, 20, 24, 42, 46


@pytest.mark.parametrize(
    "name", ["a/../../x.png", "/etc/x.png", "C:/x.png", "a\\..\\x.png", "\\\\server\\x.png", "a/x.png\0.txt", "./."]
)
def test_names_that_lead_out_are_refused(tmp_path: Path, name: str) -> None:
    path = write_zip(tmp_path / "x.zip", CONTENT | {"a/?" + "?" * (len(name) - 3): b"x"})
    data = path.read_bytes()
    path.write_bytes(data.replace(b"a/?" + b"?" * (len(name) - 3), name.encode()))  # zipfile would correct some
    refused(lambda: read_members(path), str(path), ascii(name), "leads out")


def test_links_are_refused(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "x.zip")
    with zipfile.ZipFile(path, "a") as archive:
        link = zipfile.ZipInfo("a/link.png")
        link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
    refused(lambda: read_members(path), "'a/link.png' in it leads out of the folder, or is a link")


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_sizes_that_lie(tmp_path: Path, method: int) -> None:
    path = write_zip(tmp_path / "x.zip", method=method)
    edit_directory(path, 1, SIZE, struct.pack("<I", 0xFFFFFFF0))
    refused(lambda: read_members(path), "a/1.txt", "claim to become 4294967280")
    path = write_zip(tmp_path / "x.zip", method=method)
    edit_directory(path, 1, PACKED, struct.pack("<I", 0x7FFFFFFF))
    refused(lambda: read_members(path), "a/1.txt")


def test_a_bomb_is_unpacked_no_further_than_it_promised(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "x.zip", {"a/bomb.png": b"\0" * 10**7})
    edit_directory(path, 1, SIZE, struct.pack("<I", 1000))
    (member,) = read_members(path)
    assert len(member._unpacked(path.read_bytes()[member.offset + 40 :][: member.packed])) == 1001
    refused(member.read_bytes, "a/bomb.png", "damaged")


def test_members_that_lie_over_each_other(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "x.zip")
    first = read_members(path)[0].offset
    edit_directory(path, 2, OFFSET, struct.pack("<I", first))
    refused(lambda: read_members(path), "overlaps another file")
    edit_directory(path, 2, OFFSET, struct.pack("<I", path.stat().st_size - 10))
    refused(lambda: read_members(path), "a/2.txt", "beyond its end")


def test_a_directory_whose_names_are_exchanged(tmp_path: Path) -> None:
    """Else an image would get another one's mask, with a right check sum."""
    path = write_zip(tmp_path / "x.zip")
    edit_directory(path, 1, NAME, b"a/2.txt")
    edit_directory(path, 2, NAME, b"a/1.txt")
    for member in read_members(path)[:2]:
        refused(member.read_bytes, member.name, "damaged")


def test_a_wrong_check_sum(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "x.zip")
    edit_directory(path, 2, CRC, b"\1\2\3\4")
    first, second, _ = read_members(path)
    assert first.read_bytes() == CONTENT["a/1.txt"]
    refused(second.read_bytes, "a/2.txt", "wrong check sum")


@pytest.mark.parametrize(
    ("field", "value"), [(FLAGS, b"\1\0"), (FLAGS, b"\x41\0"), (METHOD, b"\x0e\0"), (METHOD, b"\x63\0")]
)
def test_encrypted_and_unusual_members(tmp_path: Path, field: int, value: bytes) -> None:
    path = write_zip(tmp_path / "x.zip")
    edit_directory(path, 2, field, value)
    refused(lambda: read_members(path), "a/2.txt", "encrypted, or compressed by an unusual method", "unpack it")


def test_what_is_unusual_and_right(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("zip64.txt", "w", force_zip64=True) as member:
            member.write(b"large")
        archive.writestr("./a//b.txt", b"dots")
        archive.writestr("straße/ü.txt", b"utf-8")
        archive.comment = b"a comment"
    path.write_bytes(b"#!/bin/sh\n" * 50 + path.read_bytes())  # behind a program that unpacks it
    assert read(path) == {"zip64.txt": b"large", "a/b.txt": b"dots", "straße/ü.txt": b"utf-8"}
    old = write_zip(tmp_path / "old.zip", {"a/\u2592.txt": b"x"})
    data = old.read_bytes().replace("\u2592".encode(), b"\xb1\xb1\xb1")
    for start, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):  # as an old program writes it: without the flag
        place = data.index(b"a/\xb1") - 30 if offset == 6 else data.rindex(b"a/\xb1") - 46
        assert data[place : place + 4] == start
        data = data[: place + offset] + b"\0\0" + data[place + offset + 2 :]
    old.write_bytes(data)
    assert read(old) == {"a/▒▒▒.txt": b"x"}


@pytest.mark.parametrize("kept", [0, 10, 0.5, -1])
def test_what_is_no_zip(tmp_path: Path, kept: float) -> None:
    path = write_zip(tmp_path / "x.zip")
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept) if 0 < kept < 1 else int(kept)])
    refused(lambda: read_members(path), str(path), "cannot be read as a zip file")
    refused(lambda: read_members(tmp_path / "absent.zip"), "absent.zip", "cannot be read")
