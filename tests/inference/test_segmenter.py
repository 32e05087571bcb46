"""Segmenter and load(): any image in, labels of exactly its size out, with what the checkpoint says."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import MEAN, STD, write_checkpoint
from PIL import Image
from torch.nn import functional as F

from segkit.errors import InputError
from segkit.inference import protocols
from segkit.inference.images import as_rgb
from segkit.inference.segmenter import Segmenter, load
from segkit.metadata.label_space import LabelSpace, distinct_palette, identity_table
from segkit.models.segmentation import FCN

SPACE = LabelSpace(("road", "tree", "sky"), distinct_palette(3), identity_table(3))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("weights") / "tiny.ckpt", SPACE)


def save_checkpoint(path: Path, space: LabelSpace | None) -> Path:
    torch.manual_seed(0)
    network = FCN("resnest14_tiny", num_classes=3)
    return write_checkpoint(path, network, space)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def test_labels_are_those_of_the_bare_network_at_the_images_size(checkpoint: Path) -> None:
    segmenter = load(checkpoint, device="cpu")
    image = noise(97, 65, 3)
    x = torch.from_numpy((image / 255 - MEAN) / STD).float().permute(2, 0, 1)[None]
    with torch.no_grad():
        logits = F.interpolate(segmenter.network(x)["out"], (97, 65), mode="bilinear", align_corners=True)
    labels = segmenter.predict(image)
    assert labels.shape == (97, 65) and labels.dtype == np.uint8
    assert (labels == logits.argmax(1)[0].numpy()).mean() > 0.999  # ties may fall either way
    assert len(np.unique(labels)) > 1


@pytest.mark.slow
@pytest.mark.parametrize("size", [(1, 1), (1, 50), (64, 64), (33, 100)])
@pytest.mark.parametrize("protocol", ["whole", "window"])
def test_any_size_in_is_the_size_out(checkpoint: Path, size: tuple[int, int], protocol: str) -> None:
    assert load(checkpoint, "cpu", protocol).predict(noise(*size, 3)).shape == size


def test_the_checkpoint_brings_names_colours_and_normalisation(checkpoint: Path) -> None:
    segmenter = load(str(checkpoint), device="cpu", protocol=protocols.get("ms-flip"))
    assert segmenter.class_names == SPACE.class_names
    assert segmenter.palette == SPACE.palette
    assert segmenter.label_space == SPACE
    assert segmenter.device == torch.device("cpu")
    assert segmenter.protocol.name == "ms-flip"
    assert list(segmenter.normalization.mean) == MEAN
    assert not segmenter.network.training


def test_without_a_label_space_the_classes_are_numbered(tmp_path: Path) -> None:
    segmenter = load(save_checkpoint(tmp_path / "bare.ckpt", None), device="cpu")
    assert segmenter.class_names == ("class 0", "class 1", "class 2")
    assert segmenter.palette == distinct_palette(3)


def test_network_and_label_space_must_agree(checkpoint: Path) -> None:
    good = load(checkpoint, device="cpu")
    space = LabelSpace(("a", "b"), distinct_palette(2), identity_table(2))
    with pytest.raises(InputError, match="3 classes and the label space 2"):
        Segmenter(good.network, space, good.normalization, good.protocol, good.device)


def test_weights_of_another_network_name_the_file(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path / "mixed.ckpt", None)
    data = torch.load(path, weights_only=True)
    data["hyper_parameters"]["network"]["init_args"]["num_classes"] = 4
    torch.save(data, path)
    with pytest.raises(InputError, match=r"mixed\.ckpt: .*the weights do not fit FCN"):
        load(path, device="cpu")


RGB = noise(5, 7, 3)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (RGB, RGB),
        (RGB[..., 0], RGB[..., [0, 0, 0]]),
        (RGB[..., :1], RGB[..., [0, 0, 0]]),
        (np.dstack([RGB, noise(5, 7)]), RGB),
        (RGB.astype(np.uint16) * 256 + 17, RGB),
        (RGB.astype(">u2") * 256 + 17, RGB),
        (RGB[:, ::-1], RGB[:, ::-1]),
        (Image.fromarray(RGB), RGB),
        (Image.fromarray(RGB[..., 0]), RGB[..., [0, 0, 0]]),
        (Image.fromarray(np.dstack([RGB, noise(5, 7)])), RGB),
        (Image.fromarray(RGB[..., 0].astype(np.uint16) * 256 + 17), RGB[..., [0, 0, 0]]),
    ],
)
def test_images_in_memory_of_every_kind(given: np.ndarray | Image.Image, expected: np.ndarray) -> None:
    image = as_rgb(given)
    assert image.dtype == np.uint8 and image.flags.c_contiguous and image.flags.writeable
    assert (image == expected).all()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (RGB.astype(np.float32) / 255, r"float32.*uint8 in 0..255"),
        (RGB.astype(np.int64), "int64"),
        (RGB.transpose(2, 0, 1), r"\(3, 5, 7\).*channels last"),
        (np.zeros((0, 3, 3), np.uint8), r"\(0, 3, 3\)"),
        (Image.fromarray(RGB[..., 0].astype(np.float32)), "mode F"),
        (torch.zeros(3, 5, 7), "Tensor"),
    ],
)
def test_images_of_unknown_meaning_are_refused(given: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        as_rgb(given)  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["plain", "read-only", "reversed", "sliced", "broadcast", "grey", "pillow", "file"])
def test_a_batch_takes_what_predict_takes(checkpoint: Path, layout: str, tmp_path: Path) -> None:
    segmenter, images = load(checkpoint, "cpu", precision="exact"), [noise(9, 12, 3, seed=i) for i in range(2)]
    for image in images:
        image.flags.writeable = False
    made = {
        "plain": images,
        "read-only": images,
        "reversed": [image[::-1, ::-1] for image in images],
        "sliced": [image[::2, 1::3] for image in images],
        "broadcast": [np.broadcast_to(image[:1], image.shape) for image in images],
        "grey": [image[..., 0] for image in images],
        "pillow": [Image.fromarray(image) for image in images],
        "file": [tmp_path / f"{i}.png" for i in range(2)],
    }[layout]
    for i, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    batch = segmenter.predict_batch(made)
    assert batch.dtype == torch.uint8
    for labels, image in zip(batch, made, strict=True):
        assert np.array_equal(labels, segmenter.predict(image))
    assert np.array_equal(segmenter.predict_batch(np.stack(images)), segmenter.predict_batch(images))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], r"0 images with 0 sizes \(none\): give one or more"),
        ([RGB, RGB[:3]], r"2 images with 2 sizes \(3 x 7 and 5 x 7\)"),
        ([RGB, RGB / 255], "float64"),
        ([RGB[:0]], r"\(0, 7, 3\)"),
        ([RGB.tolist()], "cannot be a list"),
        (RGB, r"an array \(B, H, W, 3\): for one image call `predict`"),
        ("a.png", "a batch is a list of images"),
        (None, "a batch is a list of images"),
        (["a\0b"], "path with a null byte"),
    ],
)
def test_batches_that_cannot_be(checkpoint: Path, images: object, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load(checkpoint, "cpu").predict_batch(images)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_a_closed_pillow_image_is_refused(checkpoint: Path) -> None:
    image = Image.fromarray(RGB)
    image.close()
    with pytest.raises(InputError, match="truncated, or closed"):
        load(checkpoint, "cpu").predict(image)


@pytest.mark.parametrize("how", [str, Path, Image.open])
def test_exif_orientation_is_applied(tmp_path: Path, how: Callable[[Path], str | Path | Image.Image]) -> None:
    image = Image.fromarray(RGB)
    exif = image.getexif()
    exif[0x0112] = 6  # shown turned by a quarter, clockwise
    image.save(tmp_path / "turned.png", exif=exif)
    assert (as_rgb(how(tmp_path / "turned.png")) == np.rot90(RGB, -1)).all()


def test_a_truncated_image_says_so(tmp_path: Path, checkpoint: Path) -> None:
    path = tmp_path / "cut.png"
    Image.fromarray(noise(50, 50, 3)).save(path)
    path.write_bytes(path.read_bytes()[:2000])
    segmenter = load(checkpoint, device="cpu")
    for image in (path, Image.open(path)):
        with pytest.raises(InputError, match="truncated"):
            segmenter.predict(image)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"device": "toaster"}, r"'toaster'.*cpu"),
        ({"device": "cuda:99"}, "'cuda:99'"),
        ({"device": "meta"}, "'meta'"),
        ({"protocol": "everything"}, "everything"),
    ],
)
def test_a_wrong_name_fails_with_the_right_ones(checkpoint: Path, arguments: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load(checkpoint, **arguments)


def test_memory_that_is_not_enough_is_told_with_the_cure(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    segmenter = load(checkpoint, device="cpu")

    def exhausted(x: torch.Tensor) -> dict[str, torch.Tensor]:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(segmenter.network, "forward", exhausted)
    with pytest.raises(InputError, match=r"8 x 9 pixels does not fit.*'window'"):
        segmenter.predict(noise(8, 9, 3))


def test_default_precision_is_the_inference_form_and_exact_is_the_network(checkpoint: Path) -> None:
    exact = load(checkpoint, "cpu", precision="exact")
    image = noise(97, 65, 3)
    assert exact.precision == "exact" and type(exact.network) is FCN
    assert load(checkpoint, "cpu").precision in ("bfloat16", "float32")
    float32 = exact.optimize("float32")
    assert float32.precision == "float32" and exact.precision == "exact"
    assert (float32.predict(image) == exact.predict(image)).mean() > 0.999
    bfloat16 = load(checkpoint, "cpu", precision="bfloat16")
    assert bfloat16.precision == "bfloat16"
    assert (bfloat16.predict(image) == exact.predict(image)).mean() > 0.9  # an untrained network has many near ties
    assert exact.optimize("exact") is exact


def test_exact_labels_do_not_depend_on_what_else_was_loaded(checkpoint: Path) -> None:
    image = noise(50, 70, 3)
    first = load(checkpoint, "cpu", precision="exact").predict(image)
    load(checkpoint, "cpu", precision="float32").predict(image)
    np.testing.assert_array_equal(load(checkpoint, "cpu", precision="exact").predict(image), first)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda path: load(path, "cpu", precision="half"), "precision='half' is not one of auto, exact, float32"),
        (lambda path: load(path, "cpu", precision="float32").optimize(), "in inference form already; load it with"),
        (lambda path: load(path, "cpu", precision="exact", compiled=True), "precision 'exact' cannot be compiled"),
    ],
)
def test_a_precision_that_cannot_be(checkpoint: Path, call: Callable[[Path], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        call(checkpoint)
