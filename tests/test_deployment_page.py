"""docs/deployment.md, followed literally: each of its programs labels an image as segkit does."""

import functools
import http.server
import os
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from browser import chromium
from exported import Files
from PIL import Image

import segkit

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/deployment.md").read_text(encoding="utf-8")
WEB = Path(os.environ.get("SEGKIT_TEST_WEB", ROOT / "node_modules")) / "onnxruntime-web/dist"

KEPT: list[dict[str, object]] = []  # a core that ends may leave a freed signal stack; see `exported.files._core`


def program(title: str) -> str:
    """The block of code of a section."""
    section = PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]
    (block,) = re.findall(r"```\w+\n(.*?)```", section, re.DOTALL)
    return str(block)


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the image and the exported network that the page speaks of."""
    pytest.importorskip("openvino")
    folder = tmp_path_factory.mktemp("shipped")
    files = Files(tmp_path_factory)
    for file in (files[".onnx"], files[".xml"], files[".xml"].with_suffix(".bin")):
        shutil.copy(file, folder)
    noise = np.random.default_rng(0).integers(0, 256, (9, 17, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((131, 65), Image.Resampling.BICUBIC).save(folder / "image.png")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("title", ["Python: ONNX Runtime", "Python: OpenVINO"])
def test_python(shipped: Path, title: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(shipped)
    KEPT.append(names := {})
    exec(compile(program(title), "docs/deployment.md", "exec"), names)
    labels = np.asarray(Image.open("labels.png"))
    expected = segkit.load("model.onnx").predict("image.png")
    assert np.mean(labels != expected) < 1e-3 and len(np.unique(expected)) > 1
    assert "class" in capsys.readouterr().out


@pytest.fixture
def served(shipped: Path) -> Iterator[str]:
    """The address of the folder, served with the page in it."""
    if not WEB.is_dir():
        pytest.skip("needs onnxruntime-web by `npm install --no-save onnxruntime-web`")
    (shipped / "index.html").write_text(program("In a browser: onnxruntime-web"), encoding="utf-8")
    if not (shipped / "dist").exists():
        (shipped / "dist").symlink_to(WEB.resolve())
    handler = functools.partial(_Quiet, directory=str(shipped))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/index.html"
        server.shutdown()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.mark.slow
def test_browser(shipped: Path, served: str) -> None:
    with chromium() as browser:
        page = browser.new_page()
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(served)
        page.wait_for_function("window.labels !== undefined", timeout=120_000)
        labels = np.array(page.evaluate("window.labels"), dtype=np.uint8)
    expected = segkit.load(shipped / "model.onnx").predict(shipped / "image.png")
    assert not errors
    assert np.mean(labels != expected.ravel()) < 1e-3
