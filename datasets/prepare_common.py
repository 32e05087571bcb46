"""What the prepare programs share: unpacking zips so that no half a data set ever has its final name, and counting.

A data set comes as folders, each of which is unpacked under `<folder>.part`, member by member, every byte checked by
the member's CRC-32, and renamed when all of it is there. A run that was killed is resumed: members that are there
with their right size and CRC-32 are left alone. No file is ever changed, and no folder that exists is written over.
"""

import os
import shutil
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from fnmatch import translate
from pathlib import Path, PurePosixPath
from re import compile as compiled
from typing import TypeVar

from filelock import FileLock, Timeout
from tqdm import tqdm

from segkit.archives import ZIP_ERRORS, check_entries
from segkit.errors import InputError
from segkit.paths import walk_files

T = TypeVar("T")
Layout = Mapping[str, Mapping[str, int]]  # folder -> pattern of names in it, "*" being one name -> how many there are
Members = dict[str, zipfile.ZipInfo]  # name in the folder -> member of the zip

UNPACKED = 1.2  # times the bytes of the zip, roughly: images do not shrink in a zip, and each file ends in a block

_BLOCK = 4096  # bytes: the least that a file takes of a disk
_CHUNK = 1 << 20  # bytes


def run(work: Callable[[], None]) -> int:
    """Call `work`; return the exit code: 0 done, 2 wrong input or not possible here, 130 interrupted."""
    try:
        work()
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; run again to go on from there", file=sys.stderr)
        return 130
    return 0


@contextmanager
def one_run(root: Path) -> Iterator[None]:
    """Make the folder and let no second program prepare data in it.

    Raises:
        InputError: One does.
    """
    root.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(root / ".prepare.lock", timeout=0):
            yield
    except Timeout:
        raise InputError(f"{root}: another program prepares data here; wait until it ends") from None


def check_space(folder: Path, need: float) -> None:
    """Say how many bytes will be written.

    Raises:
        InputError: The disk has not that much left.
    """
    existing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    print(f"{folder}: needs {_size(need)}, {_size(free)} are free")
    if need > free:
        raise InputError(
            f"{folder}: needs {_size(need)} and the disk has {_size(free)}; free some or give another --root"
        )


def is_complete(root: Path, layout: Layout) -> bool:
    """Whether all folders of a data set are there.

    Raises:
        InputError: One is there with another number of files.
    """
    there = [folder for folder in layout if (root / folder).is_dir()]
    for folder in there:
        cure = "move it away and run again, or give another --root"
        _check_counts(str(root / folder), _names_in(root / folder), layout[folder], cure)
    return len(there) == len(layout)


def check_zip(path: Path, layout: Layout, contents: bool) -> None:
    """Check that the zip is the data set's: safe names and the right number of each kind.

    Args:
        path: The zip.
        layout: What must be in it.
        contents: Read every member too, and compare its CRC-32.

    Raises:
        InputError: It is not, or it is damaged.
    """
    with _opened(path) as archive:
        folders = _all_members(archive, path, layout)
        for folder, members in folders.items() if contents else ():
            for member in _progress(members.values(), f"checking {folder}"):
                for _ in _read(archive, member, path):
                    pass


def unpack(path: Path, layout: Layout, root: Path) -> None:
    """Unpack the folders of a data set that are not there yet; what else the zip holds at its top only if absent.

    Raises:
        InputError: Another zip, a damaged one, or a disk that is too small.
    """
    with _opened(path) as archive:
        folders = _all_members(archive, path, layout)
        absent = {folder: members for folder, members in folders.items() if not (root / folder).is_dir()}
        check_space(root, sum(_to_write(_part(root / folder), members) for folder, members in absent.items()))
        for name, member in _top_members(archive).items():  # licence and the like
            if not (root / name).exists():
                _write(archive, member, path, root / name, root / f"{name}.part")
        for folder, members in absent.items():
            _unpack_folder(archive, path, members, root / folder)


def is_zip(path: Path) -> bool:
    """Whether this is a zip to its very end, where the list of its members is."""
    try:
        with zipfile.ZipFile(path):
            return True
    except (OSError, *ZIP_ERRORS):
        return False


def names_in_zip(path: Path) -> list[str]:
    """Names of all members; none if it is no zip."""
    if not is_zip(path):
        return []
    with zipfile.ZipFile(path) as archive:
        return archive.namelist()


def _unpack_folder(archive: zipfile.ZipFile, path: Path, members: Members, folder: Path) -> None:
    """Unpack under a name of its own, then rename; the order is the zip's, so that a disk reads it in one go."""
    part = _part(folder)
    for name, member in _progress(members.items(), f"unpacking {folder.name}"):
        if not _is_written(part / name, member):
            _write(archive, member, path, part / name, folder.with_name(f"{part.name}.tmp"))
    others = set(_names_in(part)) - members.keys()
    if others:
        raise InputError(f"{part}: {min(others)} is in it and not in {path}; remove this folder and run again")
    os.rename(part, folder)


def _write(archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path, target: Path, temporary: Path) -> None:
    """Write one member: all of it, or nothing."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with temporary.open("wb") as file:
            file.writelines(_read(archive, member, path))
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def _read(archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path) -> Iterator[bytes]:
    """The bytes of a member; zipfile compares the CRC-32 at the last of them."""
    try:
        with archive.open(member) as file:
            while chunk := file.read(_CHUNK):
                yield chunk
    except (OSError, *ZIP_ERRORS) as error:
        raise InputError(
            f"{path}: {member.filename} in it is damaged ({error}); remove this zip and run again to get another"
        ) from error


def _is_written(path: Path, member: zipfile.ZipInfo) -> bool:
    """Whether an earlier run wrote this member: same size, same CRC-32."""
    if not path.is_file() or path.stat().st_size != member.file_size:
        return False
    crc = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            crc = zlib.crc32(chunk, crc)
    return crc == member.CRC


def _to_write(part: Path, members: Members) -> int:
    """Bytes of disk that the members which an earlier run did not write will take."""
    return sum(
        -(-member.file_size // _BLOCK) * _BLOCK  # rounded up to whole blocks
        for name, member in members.items()
        if not ((part / name).is_file() and (part / name).stat().st_size == member.file_size)
    )


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """The zip, every name in it being one inside of the folder that it is unpacked to."""
    try:
        archive = zipfile.ZipFile(path)
    except (OSError, *ZIP_ERRORS) as error:
        raise InputError(f"{path}: not a complete zip ({error}); remove it and run again to get it") from error
    with archive:
        check_entries(path, archive.infolist())
        yield archive


def _all_members(archive: zipfile.ZipFile, path: Path, layout: Layout) -> dict[str, Members]:
    """The members of each folder, counted."""
    folders: dict[str, Members] = {folder: {} for folder in layout}
    for member in archive.infolist():
        folder = next((f for f in layout if member.filename.startswith(f"{f}/")), None)
        if folder is not None and not member.is_dir():
            folders[folder][member.filename.removeprefix(f"{folder}/")] = member
    for folder, members in folders.items():
        cure = "not the data set's zip, or an incomplete one; download it again"
        _check_counts(f"{path}: {folder}", members, layout[folder], cure)
    return folders


def _top_members(archive: zipfile.ZipFile) -> Members:
    return {m.filename: m for m in archive.infolist() if "/" not in m.filename}


def _names_in(folder: Path) -> list[str]:
    """Names of all files below a folder, which may hold links to folders elsewhere."""
    return [path.relative_to(folder).as_posix() for path in walk_files(folder)]


def _check_counts(where: str, names: Iterable[str], expected: Mapping[str, int], cure: str) -> None:
    """Count the names that fit each pattern.

    Raises:
        InputError: Another number than expected.
    """
    known = list(names)
    for pattern, count in expected.items():
        found = _count(known, pattern)
        if found != count:
            raise InputError(f"{where}: has {found} of the {count} files {pattern}; {cure}")


def _count(names: Iterable[str], pattern: str) -> int:
    depth, ending = len(PurePosixPath(pattern).parts), compiled(translate(pattern))
    return sum(name.count("/") == depth - 1 and ending.match(name) is not None for name in names)


def _part(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.part")


def _progress(items: Iterable[T], what: str) -> Iterable[T]:
    return tqdm(items, desc=what, unit=" files")


def _size(number: float) -> str:
    return f"{number / 1e9:.2f} GB"
