"""prepare_cityscapes.py with cityscapesScripts' downloader played by a stand-in, and small zips in the true layout."""

import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import requests
from cityscapesscripts.download import downloader

CITIES = {"train": "aachen", "val": "munster", "test": "berlin", "train_extra": "augsburg"}
KINDS = {"color.png": b"c", "instanceIds.png": b"i", "labelIds.png": b"l", "polygons.json": b"{}"}
FINE = {"train": 3, "val": 2, "test": 1}
EXTRA = {"train_extra": 4}
COARSE = {"train": 3, "val": 2, "train_extra": 4}


def frames(counts: dict[str, int], kind: str) -> list[str]:
    return [
        f"{kind}/{split}/{CITIES[split]}/{CITIES[split]}_000000_{i:06}_{kind}"
        for split, count in counts.items()
        for i in range(count)
    ]


def images(counts: dict[str, int]) -> dict[str, bytes]:
    top = {"license.txt": b"terms", "README": b"read"}
    return top | {f"{name}.png": name.encode() * 9 for name in frames(counts, "leftImg8bit")}


def labels(counts: dict[str, int], kind: str) -> dict[str, bytes]:
    top = {"license.txt": b"terms", "README": b"read"}
    return top | {f"{name}_{end}": data * 40 for name in frames(counts, kind) for end, data in KINDS.items()}


CONTENTS = {
    "gtFine_trainvaltest.zip": labels(FINE, "gtFine"),
    "leftImg8bit_trainvaltest.zip": images(FINE),
    "gtCoarse.zip": labels(COARSE, "gtCoarse"),
    "leftImg8bit_trainextra.zip": images(EXTRA),
}
BOTH = CONTENTS["gtFine_trainvaltest.zip"] | CONTENTS["leftImg8bit_trainvaltest.zip"]


class Site:
    """What `login` and `download_packages` of cityscapesScripts do, but with bytes from here."""

    def __init__(self, packages: dict[str, bytes]) -> None:
        self.packages = packages
        self.logins = 0
        self.asked: list[tuple[str, int]] = []  # package, bytes that were there already
        self.refusal: BaseException | None = None
        self.breaks: list[int] = []  # bytes after which the next downloads break off
        self.damaged = False

    def login(self) -> str:
        self.logins += 1
        if self.refusal:
            raise self.refusal
        return "session"

    def download_packages(
        self, *, session: str, package_names: list[str], destination_path: str, resume: bool = False
    ) -> None:
        assert session == "session" and Path(destination_path).is_dir()
        for name in package_names:
            self.send(name, Path(destination_path) / name, resume)

    def send(self, name: str, path: Path, resume: bool) -> None:
        assert resume == path.exists()
        have, data = path.stat().st_size if resume else 0, self.packages[name]
        self.asked.append((name, have))
        if have >= len(data):
            response = requests.Response()
            response.status_code = 416
            raise requests.HTTPError("416 Client Error", response=response)
        stop = self.breaks.pop(0) if self.breaks else len(data)
        with path.open("ab") as file:
            file.write(data[have : have + stop])
        if have + stop < len(data):
            raise requests.ConnectionError("Connection broken:\nIncompleteRead")
        if self.damaged:
            raise Exception("MD5 sum of downloaded file does not match.")


class Session:
    """What the site answers to cityscapesScripts' own `download_packages`: list, hashes, bytes from a Range on."""

    def __init__(self, packages: dict[str, bytes]) -> None:
        self.packages = packages
        self.ranges: list[str | None] = []

    def get(self, url: str, headers: dict[str, str] | None = None, **_: object) -> requests.Response:
        page, _, number = url.removeprefix("https://www.cityscapes-dataset.com/").partition("/?packageID=")
        if page == "downloads/?list":
            return answer(200, json.dumps([{"name": n, "packageID": n, "size": "1KB"} for n in self.packages]).encode())
        data = self.packages[number]
        if page == "md5-sum":
            return answer(200, f"{hashlib.md5(data).hexdigest()}  {number}".encode())
        self.ranges.append((headers or {}).get("Range"))
        first = int((headers or {}).get("Range", "bytes=0-")[6:-1])
        return answer(206 if first < len(data) else 416, data[first:])


def answer(code: int, data: bytes) -> requests.Response:
    response = requests.Response()
    response.status_code, response.raw = code, io.BytesIO(data)
    return response


@pytest.fixture
def zips(tmp_path: Path, write_zip: Callable) -> dict[str, bytes]:
    return {name: write_zip(tmp_path / "site" / name, files).read_bytes() for name, files in CONTENTS.items()}


@pytest.fixture
def program(load: Callable[[str], ModuleType]) -> ModuleType:
    return load("prepare_cityscapes")


@pytest.fixture
def site(program: ModuleType, zips: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> Site:
    site = Site(zips)
    monkeypatch.setattr(downloader, "login", site.login)
    monkeypatch.setattr(downloader, "download_packages", site.download_packages)
    return site


@pytest.fixture
def packages(program: ModuleType, zips: dict[str, bytes]) -> dict[str, Any]:
    """As the program's table, with the small counts."""
    layouts = {
        "gtFine_trainvaltest.zip": program.folders("gtFine", "gtFine_labelIds", FINE),
        "leftImg8bit_trainvaltest.zip": program.folders("leftImg8bit", "leftImg8bit", FINE),
        "gtCoarse.zip": program.folders("gtCoarse", "gtCoarse_labelIds", COARSE),
        "leftImg8bit_trainextra.zip": program.folders("leftImg8bit", "leftImg8bit", EXTRA),
    }
    assert layouts.keys() == program.PACKAGES.keys()
    return {name: program.Package(len(zips[name]), layout) for name, layout in layouts.items()}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "datasets/cityscapes"


@pytest.fixture
def prepare(program: ModuleType, packages: dict, site: Site, root: Path, capsys: pytest.CaptureFixture) -> Callable:
    """Run the program; return its exit code and what it said last."""

    def run(*options: str) -> tuple[int, str]:
        code = program.main(["--root", str(root), *options], packages)
        said = capsys.readouterr()
        lines = [line for line in said.err.splitlines() if line.startswith(("error", "interrupted"))]
        assert len(lines) == (code != 0)
        return code, lines[0] if code else said.out.splitlines()[-1]

    return run


def test_what_it_knows_of_the_real_ones(program: ModuleType) -> None:
    counts = {f: set(p.values()) for package in program.PACKAGES.values() for f, p in package.layout.items()}
    for kind in ("leftImg8bit", "gtFine"):
        assert [counts[f"{kind}/{split}"] for split in ("train", "val", "test")] == [{2975}, {500}, {1525}]
    assert counts["leftImg8bit/train_extra"] == counts["gtCoarse/train_extra"] == {19998}
    assert counts["gtCoarse/train"] == {2975} and counts["gtCoarse/val"] == {500} and len(counts) == 10


def test_log_in_download_unpack_and_then_nothing(prepare: Callable, site: Site, root: Path, tree: Callable) -> None:
    assert prepare() == (0, f"{root}: complete; --data.root {root} reads it")
    assert tree(root) == BOTH  # no trainIds, and no zip, part or temporary file
    assert site.logins == 1 and len(site.asked) == 2
    code, said = prepare()
    assert code == 0 and "complete already; nothing was done" in said
    assert site.logins == 1 and tree(root) == BOTH


def test_coarse_comes_beside_fine(prepare: Callable, site: Site, root: Path, tree: Callable) -> None:
    assert prepare()[0] == 0
    assert prepare("--coarse")[0] == 0
    assert tree(root) == BOTH | CONTENTS["gtCoarse.zip"] | CONTENTS["leftImg8bit_trainextra.zip"]
    assert [name for name, _ in site.asked[2:]] == ["gtCoarse.zip", "leftImg8bit_trainextra.zip"]


def test_zips_in_the_root_are_used_and_left(
    prepare: Callable, site: Site, root: Path, zips: dict, tree: Callable
) -> None:
    root.mkdir(parents=True)
    for name in ("gtFine_trainvaltest.zip", "leftImg8bit_trainvaltest.zip"):
        (root / name).write_bytes(zips[name])
    assert prepare()[0] == 0
    assert tree(root) == BOTH | {name: zips[name] for name in list(zips)[:2]}
    assert site.logins == 0


@pytest.mark.parametrize("option", ["--no-unpack", "--keep-zip"])
def test_zips_are_kept_if_asked_for(
    prepare: Callable, site: Site, root: Path, zips: dict, tree: Callable, option: str
) -> None:
    files = CONTENTS["gtFine_trainvaltest.zip"] if option == "--keep-zip" else {}
    for _ in range(2):
        assert prepare(option, "--packages", "gtFine_trainvaltest.zip")[0] == 0
        assert tree(root) == files | {"gtFine_trainvaltest.zip": zips["gtFine_trainvaltest.zip"]}
    assert site.logins == 1


def test_a_download_that_broke_off_goes_on(prepare: Callable, site: Site, root: Path, tree: Callable) -> None:
    site.breaks = [300]
    code, said = prepare()
    assert code == 2 and "gtFine_trainvaltest.zip: broke off (Connection broken: IncompleteRead)" in said
    assert not (root / "gtFine").exists()
    assert prepare()[0] == 0
    first, second = "gtFine_trainvaltest.zip", "leftImg8bit_trainvaltest.zip"
    assert site.asked == [(first, 0), (first, 300), (second, 0)] and tree(root) == BOTH


def test_a_download_that_was_killed_at_its_end_is_not_asked_for_again(
    prepare: Callable, site: Site, root: Path, zips: dict, tree: Callable
) -> None:
    (root / "zips.part").mkdir(parents=True)
    for name in ("gtFine_trainvaltest.zip", "leftImg8bit_trainvaltest.zip"):
        (root / "zips.part" / name).write_bytes(zips[name])
    assert prepare()[0] == 0
    assert site.logins == 0 and tree(root) == BOTH


def test_with_the_downloader_itself(
    program: ModuleType, packages: dict, zips: dict, root: Path, tree: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole, from a part, from a part of other bytes, and from other bytes of the full length."""
    session = Session(zips)
    monkeypatch.setattr(downloader, "login", lambda: session)
    first, second = "gtFine_trainvaltest.zip", "leftImg8bit_trainvaltest.zip"
    own = root / "zips.part"
    own.mkdir(parents=True)
    (own / first).write_bytes(zips[first][:500])
    (own / second).write_bytes(b"?" * 500)
    assert program.main(["--root", str(root)], packages) == 2  # the second has another MD5, and is removed
    assert session.ranges == ["bytes=500-", "bytes=500-"]
    (own / second).write_bytes(bytes(len(zips[second])))
    assert program.main(["--root", str(root)], packages) == 2  # 416
    assert program.main(["--root", str(root)], packages) == 0
    assert session.ranges[3:] == [None] and tree(root) == BOTH


@pytest.mark.parametrize("what", ["MD5", "416"])
def test_bytes_that_no_resuming_can_mend_are_removed(
    prepare: Callable, site: Site, root: Path, zips: dict, what: str
) -> None:
    if what == "MD5":
        site.damaged = True
    else:  # as long as the file, but not it
        (root / "zips.part").mkdir(parents=True)
        (root / "zips.part/gtFine_trainvaltest.zip").write_bytes(bytes(len(zips["gtFine_trainvaltest.zip"])))
    code, said = prepare()
    assert code == 2 and "damaged on the way" in said and "it was removed: run again" in said
    assert not list((root / "zips.part").iterdir())
    site.damaged = False
    assert prepare()[0] == 0


@pytest.mark.parametrize(
    "refusal, words",
    [
        (Exception("Bad credentials."), "no log-in (Bad credentials.)"),
        (requests.ConnectionError("no network"), "no log-in (no network)"),
        (EOFError(), "no terminal to ask for the account"),
    ],
)
def test_no_log_in(prepare: Callable, site: Site, root: Path, refusal: Exception, words: str) -> None:
    site.refusal = refusal
    code, said = prepare()
    assert code == 2 and words in said and "/register/" in said and str(root) in said
    assert site.asked == []


def test_a_zip_with_too_few_labels(prepare: Callable, root: Path, write_zip: Callable) -> None:
    files = {n: d for n, d in CONTENTS["gtFine_trainvaltest.zip"].items() if "000002_gtFine_labelIds" not in n}
    write_zip(root / "gtFine_trainvaltest.zip", files)
    for options in ([], ["--no-unpack"]):
        code, said = prepare(*options)
        assert code == 2 and "gtFine/train: has 2 of the 3 files */*_gtFine_labelIds.png" in said
    assert not (root / "gtFine").exists() and (root / "gtFine_trainvaltest.zip").exists()


def test_a_zip_that_is_cut_off_or_another(prepare: Callable, root: Path, zips: dict) -> None:
    root.mkdir(parents=True)
    (root / "gtFine_trainvaltest.zip").write_bytes(zips["gtFine_trainvaltest.zip"][:-40])
    code, said = prepare("--packages", "gtFine_trainvaltest.zip")
    assert code == 2 and "not a complete zip" in said
    (root / "gtFine_trainvaltest.zip").write_bytes(zips["gtCoarse.zip"])
    code, said = prepare("--packages", "gtFine_trainvaltest.zip")
    assert code == 2 and "gtFine/train: has 0 of the 3 files" in said


def test_a_damaged_zip_is_found_without_unpacking(prepare: Callable, root: Path, zips: dict) -> None:
    root.mkdir(parents=True)
    data = bytearray(zips["leftImg8bit_trainvaltest.zip"])
    name = b"aachen_000000_000001_leftImg8bit.png"
    data[data.index(name) + len(name) + 3] ^= 0xFF
    (root / "leftImg8bit_trainvaltest.zip").write_bytes(data)
    code, said = prepare("--packages", "leftImg8bit_trainvaltest.zip", "--no-unpack")
    assert code == 2 and "aachen_000000_000001_leftImg8bit.png in it is damaged" in said


def test_an_incomplete_folder_in_the_way(prepare: Callable, site: Site, root: Path) -> None:
    (root / "gtFine/val").mkdir(parents=True)
    code, said = prepare()
    assert code == 2 and "gtFine/val: has 0 of the 2 files" in said and "move it away" in said
    assert site.logins == 0


def test_a_killed_run_between_two_folders(prepare: Callable, common: ModuleType, root, tree, monkeypatch) -> None:
    renamed: list[str] = []

    def rename(source, target, real=common.os.rename) -> None:
        if len(renamed) == 1:
            raise KeyboardInterrupt
        real(source, target)
        renamed.append(str(target))

    with monkeypatch.context() as patch:
        patch.setattr(common.os, "rename", rename)
        code, _ = prepare()
    assert (root / "gtFine/train").is_dir() and not (root / "gtFine/val").exists() and code == 130
    assert prepare()[0] == 0
    assert tree(root) == BOTH


def test_a_disk_that_is_too_small(prepare: Callable, site: Site, common: ModuleType, monkeypatch) -> None:
    monkeypatch.setattr(common.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 100}))
    code, said = prepare()
    assert code == 2 and "the disk has 0.00 GB" in said and site.logins == 0


def test_other_packages_are_refused(program: ModuleType, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        program.main(["--packages", "disparity_trainvaltest.zip"])
    assert "gtFine_trainvaltest.zip" in capsys.readouterr().err
