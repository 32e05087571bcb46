"""The one walker, what counts as a file, and names that lead out."""

import os
import socket
from pathlib import Path

import pytest

from segkit.errors import InputError
from segkit.paths import check_regular, leads_outside, shown, walk_files


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def walked(folder: Path, *suffixes: str) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in walk_files(folder, suffixes)]


def test_files_of_all_folders_in_order_without_what_is_no_data(tmp_path: Path) -> None:
    touch(tmp_path, "b.png", "a/2.PNG", "a/1.png", "a.png/x.png", "notes.txt", "a/.hidden.png", "._b.png")
    touch(tmp_path, ".ipynb_checkpoints/b.png", "@eaDir/b.png", "a/__MACOSX/b.png", "#recycle/b.png")
    assert walked(tmp_path, ".png") == ["a/1.png", "a/2.PNG", "a.png/x.png", "b.png"]
    assert walked(tmp_path) == ["a/1.png", "a/2.PNG", "a.png/x.png", "b.png", "notes.txt"]
    touch(tmp_path, ".cache/run/c.png")
    assert walked(tmp_path / ".cache/run") == ["c.png"]  # what is asked for by name counts


def test_linked_folders_are_entered_once_and_loops_never(tmp_path: Path) -> None:
    data, elsewhere = tmp_path / "data", tmp_path / "elsewhere"
    touch(data, "real/1.png", "masks/1.png")
    touch(elsewhere, "city/2.png", "city/deep/3.png")
    images = data / "real"
    (images / "a").symlink_to(elsewhere / "city")
    (images / "b").symlink_to(elsewhere / "city")  # the same again
    (images / "deep").symlink_to(elsewhere / "city/deep")  # has a name of its own below a
    (images / "up").symlink_to(data)  # else masks would be found as images
    (images / "self").symlink_to(images, target_is_directory=True)
    (elsewhere / "city/back").symlink_to(images)
    (elsewhere / "city/out").symlink_to(elsewhere)
    (images / "file.png").symlink_to(elsewhere / "city/2.png")
    (images / "gone.png").symlink_to(tmp_path / "nowhere")
    (images / "loop.png").symlink_to(images / "loop.png")
    assert walked(images, ".png") == ["1.png", "a/2.png", "a/deep/3.png", "file.png", "gone.png", "loop.png"]
    (tmp_path / "link").symlink_to(images)
    assert walked(tmp_path / "link", ".png") == walked(images, ".png")


def test_what_cannot_be_walked_is_told_and_the_rest_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "a.png", "locked/b.png")
    (tmp_path / os.fsdecode(b"caf\xe9.png")).touch()
    (tmp_path / os.fsdecode(b"caf\xe9.txt")).touch()
    real = os.scandir

    def scandir(path: Path | int):  # the tests may run as root, who may read everything
        if not isinstance(path, int) and Path(path).name == "locked":  # pytest removes folders by their numbers
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    told: list[str] = []
    found = walk_files(tmp_path, (".png",), lambda path, error: told.append(str(error)))
    assert found == [tmp_path / "a.png"]
    assert [text.removeprefix(f"{tmp_path}/") for text in told] == [
        r"caf\xe9.png: this name is not UTF-8; rename it",
        "locked: cannot read this folder (Permission denied); check its permissions",
    ]
    with pytest.raises(InputError, match="not UTF-8"):
        walk_files(tmp_path, (".png",))
    with pytest.raises(InputError, match="No such file"):
        walk_files(tmp_path / "absent")


def test_what_cannot_be_read_as_a_file_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's path must be short
    os.mkfifo("pipe")
    server = socket.socket(socket.AF_UNIX)
    server.bind("socket")
    Path("gone").symlink_to("nowhere")
    Path("loop").symlink_to("loop")
    Path("device").symlink_to("/dev/zero")
    cases = {
        "pipe": "is a named pipe",
        "socket": "is a socket",
        "gone": "is a link to nowhere, which is not there",
        "loop": "is a link that leads to itself",
        "device": "is a device",
        os.fsdecode(b"\xff.png"): "not UTF-8",
    }
    for name, words in cases.items():
        with pytest.raises(InputError, match=words) as caught:
            check_regular(Path(name))
        assert shown(name) in str(caught.value)
    server.close()
    Path("file").touch()
    for name in ("file", ".", "absent"):
        check_regular(Path(name))


@pytest.mark.parametrize(
    "name",
    ["../a", "a/../b", "a/..", "..", "/a", "//server/a", "C:/a", "c:a", "a\\b", "\\\\server\\a", "a/.. /b", "a\0b"],
)
def test_names_that_lead_out(name: str) -> None:
    assert leads_outside(name)


@pytest.mark.parametrize("name", ["a", "a/b", "a..b", "...", "./a", "12:30/a.jpg", "a b", "ü/ß"])
def test_names_that_stay_inside(name: str) -> None:
    assert not leads_outside(name)


def test_what_does_not_print_is_escaped() -> None:
    assert shown("a\x1b[31m\n" + os.fsdecode(b"\xff")) == r"a\x1b[31m\n\xff"
