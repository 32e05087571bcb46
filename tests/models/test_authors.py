"""The authors' files by name: a server on this machine that has made-up ones under the published addresses."""

import hashlib
import io
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from resnest.torch import ablation, resnest

from segkit.errors import InputError
from segkit.metadata.ade20k import ADE20K
from segkit.metadata.label_space import LabelSpace, distinct_palette, identity_table
from segkit.models import authors, download
from segkit.models.resnest import RESNEST_VARIANTS, ResNeSt
from segkit.models.segmentation import FCN
from segkit.recipes import read_recipe
from segkit.training.module import SegmentationModule
from segkit.training.network import InitialWeights
from tests.support.checkpoints import write_checkpoint

ENCODER, NETWORK = "imagenet/resnest14_tiny", "ade20k/fcn_resnest14_tiny"


class _Silent(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


def network() -> SegmentationModule:
    return SegmentationModule(FCN("resnest14_tiny", 3))


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that is served; the encoder's .pth and the zip of a network lie there under their hashes."""
    folder = tmp_path / "served"
    folder.mkdir()
    torch.manual_seed(1)
    encoder, whole = io.BytesIO(), io.BytesIO()
    torch.save(ResNeSt(**RESNEST_VARIANTS["resnest14_tiny"], num_classes=10).state_dict(), encoder)
    whole.write(write_checkpoint(tmp_path / "whole.ckpt", FCN("resnest14_tiny", 3), None).read_bytes())
    digits = hashlib.sha256(encoder.getvalue()).hexdigest()[:8]
    sha1 = hashlib.sha1(whole.getvalue(), usedforsecurity=False).hexdigest()
    (folder / f"tiny-{digits}.pth").write_bytes(encoder.getvalue())
    with zipfile.ZipFile(folder / f"fcn-{sha1[:8]}.zip", "w") as archive:
        archive.writestr(f"fcn-{sha1[:8]}.pth", whole.getvalue())
    monkeypatch.setattr(authors, "_FILES", {ENCODER: ("tiny", digits), NETWORK: ("fcn", sha1)})
    monkeypatch.setattr(authors, "NAMES", (ENCODER, NETWORK))
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Silent, directory=str(folder)))
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
    for place in ("RELEASES", "STORE"):
        monkeypatch.setattr(authors, place, f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(download, "_PAUSE", 0.0)
    monkeypatch.setenv("SEGKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    yield folder
    server.shutdown()
    server.server_close()


def refused(name: str) -> str:
    with pytest.raises(InputError) as caught:
        authors.authors_weights_path(name)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_encoders_are_those_of_the_authors_package() -> None:
    """`resnest` 0.0.5 has the same hashes; each name is a recipe, whose published number is the file's."""
    theirs = {**resnest._model_sha256, **ablation._model_sha256}
    ours = {name.removeprefix("imagenet/"): authors.address(name) for name in authors.NAMES if "imagenet" in name}
    assert ours == {name: f"{authors.RELEASES}/{name}-{digits}.pth" for name, digits in theirs.items()}
    assert len(authors.NAMES) == 21 and all(read_recipe(name).content["published"] for name in authors.NAMES)


def test_fit_begins_with_the_authors_encoder_and_network(files: Path) -> None:
    for weights, source in (
        (InitialWeights("authors"), ENCODER),
        (InitialWeights(None, f"authors/{NETWORK}"), NETWORK),
    ):
        module = network()
        weights.setup(pl.Trainer(logger=False), module, "fit")
        stored = torch.load(authors.local_path(source), weights_only=True)
        stored = {name.removeprefix("network."): value for name, value in stored.get("state_dict", stored).items()}
        loaded = module.network.encoder if source == ENCODER else module.network
        differ = [name for name, value in loaded.state_dict().items() if not torch.equal(value, stored[name])]
        assert all("head." in name for name in differ) and len(differ) <= 4  # classifiers, whose classes have no names
    for path in files.iterdir():
        path.unlink()
    assert authors.authors_weights_path(NETWORK).is_file()  # nothing is asked again


def test_the_networks_have_the_classes_of_their_data_set(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which their files do not say."""
    assert authors.class_names("ade20k/deeplabv3_resnest50") == ADE20K.class_names
    assert len(authors.class_names("pascal_context/fcn_resnest50")) == 59 and not authors.class_names(ENCODER)
    monkeypatch.setitem(authors._CLASSES, "ade20k", ("wall", "building", "sky"))
    space = LabelSpace(("sky", "lamp", "wall"), distinct_palette(3), identity_table(3))
    module = SegmentationModule(FCN("resnest14_tiny", 3), label_space=space)
    InitialWeights(None, f"authors/{NETWORK}").setup(pl.Trainer(logger=False), module, "fit")
    stored = torch.load(authors.local_path(NETWORK), weights_only=True)["state_dict"]
    row = next(name for name in reversed(module.network.state_dict()) if name.startswith("head."))
    weights, theirs = module.network.state_dict()[row], stored[f"network.{row}"]
    assert torch.equal(weights[[0, 2]], theirs[[2, 0]]) and not torch.equal(weights[1], theirs[1])


def test_an_interrupted_download_goes_on_and_a_wrong_one_is_removed(files: Path) -> None:
    path, source = authors.local_path(ENCODER), next(files.glob("*.pth"))
    path.parent.mkdir(parents=True)
    part, right = path.with_name(f"{path.name}.part"), source.read_bytes()
    part.write_bytes(right[:1000])
    assert authors.authors_weights_path(ENCODER).read_bytes() == right and not part.exists()
    path.unlink()
    source.write_bytes(right[:-1] + b"?")
    assert "which the authors publish; it was removed: run again" in refused(ENCODER)
    assert not path.exists() and not part.exists()
    next(files.glob("*.zip")).write_bytes(b"<html>log in</html>")
    assert "is no zip with a .pth; it was removed" in refused(NETWORK)


def test_what_cannot_be_had_is_one_line(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert f"did you mean {NETWORK}?" in refused("ade20k/fcn_resnest14_tyni")
    with pytest.raises(InputError, match=r"the authors publish no weights of resnest26.*--encoder_weights imagenet"):
        authors.encoder_name(FCN("resnest26", 3))
    path = authors.authors_weights_path(ENCODER)
    path.write_bytes(b"damaged")
    assert f"{path}: its hash does not begin with" in refused(ENCODER)
    path.unlink()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert f"HF_HUB_OFFLINE is set); download it on a machine with a network and put that file at {path}" in refused(
        ENCODER
    )
    assert "put the .pth in that zip at" in refused(NETWORK)
