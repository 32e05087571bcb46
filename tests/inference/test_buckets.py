"""`segkit infer` by fsspec's addresses: parts and shards, stops of all kinds, and who else works in the output."""

import io
import itertools
import json
import os
import resource
import shutil
import tarfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np
import pytest
from checkpoints import write_tiny
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.implementations.tar import TarFileSystem

from segkit.cli.infer import main
from segkit.errors import InputError
from segkit.inference.parts import Part, parts
from segkit.inference.segmenter import load
from segkit.io import buckets
from segkit.io.buckets import Bucket
from segkit.paths import Address, path_or_address

NAMES = ("a.png", "a.jpg.png", "a_b.png", "deep/er/ü ñ.png", "deep/a.bmp", "z.png", "é.png")
SHARDED = ("--shards", "2")

Run = Callable[..., int]
Put = Callable[[Bucket, str, Path], None]


class KilledError(BaseException):
    """What no handler of errors sees, as of a signal."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("weights"))


@pytest.fixture(autouse=True)
def memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[MemoryFileSystem]:
    """An empty object store, whose troubles pass without waiting."""
    monkeypatch.setattr(MemoryFileSystem, "store", {})
    monkeypatch.setattr(MemoryFileSystem, "pseudo_dirs", [""])
    monkeypatch.setattr(buckets, "WAITS", (0, 0))
    yield MemoryFileSystem()


@pytest.fixture(params=["memory", "local"])
def out(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return "memory://out" if request.param == "memory" else str(tmp_path / "out")


@pytest.fixture
def run(checkpoint: Path) -> Run:
    def call(*args: object, output: object = "memory://out") -> int:
        how = ("--checkpoint", checkpoint, "--output", output, "--device", "cpu", "--output_kinds", "labels")
        return main([*map(str, (*args, *how))])

    return call


def fill(memory: MemoryFileSystem, names: tuple[str, ...] = NAMES) -> None:
    for i, name in enumerate(names):
        memory.pipe_file(f"/in/{name}", encoded(i, Path(name).suffix))


def encoded(seed: int, suffix: str = ".png") -> bytes:
    image = np.random.default_rng(seed).integers(0, 256, (24, 32, 3), np.uint8)
    return bytes(cv2.imencode(suffix, image)[1])


def samples(out: str) -> dict[str, bytes]:
    """The labels of all shards by the address of their image, each image once."""
    bucket, found = Bucket(out), list[tuple[str, bytes]]()
    for name in bucket.names(""):
        if not name.endswith(".tar"):
            continue
        with tarfile.open(fileobj=io.BytesIO(bucket.get(name) or b"")) as shard:
            files = {member.name: shard.extractfile(member).read() for member in shard}  # type: ignore[union-attr]
        keys = sorted({key.partition(".")[0] for key in files})
        assert list(files) == [f"{key}.{ending}" for key in keys for ending in ("json", "labels.png")]
        found += [(json.loads(files[f"{key}.json"])["image"], files[f"{key}.labels.png"]) for key in keys]
    assert len(dict(found)) == len(found)
    return dict(found)


def lines(out: str) -> list[dict[str, object]]:
    bucket = Bucket(out)
    names = [name for name in bucket.names("manifest") if name != "run.json"]
    return [json.loads(bucket.get(f"manifest/{name}") or b"") for name in names]


def all_of(names: tuple[str, ...] = NAMES) -> set[str]:
    return {f"memory:///in/{name}" for name in names}


def stop_after(monkeypatch: pytest.MonkeyPatch, count: int, half: bool = False) -> None:
    """End the process at the next write but `count`, whose file it leaves out or cuts in half."""
    put, left = Bucket.put, itertools.count(count, -1)

    def killed(self: Bucket, name: str, source: Path) -> None:
        if next(left) > 0:
            return put(self, name, source)
        if half:
            data = source.read_bytes()
            self._fs.pipe_file(f"{self._root}/{name}", data[: len(data) // 2])
        raise KilledError

    monkeypatch.setattr(Bucket, "put", killed)


@pytest.mark.slow
@pytest.mark.parametrize("half", [False, True])
def test_three_kills_leave_each_image_done_once(
    memory: MemoryFileSystem, run: Run, out: str, monkeypatch: pytest.MonkeyPatch, half: bool
) -> None:
    fill(memory)
    for count in (1, 0, 2):
        with monkeypatch.context() as patched, pytest.raises(KilledError):
            stop_after(patched, count, half)
            run("memory://in", *SHARDED, output=out)
    assert len(lines(out)) == 3
    assert run("memory://in", *SHARDED, output=out) == 0
    assert samples(out).keys() == all_of()
    assert [(line["first"], line["count"]) for line in lines(out)][-1] == ("memory:///in/deep/er/ü ñ.png", 1)
    with monkeypatch.context() as patched:
        stop_after(patched, 0)
        assert run("memory://in", *SHARDED, output=out) == 0  # writes nothing


@pytest.mark.slow
def test_labels_are_those_of_the_network(memory: MemoryFileSystem, run: Run, checkpoint: Path) -> None:
    fill(memory)
    assert run("memory://in", *SHARDED) == 0
    assert run("memory://in", output="memory://loose") == 0
    segmenter, found = load(checkpoint, "cpu"), samples("memory://out")
    for i, name in enumerate(NAMES):
        image = cv2.imdecode(np.frombuffer(encoded(i), np.uint8), cv2.IMREAD_COLOR_RGB)
        png = np.frombuffer(found[f"memory:///in/{name}"], np.uint8)
        assert np.array_equal(cv2.imdecode(png, cv2.IMREAD_UNCHANGED), segmenter.predict(image))
        assert memory.cat_file(f"/loose/{name}_labels.png") == png.tobytes()


def test_ranks_share_the_parts(memory: MemoryFileSystem, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(memory)
    for rank, count in enumerate((4, 3)):
        monkeypatch.setenv("SLURM_PROCID", str(rank))
        monkeypatch.setenv("SLURM_NTASKS", "2")
        assert run("memory://in", *SHARDED) == 0
        assert len(samples("memory://out")) == (4, 7)[rank], count
    assert samples("memory://out").keys() == all_of()
    assert run("memory://in", *SHARDED, "--overwrite") == 2


@pytest.mark.slow
def test_two_processes_with_one_output(
    memory: MemoryFileSystem, run: Run, out: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(memory)
    put, others = Bucket.put, iter((SHARDED, ("--shards", "3")))
    codes = []

    def interrupted(self: Bucket, name: str, source: Path) -> None:
        if (other := next(others, None)) is not None:
            codes.append(run("memory://in", *other, output=out))
        put(self, name, source)

    monkeypatch.setattr(Bucket, "put", interrupted)
    assert run("memory://in", *SHARDED, output=out) == 0
    assert codes == [2, 0]  # the other's other settings while it works, and the same ones
    assert "has results of other settings (shards)" in capsys.readouterr().err
    assert samples(out).keys() == all_of()


@pytest.mark.slow
def test_beginning_anew_stops_a_process_that_works_there(
    memory: MemoryFileSystem, run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(memory)
    put, others = Bucket.put, iter([("--shards", "3", "--overwrite")])

    def interrupted(self: Bucket, name: str, source: Path) -> None:
        if (other := next(others, None)) is not None:
            assert run("memory://in", *other) == 0
        put(self, name, source)

    monkeypatch.setattr(Bucket, "put", interrupted)
    assert run("memory://in", *SHARDED) == 2
    assert "another process has begun anew" in capsys.readouterr().err


@pytest.mark.slow
def test_an_image_that_cannot_be_read_is_noted_and_not_tried_again(
    memory: MemoryFileSystem, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(memory)
    memory.pipe_file("/in/a.png", b"no image")
    for _ in range(2):
        assert run("memory://in", *SHARDED) == 1
    assert capsys.readouterr().err.count("memory:///in/a.png: not an image") == 1
    assert [line["failures"] for line in lines("memory://out")].count({}) == 3
    assert samples("memory://out").keys() == all_of() - {"memory:///in/a.png"}
    memory.pipe_file("/in/a.png", encoded(0))
    assert run("memory://in", *SHARDED, "--overwrite") == 0
    assert samples("memory://out").keys() == all_of()


@pytest.mark.slow
def test_a_store_that_fails_for_a_while_and_one_that_refuses(
    memory: MemoryFileSystem, run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(memory)
    cat, fails = MemoryFileSystem.cat_file, iter([TimeoutError("slow down"), RuntimeError("503")])

    def flaky(self: MemoryFileSystem, path: str, *args: object, **how: object) -> bytes:
        if "/in/" in path and (error := next(fails, None)) is not None:
            raise error
        return bytes(cat(self, path, *args, **how))

    monkeypatch.setattr(MemoryFileSystem, "cat_file", flaky)
    assert run("memory://in", *SHARDED) == 0
    for error, words in ((PermissionError("Forbidden"), "must not be read"), (TimeoutError("gone"), "fails")):
        capsys.readouterr()
        fails = itertools.repeat(error)  # type: ignore[assignment]
        assert run("memory://in", *SHARDED, output="memory://other") == 2
        said = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
        assert words in said[-1] and str(error) in said[-1]
        assert not lines("memory://other")
        fails = iter([])
    assert run("memory://in", *SHARDED, output="memory://other") == 0


def test_images_that_are_gone_are_not_noted_as_failed(
    memory: MemoryFileSystem, run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(memory)
    with monkeypatch.context() as patched:
        put = Bucket.put
        patched.setattr(Bucket, "put", lambda self, *what: (put(self, *what), memory.rm("/in", recursive=True)))
        assert run("memory://in", *SHARDED) == 2
    assert "nothing of part 000001 can be read" in capsys.readouterr().err
    fill(memory)
    assert run("memory://in", *SHARDED) == 0
    assert samples("memory://out").keys() == all_of()


def test_a_bucket_that_cannot_be_listed_is_one_line(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("memory://nowhere") == 2
    assert "no such place" in capsys.readouterr().err

    def refuse(*args: object, **how: object) -> None:
        raise PermissionError("AccessDenied")

    monkeypatch.setattr(MemoryFileSystem, "ls", refuse)
    assert run("memory://in") == 2
    assert "memory:///in: refuses access (PermissionError: AccessDenied)" in capsys.readouterr().err
    assert run("unheard://in") == 2
    capsys.readouterr()
    assert run("simplecache::memory://in") == 2
    assert "only archives are read through `::`" in capsys.readouterr().err


def test_a_folder_that_grows_and_shrinks(
    memory: MemoryFileSystem, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    for names, given in ((NAMES[:3], "memory://in"), (NAMES, "memory:///in/")):  # one place, spelt twice
        fill(memory, names)
        assert run(given, *SHARDED) == 0
        assert samples("memory://out").keys() == all_of(names)
        assert len(lines("memory://out")) == -(-len(names) // 2)
    for name in NAMES[2:]:
        memory.rm(f"/in/{name}")
    assert run("memory://in", *SHARDED) == 0  # nothing is lost, as a list may have been cut short by accident
    assert "memory:///out has 3 parts of a longer list, from 000001 on; they are left" in capsys.readouterr().err
    assert samples("memory://out").keys() == all_of()


def test_another_list_does_not_replace_the_results_of_the_first(
    memory: MemoryFileSystem, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(memory)
    assert run("memory://in", *SHARDED) == 0
    assert run("memory://in/deep", *SHARDED) == 2
    assert "memory:///out: has results of other settings (images)" in capsys.readouterr().err
    assert samples("memory://out").keys() == all_of()


def test_lists_of_addresses_and_paths(
    memory: MemoryFileSystem, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(memory)
    (tmp_path / "local.png").write_bytes(encoded(9))
    with zipfile.ZipFile(tmp_path / "some.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("in/x.png", encoded(8))
    zipped = f"zip://in/x.png::{tmp_path / 'some.zip'}"
    images = ["memory://in/a.png", str(tmp_path / "local.png"), zipped, "memory://in/none.png"]
    (tmp_path / "list.txt").write_text("\r\n".join(["", *images]), encoding="utf-8-sig", newline="")
    assert run("--list", tmp_path / "list.txt", *SHARDED) == 1
    assert samples("memory://out").keys() == set(images[:3])
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(zipped.encode("utf-8-sig"))))
    assert run("--list", "-", *SHARDED, output=tmp_path / "out") == 0
    assert samples(str(tmp_path / "out")).keys() == {zipped}
    assert run(f"zip://::{tmp_path / 'some.zip'}", output=tmp_path / "loose") == 0
    assert (tmp_path / "loose/in/x.png_labels.png").is_file()


@pytest.mark.parametrize("damage", [b"", b'{"part": 0, "ru', None])
def test_a_damaged_line_of_the_manifest_is_made_again(memory: MemoryFileSystem, run: Run, damage: bytes | None) -> None:
    fill(memory, NAMES[:2])
    assert run("memory://in", *SHARDED) == 0
    whole = lines("memory://out")
    memory.pipe_file(
        "/out/manifest/000000.json", json.dumps(whole[0] | {"failures": None}).encode() if damage is None else damage
    )
    assert run("memory://in", *SHARDED) == 0
    assert lines("memory://out") == whole


def test_a_damaged_member_of_a_zip_fails_alone(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "some.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.png", encoded(8))
        archive.writestr("y.png", encoded(9))
    data = bytearray(path.read_bytes())
    data[200] ^= 255
    path.write_bytes(data)
    assert run(f"zip://::{path}", *SHARDED) == 1
    assert samples("memory://out").keys() == {f"zip://y.png::{path}"}


def test_lines_of_a_list_that_lead_nowhere_fail_alone(run: Run, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    os.symlink("loop.png", tmp_path / "loop.png")
    for name in ("in.tar", "a.png"):
        (tmp_path / name).write_bytes(encoded(1))
    bad = ("unheard://a.png", f"tar://a.png::{tmp_path / 'in.tar'}", tmp_path / "pipe.png", tmp_path / "loop.png")
    (tmp_path / "list.txt").write_text("\n".join(map(str, (*bad, tmp_path / "a.png"))), encoding="utf-8")
    assert run("--list", tmp_path / "list.txt", *SHARDED) == 1
    assert samples("memory://out").keys() == {str(tmp_path / "a.png")}
    assert [len(line["failures"]) for line in lines("memory://out")] == [2, 2, 0]  # type: ignore[arg-type]


def test_a_bucket_is_read_by_many_threads(memory: MemoryFileSystem, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(memory, NAMES[:4])
    cat, all_four = MemoryFileSystem.cat_file, threading.Barrier(4, timeout=10)

    def watched(self: MemoryFileSystem, path: str, *args: object, **how: object) -> bytes:
        if "/in/" in path:
            all_four.wait()  # raises where the others do not come
        return bytes(cat(self, path, *args, **how))

    monkeypatch.setattr(MemoryFileSystem, "cat_file", watched)
    assert run("memory://in", "--shards", "4") == 0


def test_a_tar_is_read_by_one_thread_at_a_time(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tarfile.open(tmp_path / "in.tar", "w") as archive:
        for i in range(4):
            member = tarfile.TarInfo(f"{i}.png")
            member.size = len(encoded(i))
            archive.addfile(member, io.BytesIO(encoded(i)))
    cat, reading, codes = TarFileSystem.cat_file, threading.Lock(), list[bool]()

    def watched(self: TarFileSystem, path: str) -> bytes:
        codes.append(reading.acquire(blocking=False))
        time.sleep(0.01)  # lets the others in
        content = bytes(cat(self, path))
        with suppress(RuntimeError):
            reading.release()
        return content

    monkeypatch.setattr(TarFileSystem, "cat_file", watched)
    assert run(f"tar://::{tmp_path / 'in.tar'}", "--shards", "4") == 0
    assert codes == [True] * 4


def test_threads_that_come_together_open_an_archive_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
        archive.writestr("a.png", encoded(1))
    opened, url_to_fs = list[str](), buckets.url_to_fs

    def slow(address: str, **how: object) -> object:
        opened.append(address)
        time.sleep(0.02)  # lets the others in
        return url_to_fs(address, **how)

    monkeypatch.setattr(buckets, "url_to_fs", slow)
    addresses = [f"zip://a.png::{tmp_path / 'in.zip'}"] * 4
    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(lambda address: buckets.Remote(address).read_bytes(), addresses)) == {encoded(1)}
    assert len(opened) == 1


def test_local_folders_in_parts(run: Run, tmp_path: Path) -> None:
    for name in ("in/a.png", "in/.hidden/b.png", "in/deep/c.PNG", "in/notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(encoded(1))
    os.symlink(tmp_path / "in", tmp_path / "in/deep/up")
    assert run(tmp_path / "in", *SHARDED, output=tmp_path / "in/out") == 0
    assert run(tmp_path / "in", *SHARDED, output=tmp_path / "in/out") == 0  # its results are no images of it
    assert samples(str(tmp_path / "in/out")).keys() == {str(tmp_path / "in/a.png"), str(tmp_path / "in/deep/c.PNG")}
    assert run(tmp_path / "in", *SHARDED, output=tmp_path / "in") == 2
    shutil.rmtree(tmp_path / "in/out")
    assert not list(tmp_path.rglob("*.tmp"))


def test_no_result_leaves_the_output(memory: MemoryFileSystem, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    memory.store["/in/../../a.png"] = memory.open("/x", "wb")
    memory.pipe_file("/list.txt", b"memory://in/../../a.png\n")
    assert run("--list", "memory://list.txt", "memory://in") in (1, 2)
    assert "leads out of the output" in capsys.readouterr().err


@pytest.mark.parametrize("place", ["file", "file/below", "zip://::some.zip"])
def test_an_output_that_cannot_be_written_is_one_line(
    memory: MemoryFileSystem,
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    place: str,
) -> None:
    fill(memory)
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    zipfile.ZipFile("some.zip", "w").close()
    assert run("memory://in", *SHARDED, output=place) == 2
    assert "give " in (said := capsys.readouterr().err) and "--output" in said and "tried again" not in said


def test_a_full_disk_is_that_of_the_output_and_leaves_no_half_file(tmp_path: Path) -> None:
    (source := tmp_path / "source").write_bytes(b"12345")
    bucket, limits = Bucket(str(tmp_path / "out")), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4, limits[1]))  # bytes
    try:
        with pytest.raises(InputError, match=r"out/shard\.tar: cannot be written"):
            bucket.put("shard.tar", source)
        with pytest.raises(InputError, match="cannot be written"):
            bucket.write("run.json", b"12345", only_new=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list((tmp_path / "out").iterdir())


def test_one_of_two_local_processes_writes_a_new_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def without_links(*args: object) -> None:
        raise PermissionError("no links on this disk")

    for name in ("run.json", "again.json"):
        assert [Bucket(str(tmp_path)).write(name, data, only_new=True) for data in (b"1", b"2")] == [True, False]
        monkeypatch.setattr(os, "link", without_links)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"run.json": b"1", "again.json": b"1"}


def test_what_parts_cannot_do_is_refused(run: Run, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    how = ("memory://in", "--checkpoint", str(checkpoint), "--output", "memory://out")
    assert main([*how, "--output_kinds", "coco"]) == 2
    assert main([*how, "--pages"]) == 2
    for output in ("out", "memory://out"):
        assert main(["--checkpoint", str(checkpoint), "--output", output]) == 2
    assert main([*how[:2], "missing.ckpt", *how[3:]]) == 2
    assert not MemoryFileSystem.store  # so that the right command is not one of other settings
    assert capsys.readouterr().err.count("segkit infer: error") == 5


def test_one_part_of_an_endless_list_is_held() -> None:
    endless = parts(map(str, itertools.count()), 3)
    assert [next(endless), next(endless)] == [Part(0, 0, ("0", "1", "2")), Part(1, 3, ("3", "4", "5"))]


def test_addresses_and_paths() -> None:
    for text in ("s3://bucket/a", "zip://::a.zip", "simplecache::s3://bucket", "https://host/a.png"):
        assert isinstance(path_or_address(text), Address)
    for text in ("a/b", "-", "rtsp://camera/1", "a::b", "C:/a"):
        assert isinstance(path_or_address(text), Path)
