"""Models on the hub: folders, the cache, and a server on this machine that answers as the hub does."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
import torch
from checkpoints import write_checkpoint
from huggingface_hub import ModelCard, constants
from safetensors.torch import save

import segkit
from segkit.cli import main
from segkit.errors import InputError
from segkit.inference.segmenter import Segmenter, load
from segkit.io import read_label
from segkit.metadata.label_space import LabelSpace, distinct_palette, identity_table
from segkit.models.segmentation import FCN
from segkit.models.weight_files import read_model_file, write_model_file
from segkit.models.weights import read_checkpoint

SPACE = LabelSpace(("road", "a | b <img>", "sky"), distinct_palette(3), identity_table(3))
IMAGE = np.random.default_rng(0).integers(0, 256, (33, 41, 3), np.uint8)
SCORE = {
    "mIoU": 0.4567,
    "protocol": "ms-flip",
    "metric": "segkit",
    "dataset": {"name": "streets", "split": "test"},
    "num_images": 12,
    "partial": False,
    "interval": {"low": 0.41, "high": 0.5, "level": 0.95},
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model file with a card."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    checkpoint = read_checkpoint(write_checkpoint(folder / "tiny.ckpt", FCN("resnest14_tiny", 3), SPACE))
    checkpoint.card.update(scores=[SCORE], protocol={"name": "ms-flip"}, source={"file": "last.ckpt"})
    write_model_file(folder / "tiny.safetensors", checkpoint)
    return folder / "tiny.safetensors"


class Hub(ThreadingHTTPServer):
    """A hub of repositories of small files, and of all requests."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.files: dict[str, bytes] = {}  # by owner/name/file
        self.requests: list[str] = []
        self.refuses = False


class Answer(BaseHTTPRequestHandler):
    """One request."""

    server: Hub

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.server.requests.append(f"{self.command} {self.path}")
        repository, _, rest = unquote(self.path)[1:].partition("/resolve/")
        data = self.server.files.get(f"{repository}/{rest.partition('/')[2]}")
        if data is None:
            known = any(name.startswith(f"{repository}/") for name in self.server.files)
            return self.reply(404, b"", {"X-Error-Code": "EntryNotFound" if known else "RepoNotFound"})
        self.reply(200, data, {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": "0" * 40})

    def do_POST(self) -> None:
        self.server.requests.append(f"{self.command} {self.path}")
        sent = self.rfile.read(int(self.headers["Content-Length"])).decode()
        if self.server.refuses:
            return self.reply(403, b'{"error": "no"}', {})
        if self.path == "/api/repos/create":
            asked = json.loads(sent)
            return self.json({"url": f"http://127.0.0.1/{asked['organization']}/{asked['name']}"})
        repository = "/".join(self.path.split("/")[3:5])
        if "/preupload/" in self.path:
            names = [file["path"] for file in json.loads(sent)["files"]]
            return self.json(
                {"files": [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]}
            )
        if "/commit/" in self.path:
            for line in map(json.loads, sent.splitlines()):
                if line["key"] == "file":
                    data = base64.b64decode(line["value"]["content"])
                    self.server.files[f"{repository}/{line['value']['path']}"] = data
            return self.json({"commitUrl": f"http://127.0.0.1/{repository}/commit/1", "commitOid": "1" * 40})
        self.json({})

    def json(self, answer: object) -> None:
        self.reply(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def reply(self, code: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(code)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    server = Hub()
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
    url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_of_this_test")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    yield server
    server.shutdown()
    server.server_close()


def refused(model: str | Path) -> str:
    with pytest.raises(InputError) as caught:
        Segmenter.from_pretrained(model, device="cpu")
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.slow
def test_a_saved_folder_has_the_weights_to_the_bit_and_labels_as_before(weights: Path, tmp_path: Path) -> None:
    before = load(weights, "cpu")  # in inference form: the file's weights are those to save
    before.save_pretrained(tmp_path / "model", license="cc-by-4.0")
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    old, new = read_model_file(weights), read_model_file(tmp_path / "model/model.safetensors")
    assert all(torch.equal(value, new.state_dict[name]) for name, value in old.state_dict.items())
    assert old.hyper_parameters == new.hyper_parameters and new.card == old.card | {"license": "cc-by-4.0"}
    for again in (Segmenter.from_pretrained(tmp_path / "model", device="cpu"), segkit.load(tmp_path / "model", "cpu")):
        assert (again.predict(IMAGE) == before.predict(IMAGE)).all() and again.class_names == SPACE.class_names
    exact = load(weights, "cpu", precision="exact")  # whose own weights may have changed since
    with torch.no_grad():
        next(exact.network.parameters()).zero_()
    exact.save_pretrained(tmp_path / "exact")
    first = next(name for name, _ in exact.network.named_parameters())
    assert not read_model_file(tmp_path / "exact/model.safetensors").state_dict[first].any()


def test_the_model_card_tells_the_files_card_and_its_python_runs(weights: Path, tmp_path: Path) -> None:
    folder = tmp_path / "street-fcn"
    load(weights, "cpu").save_pretrained(folder, license="CC-BY-4.0")
    card = ModelCard.load(folder / "README.md")  # huggingface_hub's own reader
    assert card.data.license == "cc-by-4.0" and card.data.library_name == "segkit"
    assert card.data.pipeline_tag == "image-segmentation"
    assert re.search(r"\| streets +\| test +\| +12 \| ms-flip .* 45.67 \| 41.00 to 50.00 \(95 %", card.text)
    assert r"a \| b \<img\>" in card.text and "`protocol='ms-flip'`" in card.text and "last.ckpt" in card.text
    code = re.search(r"```python\n(.*?)```", card.text, re.DOTALL)
    assert code is not None and len(code[1].splitlines()) == 5
    printed: list[str] = []
    np.save(tmp_path / "image.npy", IMAGE)
    exec(code[1].replace("image.jpg", f"{tmp_path}/image.npy"), {"print": printed.append})
    assert printed[0] in SPACE.class_names


def test_a_card_without_facts_says_so_and_a_written_readme_stays(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "tiny.ckpt", FCN("resnest14_tiny", 3), None)
    segmenter = load(path, "cpu", precision="exact")
    segmenter.save_pretrained(tmp_path / "model")
    text = (tmp_path / "model/README.md").read_text()
    assert "No score of these weights is known." in text and "Not stated" in text and "license" not in text
    (tmp_path / "model/README.md").write_text("mine")
    segmenter.save_pretrained(tmp_path / "model")
    assert (tmp_path / "model/README.md").read_text() == "mine"


@pytest.mark.slow
def test_what_is_pushed_loads_from_the_hub_and_then_from_the_cache(weights: Path, hub: Hub, tmp_path: Path) -> None:
    before = load(weights, "cpu")
    address = before.push_to_hub("ann/streets", license="my own words")
    assert address.endswith("/ann/streets/commit/1")
    assert set(hub.files) == {f"ann/streets/{name}" for name in ("README.md", "config.json", "model.safetensors")}
    readme = hub.files["ann/streets/README.md"].decode()
    assert "segkit.load('hf://ann/streets')" in readme
    assert "license: other" in readme and "license_name: my own words" in readme
    for again in (Segmenter.from_pretrained("ann/streets", device="cpu"), load("hf://ann/streets@v1", "cpu")):
        assert (again.predict(IMAGE) == before.predict(IMAGE)).all()
    assert any("/ann/streets/resolve/v1/" in request for request in hub.requests)
    assert not any("config.json" in request for request in hub.requests)
    np.save(tmp_path / "image.npy", IMAGE)
    given = ["--checkpoint", "hf://ann/streets", "--device", "cpu", "--output", tmp_path / "out"]
    assert main(["infer", *map(str, [tmp_path / "image.npy", *given])]) == 0
    assert (read_label(tmp_path / "out/image_labels.png") == before.predict(IMAGE)).all()
    hub.files.clear()
    hub.shutdown()
    hub.server_close()
    assert (Segmenter.from_pretrained("ann/streets", device="cpu").predict(IMAGE) == before.predict(IMAGE)).all()


def test_what_is_no_model_is_one_line(weights: Path, hub: Hub, tmp_path: Path) -> None:
    whole = weights.read_bytes()
    hub.files |= {
        "ann/pickled/pytorch_model.bin": b"\x80\x04",
        "ann/broken/model.safetensors": whole[: len(whole) // 2],
        "ann/foreign/model.safetensors": save({"x": torch.zeros(1)}),
    }
    assert "ann/pickled: has no model.safetensors, and weights in other files are not read" in refused("ann/pickled")
    assert "not a complete safetensors file" in refused("ann/broken")
    assert "model.safetensors" in refused("ann/foreign")
    assert "ann/absent: Hugging Face's hub refused" in refused("ann/absent")
    assert "Repo id must" in refused("no/such/folder")
    assert "is a folder without model.safetensors" in refused(tmp_path)
    with pytest.raises(InputError, match="no such file"):  # a mistyped path is not looked for on the hub
        load("ann/pickled", "cpu")
    hub.refuses = True
    with pytest.raises(InputError, match=r"ann/streets: Hugging Face's hub refused.*hf auth login"):
        load(weights, "cpu").push_to_hub("ann/streets")


def test_another_librarys_folder_is_left_alone(weights: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["SegformerForSemanticSegmentation"]}')
    with pytest.raises(InputError, match="another library's model"):
        load(weights, "cpu").save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_torch_hub_loads_from_a_clone(weights: Path) -> None:
    clone = str(Path(__file__).parents[2])
    segmenter = torch.hub.load(clone, "segkit", str(weights), source="local", device="cpu")
    assert segmenter.predict(IMAGE).shape == IMAGE.shape[:2]
