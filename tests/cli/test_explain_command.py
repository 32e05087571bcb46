"""`segkit explain` through its front door: what is written, and every kind of mistake."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import write_checkpoint
from PIL import Image

from segkit.cli import main
from segkit.metadata.label_space import LabelSpace, distinct_palette, identity_table
from segkit.models.segmentation import FCN, SegmentationModel

NAMES = ("road", "sky", "car", "a\x1b[31m$x$")
Run = Callable[..., int]


def model(path: Path, network: SegmentationModel, names: tuple[str, ...] = NAMES) -> Path:
    with torch.no_grad():  # random weights alone would find one class everywhere
        for parameter in network.head.parameters():
            parameter += torch.randn_like(parameter)
    return write_checkpoint(path, network, LabelSpace(names, distinct_palette(len(names)), identity_table(len(names))))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    return model(tmp_path_factory.mktemp("weights") / "tiny.ckpt", FCN("resnest14_tiny", 4, aux=False))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(2):
        image = np.random.default_rng(i).integers(0, 256, (40, 56, 3), np.uint8)
        Image.fromarray(image).save(folder / f"{i}.png")
    return folder


@pytest.fixture
def run(checkpoint: Path, photos: Path, tmp_path: Path) -> Run:
    def call(*args: object, of: Path = checkpoint, images: Path = photos) -> int:
        given = ["explain", of, images, "-o", tmp_path / "out", "--device", "cpu", *args]
        return main([str(arg) for arg in given])

    return call


def tree(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


@pytest.mark.slow
def test_all_that_is_written(
    run: Run, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("segkit.explain.explanation.CROPS", 2)
    assert run("--against", checkpoint, "--receptive_field", "authors", "timm", "--stages", 1, 4) == 0
    kinds = ("against", "attention", "gradcam", "shares")
    common = ["against.json", "attention.json", "attention.png", "receptive_field.json", "receptive_field.png"]
    assert tree(tmp_path / "out") == sorted([*common, *(f"{i}_{kind}.png" for i in range(2) for kind in kinds)])
    found = json.loads((tmp_path / "out/attention.json").read_text())
    assert [image["pixels"] for image in found["images"]] != [{}, {}]
    for block in found["blocks"]:
        assert block["radix"] == 2 and block["share"].keys() == found["pixels"].keys()
        assert all(sum(share) == pytest.approx(1, abs=1e-4) for share in block["share"].values())
    assert sum(found["pixels"].values()) == 2 * 40 * 56
    for name, pixels in found["pixels"].items():  # each class's mean over images, by its pixels
        of_images = [i for i in found["images"] if name in i["pixels"]]
        total = sum(i["pixels"][name] * i["blocks"][0]["share"][name][0] for i in of_images)
        assert found["blocks"][0]["share"][name][0] == pytest.approx(total / pixels, abs=1e-4)
    assert json.loads((tmp_path / "out/against.json").read_text())["different"] == 0  # the model against itself
    fields = json.loads((tmp_path / "out/receptive_field.json").read_text())["fields"]
    assert [field["name"] for field in fields] == ["authors", "timm"]
    assert capsys.readouterr().out.strip() == f"2 images: {tmp_path / 'out'}"


@pytest.mark.slow
def test_a_damaged_image_does_not_stop_the_others(
    run: Run, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "0.png").write_bytes((photos / "0.png").read_bytes()[:2000])
    assert run() == 1
    assert {"1_gradcam.png", "attention.json"} <= set(tree(tmp_path / "out"))
    said = capsys.readouterr()
    assert f"{photos / '0.png'}" in said.err and "1 image, 1 failed" in said.out
    (photos / "1.png").write_bytes(b"")
    assert run() == 2


@pytest.mark.slow
def test_networks_without_attention_or_stages(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(of=model(tmp_path / "plain.ckpt", FCN("resnet14_tiny", 4, aux=False))) == 0
    assert tree(tmp_path / "out") == ["0_gradcam.png", "1_gradcam.png"]
    assert "no split attention, squeeze and excitation or selective kernels" in capsys.readouterr().err
    assert run("--receptive_field", "timm", of=tmp_path / "plain.ckpt") == 2
    assert "only a ResNeSt has dilation conventions, and the encoder is resnet14_tiny" in capsys.readouterr().err


@pytest.mark.parametrize("encoder, radix", [("senet14_tiny", 1), ("sknet14_tiny", 2)])
@pytest.mark.slow
def test_other_attention(run: Run, tmp_path: Path, encoder: str, radix: int) -> None:
    assert run(of=model(tmp_path / "other.ckpt", FCN(encoder, 4, aux=False))) == 0
    blocks = json.loads((tmp_path / "out/attention.json").read_text())["blocks"]
    assert [block["radix"] for block in blocks] == [radix] * 4
    assert "0_shares.png" in tree(tmp_path / "out")


@pytest.mark.parametrize("change", ["class", "export", "other classes", "image", "stage"])
def test_mistakes_take_one_line(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: str) -> None:
    if change == "class":
        code, words = (
            run("--classes", "raod"),
            "no class 'raod'; did you mean road? the model has road, sky, car, a\\x1b",
        )
    elif change == "export":
        (tmp_path / "net.onnx").touch()
        code, words = run(of=tmp_path / "net.onnx"), "give the checkpoint that it was made of"
    elif change == "other classes":
        other = model(tmp_path / "other.ckpt", FCN("resnest14_tiny", 2, aux=False), ("cat", "dog"))
        code, words = run("--against", other), "--against: its 2 classes cannot be matched by name with the 4"
    elif change == "image":
        code, words = run(images=tmp_path / "none.png"), "none.png"
    else:
        code, words = run("--stages", 5), "invalid choice"
    said = capsys.readouterr().err
    assert code == 2 and words in said and said.count("error") == 1 and "\x1b" not in said
    assert not (tmp_path / "out").exists()
