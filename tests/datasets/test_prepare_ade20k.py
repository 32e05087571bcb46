"""prepare_ade20k.py against a server on this machine and a zip of five small images in the true layout."""

import hashlib
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import pytest

from segkit.models import download

NAME = "ADEChallengeData2016"
COUNTS = {"training": 3, "validation": 2}


class Server(ThreadingHTTPServer):
    """Sends one file, as told: broken off, without skipping, or another one."""

    daemon_threads = True

    def __init__(self, data: bytes) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.data = data
        self.ranges: list[str | None] = []  # asked for
        self.breaks: list[int] = []  # bytes after which the next answers break off
        self.skips = True
        self.tells_length = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/{NAME}.zip"


class Answer(BaseHTTPRequestHandler):
    """One request."""

    server: Server

    def do_GET(self) -> None:
        server, wanted = self.server, self.headers.get("Range")
        server.ranges.append(wanted)
        first = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and server.skips else 0
        body = server.data[first:]
        self.send_response(206 if wanted and server.skips else 200)
        if server.tells_length:
            self.send_header("Content-Length", str(len(body)))
        if wanted and server.skips:
            self.send_header("Content-Range", f"bytes {first}-{len(server.data) - 1}/{len(server.data)}")
        self.end_headers()
        self.wfile.write(body[: server.breaks.pop(0)] if server.breaks else body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    generator, files = np.random.default_rng(0), {f"{NAME}/sceneCategories.txt": b"ADE_train_00000001 airport\n"}
    for folder, count in COUNTS.items():
        for i in range(1, count + 1):
            stem = f"{folder}/ADE_{folder.removesuffix('ing').removesuffix('idation')}_{i:08}"
            image = generator.integers(0, 256, (12, 16, 3), dtype=np.uint8)
            label = generator.integers(0, 151, (12, 16), dtype=np.uint8)
            files[f"{NAME}/images/{stem}.jpg"] = cv2.imencode(".jpg", image)[1].tobytes()
            files[f"{NAME}/annotations/{stem}.png"] = cv2.imencode(".png", label)[1].tobytes()
    return files


@pytest.fixture
def zip_path(tmp_path: Path, files: dict[str, bytes], write_zip: Callable) -> Path:
    return write_zip(tmp_path / "mine.zip", files)


@pytest.fixture
def program(load: Callable[[str], ModuleType]) -> ModuleType:
    return load("prepare_ade20k")


@pytest.fixture
def archive(program: ModuleType, zip_path: Path) -> Any:
    """What the program would know of the small zip."""
    kinds = {"images": "jpg", "annotations": "png"}
    patterns = {f"{kind}/{s}/*.{end}": count for kind, end in kinds.items() for s, count in COUNTS.items()}
    data = zip_path.read_bytes()
    return program.Archive(size=len(data), sha1=hashlib.sha1(data).hexdigest(), layout={NAME: patterns})


@pytest.fixture
def server(zip_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    server = Server(zip_path.read_bytes())
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(download, "_PAUSE", 0.0)
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "datasets"


@pytest.fixture
def prepare(program: ModuleType, archive: Any, server: Server, root: Path, capsys: pytest.CaptureFixture) -> Callable:
    """Run the program; return its exit code and what it said last."""

    def run(*options: str) -> tuple[int, str]:
        code = program.main(["--root", str(root), "--url", server.url, *options], archive)
        said = capsys.readouterr()
        lines = [line for line in said.err.splitlines() if line.startswith(("error", "interrupted"))]
        assert len(lines) == (code != 0)
        return code, lines[0] if code else said.out.splitlines()[-1]

    return run


def test_what_it_knows_of_the_real_one(program: ModuleType) -> None:
    assert program.ADE20K.size == 967382037
    patterns = program.ADE20K.layout[NAME]
    assert sorted(patterns.values()) == [2000, 2000, 20210, 20210]
    assert all(pattern.startswith(("images/", "annotations/")) for pattern in patterns)


def test_download_unpack_and_then_nothing(
    prepare: Callable, server: Server, root: Path, files: dict, tree: Callable
) -> None:
    code, said = prepare()
    assert (code, said) == (0, f"{root / NAME}: complete; --data.root {root / NAME} reads it")
    assert tree(root) == files  # byte for byte, and no zip, part or temporary file beside it
    server.ranges.clear()
    code, said = prepare()
    assert code == 0 and "complete already; nothing was done" in said
    assert server.ranges == [] and tree(root) == files


@pytest.mark.parametrize("option", ["--keep-zip", "--no-unpack"])
def test_the_zip_is_kept_if_asked_for(
    prepare: Callable, server: Server, root: Path, files: dict, tree: Callable, option: str
) -> None:
    unpacked = files if option == "--keep-zip" else {}
    for _ in range(2):
        assert prepare(option)[0] == 0
        assert tree(root) == unpacked | {f"{NAME}.zip": server.data}
    assert server.ranges == [None]
    assert prepare()[0] == 0
    assert tree(root) == files | {f"{NAME}.zip": server.data}  # what was kept stays
    assert server.ranges == [None]


def test_a_download_that_broke_off_goes_on_in_the_next_run(prepare: Callable, server: Server, root: Path) -> None:
    server.breaks = [700, *[0] * 20]
    code, said = prepare()
    assert code == 2 and f"broke off after 700 of {len(server.data)} bytes" in said and "run again" in said
    assert not (root / NAME).exists() and not (root / f"{NAME}.zip").exists()
    server.breaks, server.ranges = [100], []
    assert prepare()[0] == 0
    assert server.ranges == ["bytes=700-", "bytes=800-"]


def test_a_server_that_cannot_skip(prepare: Callable, server: Server, root: Path, files: dict, tree: Callable) -> None:
    server.skips, server.breaks = False, [500]
    assert prepare()[0] == 0
    assert server.ranges == [None, "bytes=500-"] and tree(root) == files


@pytest.mark.parametrize("skips", [True, False])
def test_a_file_of_another_size_is_refused_before_it_costs_what_there_is(
    prepare: Callable, server: Server, root: Path, skips: bool
) -> None:
    root.mkdir()
    part = root / f"{NAME}.zip.part"
    part.write_bytes(server.data[:500])
    server.data, server.skips = b"<html>please log in</html>" * 100, skips
    code, said = prepare()
    assert code == 2 and "the server has 2600 bytes there" in said and "--url" in said
    assert part.stat().st_size == 500 and len(server.ranges) == 1


def test_a_file_of_another_size_that_the_server_does_not_tell(prepare: Callable, server: Server, root: Path) -> None:
    size = len(server.data)
    server.tells_length, server.data = False, server.data + b"more"
    code, said = prepare()
    assert code == 2 and f"what arrived has {size + 4} bytes, not {size}" in said and "it was removed" in said
    assert not list(root.glob("ADE*"))


def test_other_bytes_of_the_right_size(prepare: Callable, server: Server, root: Path) -> None:
    server.data = server.data[:-1] + b"\1"
    code, said = prepare()
    assert code == 2 and "has SHA-1" in said and "it was removed: run again" in said
    assert not list(root.glob("ADE*"))


def test_a_given_zip_is_used_and_left(
    prepare: Callable, server: Server, root: Path, files: dict, zip_path: Path, tree: Callable
) -> None:
    code, said = prepare("--zip", str(zip_path), "--no-unpack")
    assert code == 0 and f"--data.root {zip_path} reads it" in said and tree(root) == {}
    assert prepare("--zip", str(zip_path))[0] == 0
    assert tree(root) == files and zip_path.exists() and server.ranges == []


def test_a_zip_already_in_the_root_is_used_and_left(
    prepare: Callable, server: Server, root: Path, zip_path: Path
) -> None:
    root.mkdir()
    zip_path.rename(root / f"{NAME}.zip")
    assert prepare()[0] == 0
    assert (root / f"{NAME}.zip").exists() and (root / NAME).is_dir() and server.ranges == []


def test_wrong_zips(prepare: Callable, root: Path, zip_path: Path, tmp_path: Path, write_zip: Callable) -> None:
    full = "ADE20K_2021_17_01/images/ADE/training/urban/street/ADE_train_00016858"
    full_zip = write_zip(tmp_path / "full.zip", {f"{full}.jpg": b"j", f"{full}_seg.png": b"p"})
    cut = tmp_path / "cut.zip"
    cut.write_bytes(zip_path.read_bytes()[:-10])
    damaged = tmp_path / "damaged.zip"
    damaged.write_bytes(b"\0" + zip_path.read_bytes()[1:])
    expected = {
        full_zip: "is the full ADE20K",
        cut: "incomplete or another file",
        damaged: "damaged or another file",
        tmp_path / "absent.zip": "no such file",
    }
    for path, words in expected.items():
        code, said = prepare("--zip", str(path))
        assert code == 2 and str(path) in said and words in said
    assert full_zip.exists() and cut.exists() and damaged.exists() and not list(root.glob("ADE*"))


def test_a_zip_with_too_few_annotations(
    program: ModuleType, files: dict, root: Path, tmp_path: Path, write_zip: Callable, archive: Any, capsys
) -> None:
    fewer = {name: data for name, data in files.items() if not name.endswith("val_00000002.png")}
    path = write_zip(tmp_path / "fewer.zip", fewer)
    sha1 = hashlib.sha1(path.read_bytes()).hexdigest()
    known = program.Archive(size=path.stat().st_size, sha1=sha1, layout=archive.layout)
    assert program.main(["--root", str(root), "--zip", str(path)], known) == 2
    assert "has 1 of the 2 files annotations/validation/*.png" in capsys.readouterr().err


def test_an_incomplete_data_set_in_the_way(prepare: Callable, server: Server, root: Path) -> None:
    (root / NAME / "images/training").mkdir(parents=True)
    code, said = prepare()
    assert code == 2 and "has 0 of the 3 files images/training/*.jpg; move it away" in said
    assert server.ranges == []


def test_a_disk_that_is_too_small(prepare: Callable, server: Server, program: ModuleType, common, monkeypatch) -> None:
    usage = type("Usage", (), {"free": 2 * len(server.data)})  # zip and images need 2.2 times
    monkeypatch.setattr(common.shutil, "disk_usage", lambda _: usage)
    code, said = prepare()
    assert code == 2 and "the disk has" in said and server.ranges == []
    assert prepare("--no-unpack")[0] == 0


def test_an_interruption_while_unpacking(
    prepare: Callable, common: ModuleType, root: Path, files: dict, server: Server, tree: Callable, monkeypatch
) -> None:
    real = common._write

    def write(archive, member, *rest) -> None:
        if member.filename.endswith("val_00000001.png"):
            raise KeyboardInterrupt
        real(archive, member, *rest)

    monkeypatch.setattr(common, "_write", write)
    code, said = prepare()
    assert (code, said) == (130, "interrupted; run again to go on from there") and not (root / NAME).exists()
    monkeypatch.setattr(common, "_write", real)
    assert prepare()[0] == 0
    assert tree(root) == files and server.ranges == [None]


@pytest.mark.parametrize("name", ["ade20k", "cityscapes"])
def test_it_runs_as_a_program_from_any_folder(name: str, tmp_path: Path) -> None:
    path = Path(__file__).parents[2] / f"datasets/prepare_{name}.py"
    done = subprocess.run([sys.executable, path, "--help"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0 and "--no-unpack" in done.stdout, done.stderr
