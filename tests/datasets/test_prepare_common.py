"""Unpacking that is killed, damaged, attacked or starved of disk."""

import subprocess
import sys
import threading
import zipfile
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from segkit.errors import InputError

FILES = {f"set/a/{i}.png": bytes([i]) * (100 + i) for i in range(6)} | {"set/b/x.txt": b"x" * 50, "set/empty": b""}
LAYOUT = {"set": {"a/*.png": 6, "b/*.txt": 1}}
PROGRAMS = Path(__file__).parents[2] / "datasets"


@pytest.fixture
def archive(tmp_path: Path, write_zip: Callable) -> Path:
    return write_zip(tmp_path / "set.zip", FILES | {"license.txt": b"terms", "other/y.txt": b"not wanted"})


def refused(work: Callable[[], object]) -> str:
    with pytest.raises(InputError) as caught:
        work()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_everything_arrives_and_nothing_else(common: ModuleType, archive: Path, tmp_path: Path, tree: Callable) -> None:
    assert not common.is_complete(tmp_path / "out", LAYOUT)
    common.unpack(archive, LAYOUT, tmp_path / "out")
    assert tree(tmp_path / "out") == FILES | {"license.txt": b"terms"}
    assert common.is_complete(tmp_path / "out", LAYOUT)


def test_a_killed_unpacking_is_gone_on_with(common: ModuleType, archive: Path, tmp_path: Path, tree: Callable) -> None:
    """The process dies in the middle of the fourth member, between writing and renaming it: no clean-up runs."""
    code = f"""
        import os, sys
        sys.path.insert(0, {str(PROGRAMS)!r})
        from pathlib import Path
        import prepare_common

        def replace(source, target, real=os.replace):
            if str(target).endswith("3.png"):
                os._exit(9)
            real(source, target)

        os.replace = replace
        prepare_common.unpack(Path({str(archive)!r}), {LAYOUT!r}, Path({str(tmp_path / "out")!r}))
    """
    lines = "\n".join(line.removeprefix(" " * 8) for line in code.splitlines())
    assert subprocess.run([sys.executable, "-c", lines], capture_output=True).returncode == 9
    out = tmp_path / "out"
    assert not (out / "set").exists() and (out / "set.part.tmp").exists()
    assert not common.is_complete(out, LAYOUT)
    (out / "set.part/a/1.png").write_bytes(b"?" * 101)  # right size, other bytes: as after a power cut
    before = (out / "set.part/a/0.png").stat()
    common.unpack(archive, LAYOUT, out)
    assert tree(out) == FILES | {"license.txt": b"terms"}
    after = (out / "set/a/0.png").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)  # not written again


def test_only_absent_folders_are_unpacked(common: ModuleType, tmp_path: Path, write_zip: Callable) -> None:
    layout = {"set/a": {"*.png": 6}, "set/b": {"*.txt": 1}}
    archive = write_zip(tmp_path / "set.zip", FILES)
    (tmp_path / "set/b").mkdir(parents=True)
    (tmp_path / "set/b/mine.txt").write_text("mine")
    assert not common.is_complete(tmp_path, layout)
    common.unpack(archive, layout, tmp_path)
    assert [p.name for p in (tmp_path / "set/b").iterdir()] == ["mine.txt"]
    assert common.is_complete(tmp_path, layout)


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_damaged_member(common: ModuleType, tmp_path: Path, tree: Callable, compression: int) -> None:
    path = tmp_path / "set.zip"
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in FILES.items():
            archive.writestr(name, data)
        offset = archive.getinfo("set/a/2.png").header_offset + 30 + len("set/a/2.png")
    data = bytearray(path.read_bytes())
    data[offset + 1] ^= 0xFF
    path.write_bytes(data)
    words = refused(lambda: common.unpack(path, LAYOUT, tmp_path / "out"))
    assert "set/a/2.png in it is damaged" in words and "remove this zip and run again" in words
    assert set(tree(tmp_path / "out")) == {"set.part/a/0.png", "set.part/a/1.png"}
    assert words == refused(lambda: common.check_zip(path, LAYOUT, contents=True))
    common.check_zip(path, LAYOUT, contents=False)


@pytest.mark.parametrize(
    "name", ["../evil.txt", "/tmp/evil.txt", "set/../../evil.txt", "set\\..\\evil.txt", "C:/evil.txt", "set/.."]
)
def test_names_that_lead_out(
    common: ModuleType, tmp_path: Path, write_zip: Callable, tree: Callable, name: str
) -> None:
    archive = write_zip(tmp_path / "in/set.zip", FILES | {name: b"evil"})
    assert "leads out of the folder" in refused(lambda: common.unpack(archive, LAYOUT, tmp_path / "out"))
    assert set(tree(tmp_path)) == {"in/set.zip"}


def test_a_link_in_the_zip(common: ModuleType, tmp_path: Path, archive: Path) -> None:
    with zipfile.ZipFile(archive, "a") as zipped:
        link = zipfile.ZipInfo("set/link")
        link.create_system, link.external_attr = 3, 0o120777 << 16
        zipped.writestr(link, "/etc")
    assert "'set/link' in it leads out" in refused(lambda: common.unpack(archive, LAYOUT, tmp_path / "out"))


def test_missing_files(common: ModuleType, tmp_path: Path, write_zip: Callable) -> None:
    fewer = {name: data for name, data in FILES.items() if name != "set/a/5.png"}
    nested = {"set/a/deeper/5.png": b""}  # not where the pattern has it
    archive = write_zip(tmp_path / "set.zip", fewer | nested)
    words = refused(lambda: common.unpack(archive, LAYOUT, tmp_path / "out"))
    assert f"{archive}: set: has 5 of the 6 files a/*.png" in words
    assert not (tmp_path / "out").exists()


def test_a_data_set_that_is_incomplete_is_named_and_left_alone(common: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "set/a").mkdir(parents=True)
    (tmp_path / "set/a/0.png").write_bytes(b"")
    words = refused(lambda: common.is_complete(tmp_path, LAYOUT))
    assert f"{tmp_path / 'set'}: has 1 of the 6 files a/*.png; move it away" in words
    assert (tmp_path / "set/a/0.png").exists()


def test_linked_folders_are_counted(common: ModuleType, archive: Path, tmp_path: Path) -> None:
    common.unpack(archive, LAYOUT, tmp_path / "disk")
    (tmp_path / "root/set").mkdir(parents=True)
    for name in ("a", "b"):
        (tmp_path / "root/set" / name).symlink_to(tmp_path / "disk/set" / name)
    assert common.is_complete(tmp_path / "root", LAYOUT)


def test_strange_files_in_the_part(common: ModuleType, archive: Path, tmp_path: Path) -> None:
    (tmp_path / "out/set.part/a").mkdir(parents=True)
    (tmp_path / "out/set.part/a/9.png").write_bytes(b"of another zip")
    assert "set.part: a/9.png is in it and not in" in refused(lambda: common.unpack(archive, LAYOUT, tmp_path / "out"))
    assert not (tmp_path / "out/set").exists()


def test_a_zip_that_was_cut_off(common: ModuleType, archive: Path, tmp_path: Path) -> None:
    assert common.is_zip(archive)
    archive.write_bytes(archive.read_bytes()[:-30])
    assert "not a complete zip" in refused(lambda: common.unpack(archive, LAYOUT, tmp_path / "out"))
    assert not common.is_zip(archive) and not common.is_zip(tmp_path / "absent")


def test_a_disk_that_is_too_small(
    common: ModuleType, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    usage = namedtuple("usage", "total used free")
    free = 4096 * len([data for name, data in FILES.items() if data and name.startswith("set/")])
    monkeypatch.setattr(common.shutil, "disk_usage", lambda _: usage(0, 0, free - 1))
    assert "needs 0.00 GB and the disk has 0.00 GB" in refused(lambda: common.unpack(archive, LAYOUT, tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(common.shutil, "disk_usage", lambda _: usage(0, 0, free))
    common.unpack(archive, LAYOUT, tmp_path / "out")
    assert f"{tmp_path / 'out'}: needs 0.00 GB" in capsys.readouterr().out


def test_two_runs_at_once(common: ModuleType, tmp_path: Path) -> None:
    told: list[str] = []

    def second() -> None:
        with common.one_run(tmp_path / "root"):
            pass

    with common.one_run(tmp_path / "root"):
        thread = threading.Thread(target=lambda: told.append(refused(second)))
        thread.start()
        thread.join()
    assert "another program prepares data here" in told[0]
    second()


def test_exit_codes(common: ModuleType, capsys: pytest.CaptureFixture) -> None:
    def raising(error: BaseException) -> Callable[[], None]:
        def work() -> None:
            raise error

        return work

    assert common.run(lambda: None) == 0
    assert common.run(raising(InputError("said in one line"))) == 2
    assert common.run(raising(PermissionError(13, "Permission denied", "/root"))) == 2
    assert common.run(raising(KeyboardInterrupt())) == 130
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "error: said in one line" and "Permission denied" in lines[1] and "run again" in lines[2]
