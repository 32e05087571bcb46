"""ImageNet weights: a server on this machine that answers as the hub does, with made-up weights."""

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import pytorch_lightning as pl
import timm
import torch
from safetensors.torch import save

from segkit.cli import main
from segkit.errors import InputError
from segkit.models import download
from segkit.models.encoders import build_encoder
from segkit.models.pretrained import REPOSITORIES, imagenet_repository, imagenet_weights_path
from segkit.models.resnest import RESNEST_VARIANTS, ResNeSt
from segkit.models.segmentation import FCN
from segkit.models.weights import read_checkpoint
from segkit.training.module import SegmentationModule
from segkit.training.network import InitialWeights

REPOSITORY = "timm/tiny.in1k"


class Hub(ThreadingHTTPServer):
    """Redirects HEAD and GET of a repository's file to its bytes, as the hub does to its storage."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.files: dict[str, bytes] = {}
        self.declared: dict[str, str] = {}  # other hashes than the right ones
        self.requests: list[tuple[str, str, str | None]] = []  # method, path, Range
        self.breaks: list[int] = []  # bytes after which the next answers break off
        self.ranges = True

    def add(self, repository: str, data: bytes) -> None:
        self.files[f"/{repository}/resolve/main/model.safetensors"] = data

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Answer(BaseHTTPRequestHandler):
    """One request."""

    server: Hub

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def answer(self, with_body: bool) -> None:
        hub = self.server
        hub.requests.append((self.command, self.path, self.headers.get("Range")))
        if self.path.startswith("/old/"):  # a repository that was renamed: no hash in this answer
            self.reply(307, {"Location": self.path.replace("/old/", "/timm/")})
        elif self.path in hub.files:
            data = hub.files[self.path]
            etag = hub.declared.get(self.path, hashlib.sha256(data).hexdigest())
            headers = {"X-Linked-Etag": f'"{etag}"', "X-Linked-Size": str(len(data)), "ETag": '"of-the-redirection"'}
            self.reply(302, headers | {"Location": f"/stored{self.path}", "X-Repo-Commit": "0" * 40})
        elif self.path.removeprefix("/stored") in hub.files and not with_body:
            self.reply(403, {})  # an address signed for GET
        elif self.path.removeprefix("/stored") in hub.files:
            self.send(hub.files[self.path.removeprefix("/stored")])
        else:
            self.reply(404, {})

    def send(self, data: bytes) -> None:
        first, wanted = 0, self.headers.get("Range")
        if wanted and self.server.ranges:
            first = int(wanted.removeprefix("bytes=").removesuffix("-"))
        body = data[first:]
        self.send_response(206 if first else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: self.server.breaks.pop(0)] if self.server.breaks else body)

    def reply(self, code: int, headers: dict[str, str]) -> None:
        self.send_response(code)
        for name, value in ({"Content-Length": "0"} | headers).items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def weights() -> bytes:
    """An encoder with its classifier, as timm publishes one."""
    torch.manual_seed(1)
    return save(ResNeSt(**RESNEST_VARIANTS["resnest14_tiny"], num_classes=10).state_dict())


@pytest.fixture
def server(weights: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    server = Hub()
    server.add(REPOSITORY, weights)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("SEGKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(download, "_PAUSE", 0.0)
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def cached(tmp_path: Path) -> Path:
    """Where the file must end up."""
    return tmp_path / "cache" / REPOSITORY / "model.safetensors"


def refused(repository: str = REPOSITORY) -> str:
    with pytest.raises(InputError) as caught:
        imagenet_weights_path(repository)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_timm_encoders_get_timms_weights_in_fit_only(server: Hub) -> None:
    torch.manual_seed(1)
    given = timm.create_model("resnet10t").state_dict()
    server.add("timm/resnet10t.c3_in1k", save(given))
    module, weights = SegmentationModule(FCN("resnet10t", 2)), InitialWeights("imagenet")
    for stage in ("validate", "test", "predict"):
        weights.setup(pl.Trainer(logger=False), module, stage)
    assert server.requests == []
    weights.setup(pl.Trainer(logger=False), module, "fit")
    loaded = module.network.encoder.encoder.model.state_dict()
    assert loaded.keys() == {name for name in given if not name.startswith("fc.")}
    assert all(torch.equal(value, given[name]) for name, value in loaded.items())


@pytest.mark.slow
def test_the_first_fit_downloads_and_the_second_does_not_ask(
    server: Hub, cached: Path, weights: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(REPOSITORIES, "resnest14_tiny", REPOSITORY)
    data = ["--data", "SyntheticDataModule", "--data.root", str(tmp_path / "data"), "--data.batch_size", "2"]
    data += ["--data.num_train", "2", "--data.num_val", "1", "--data.num_test", "1", "--data.num_workers", "0"]
    data += ["--data.crop_size", "32", "--data.base_size", "64", "--data.height", "64", "--data.width", "64"]
    model = ["--model.network", "FCN", "--model.network.encoder", "resnest14_tiny", "--model.optim.lr", "1e-9"]
    trainer = ["--trainer.max_epochs", "1", "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
    fit = ["fit", *data, *model, *trainer, "--encoder_weights", "imagenet"]
    assert main([*fit, "--run_dir", str(tmp_path / "run")]) == 0
    assert cached.read_bytes() == weights
    trained = read_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt").state_dict
    torch.manual_seed(1)
    given = ResNeSt(**RESNEST_VARIANTS["resnest14_tiny"], num_classes=10).state_dict()
    kernel = "layer3.0.conv2.conv.weight"
    assert torch.allclose(trained[f"encoder.{kernel}"], given[kernel], atol=1e-6)

    server.requests.clear()
    assert main([*fit, "--run_dir", str(tmp_path / "second")]) == 0
    assert server.requests == []
    assert main(["test", *data, "--ckpt_path", str(tmp_path / "run" / "checkpoints" / "last.ckpt"), *trainer[2:]]) == 0
    assert server.requests == []


def test_the_hash_is_checked_and_recorded(server: Hub, cached: Path, weights: bytes) -> None:
    assert imagenet_weights_path(REPOSITORY) == cached
    digest = hashlib.sha256(weights).hexdigest()
    assert cached.with_name("model.safetensors.sha256").read_text() == f"{digest}  model.safetensors\n"
    left = {p.name for p in cached.parent.iterdir() if not p.name.startswith(".")}
    assert left == {"model.safetensors", "model.safetensors.sha256"}

    cached.write_bytes(weights[:-1] + b"\0")
    words = refused()
    assert str(cached) in words and digest not in words and "remove both files" in words
    cached.with_name("model.safetensors.sha256").unlink()
    assert imagenet_weights_path(REPOSITORY) == cached  # put there by hand: nothing to compare it with


def test_other_bytes_than_declared_are_refused_and_removed(server: Hub, cached: Path) -> None:
    server.declared[f"/{REPOSITORY}/resolve/main/model.safetensors"] = "ab" * 32
    assert f"{'ab' * 32} as declared; it was removed" in refused()
    assert not [p for p in cached.parent.iterdir() if not p.name.startswith(".")]


def test_a_broken_download_goes_on_where_it_ended(server: Hub, cached: Path, weights: bytes) -> None:
    server.breaks = [1000, 0, 500]
    assert imagenet_weights_path(REPOSITORY).read_bytes() == weights
    stored = [r for method, path, r in server.requests if method == "GET" and path.startswith("/stored")]
    assert stored == [None, "bytes=1000-", "bytes=1000-", "bytes=1500-"]


def test_another_run_goes_on_where_the_first_gave_up(server: Hub, cached: Path, weights: bytes) -> None:
    server.breaks = [1000, *[0] * 20]
    words = refused()
    assert f"broke off after 1000 of {len(weights)} bytes" in words and "run again to resume" in words
    assert not cached.exists()
    server.breaks, server.requests = [], []
    assert imagenet_weights_path(REPOSITORY).read_bytes() == weights
    assert [r for method, _, r in server.requests if method == "GET"] == ["bytes=1000-"] * 2  # hub, then its storage


def test_a_server_that_cannot_skip_sends_it_all_again(server: Hub, weights: bytes) -> None:
    server.ranges, server.breaks = False, [1000]
    assert imagenet_weights_path(REPOSITORY).read_bytes() == weights


def test_a_renamed_repository_is_followed(server: Hub, weights: bytes) -> None:
    assert imagenet_weights_path("old/tiny.in1k").read_bytes() == weights


def test_of_several_processes_one_downloads(server: Hub, weights: bytes) -> None:
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(imagenet_weights_path(REPOSITORY))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4 and [method for method, *_ in server.requests].count("HEAD") == 1


def test_without_a_network_the_line_says_what_to_put_where(server: Hub, cached: Path, monkeypatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody listens to the discard port
    words = refused()
    assert f"http://127.0.0.1:9/{REPOSITORY}/resolve/main/model.safetensors: cannot be fetched" in words
    assert f"put it at {cached}" in words and "or set encoder_weights to a file" in words
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "HF_HUB_OFFLINE is set" in refused() and server.requests == []


def test_what_the_hub_does_not_have(server: Hub) -> None:
    assert "404" in refused("timm/absent")
    server.declared[f"/{REPOSITORY}/resolve/main/model.safetensors"] = "no-sha256"
    assert "declares no SHA-256" in refused()


def test_a_cache_that_cannot_be_written(server: Hub, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SEGKIT_CACHE", str(tmp_path / "file"))
    assert "set SEGKIT_CACHE to another folder" in refused()


@pytest.mark.parametrize(
    "network, repository",
    [
        (("resnest14",), "timm/resnest14d.gluon_in1k"),
        (("resnest14", {"dropblock_prob": 0.1, "radix": 2, "layers": [1, 1, 1, 1]}), "timm/resnest14d.gluon_in1k"),
        (("resnet10t",), "timm/resnet10t.c3_in1k"),
        (("tu-resnet10t.c3_in1k",), "timm/resnet10t.c3_in1k"),
    ],
)
def test_whose_weights_an_encoder_gets(network: tuple, repository: str) -> None:
    name, overrides = (*network, None)[:2]
    assert imagenet_repository(FCN(name, 2, encoder_args=overrides)) == repository


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"encoder": "resnest14_tiny"}, "no ImageNet weights for resnest14_tiny, only for resnest14, resnest26, "),
        ({"encoder": "skresnet50"}, "no ImageNet weights for skresnet50, only for .* and most timm encoders"),
        ({"encoder": "resnest14", "encoder_args": {"radix": 1}}, "no ImageNet weights for resnest14 with radix: 1"),
        ({"encoder": "resnest14", "encoder_args": {"avd_first": True}}, "with avd_first: True"),
    ],
)
def test_encoders_without_weights_are_refused_before_anything_is_fetched(arguments: dict, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        imagenet_repository(FCN(num_classes=2, **arguments))
    assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("name, repository", REPOSITORIES.items())
def test_repositories_are_timms_own_and_of_the_same_network(name: str, repository: str) -> None:
    model = repository.split("/")[1].split(".")[0]
    assert timm.get_pretrained_cfg(model).hf_hub_id == repository
    with torch.device("meta"):
        theirs, ours = timm.create_model(model).state_dict(), build_encoder(name).state_dict()
    expected = {key: tuple(value.shape) for key, value in theirs.items() if not key.startswith("fc.")}
    assert {key: tuple(value.shape) for key, value in ours.items()} == expected
