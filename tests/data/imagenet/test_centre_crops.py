"""Each centre crop against a restatement: torchvision's in exact arithmetic, and timm's own transform."""

from fractions import Fraction

import numpy as np
import pytest
import timm
from PIL import Image
from timm.data import create_transform
from torchvision.transforms import functional
from torchvision.transforms.functional import InterpolationMode

from segkit.data.imagenet.crops import CentreCrop
from segkit.errors import InputError
from segkit.models.pretrained import timm_name

SIZES = [(500, 375), (375, 500), (333, 500), (64, 64), (1201, 97), (40, 61)]


def noise(size: tuple[int, int]) -> Image.Image:
    width, height = size
    small = np.random.default_rng(width * height).integers(0, 256, (height // 4, width // 4, 3), np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


def authors(image: Image.Image, size: int, mode: InterpolationMode) -> Image.Image:
    """A square of side short * size / (size + 32) around the centre, in whole pixels as `round` gives them."""
    side = Fraction(size, size + 32) * min(image.size)
    left, top = (round((length - side) / 2) for length in image.size)
    width, height = round(left + side) - left, round(top + side) - top
    return functional.resize(functional.crop(image, top, left, height, width), [size, size], mode)


@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize("size", [32, 224, 416])
@pytest.mark.parametrize(
    ("name", "mode"), [("resnest", InterpolationMode.BICUBIC), ("encoding", InterpolationMode.BILINEAR)]
)
def test_the_square_of_the_authors(shape: tuple[int, int], size: int, name: str, mode: InterpolationMode) -> None:
    image = noise(shape)
    found = CentreCrop.of({"name": name, "size": size})(image)
    assert found.size == (size, size)
    assert np.array_equal(found, authors(image, size, mode))


@pytest.mark.parametrize("encoder", ["resnest50", "resnest200", "resnest269", "resnest50_fast_1s4x24d", "resnet18"])
def test_timm_crops_as_timm_does(encoder: str) -> None:
    config = timm.get_pretrained_cfg(timm_name(encoder))
    theirs = create_transform(
        config.input_size,
        is_training=False,
        crop_pct=config.crop_pct,
        interpolation=config.interpolation,
        normalize=False,
    )
    ours = CentreCrop("timm").resolved(config.input_size[1], timm_name(encoder))
    for shape in SIZES[:4]:
        expected = theirs(noise(shape)).permute(1, 2, 0)
        assert np.array_equal(ours(noise(shape)), expected)


def test_resolving_fills_in_only_what_is_open() -> None:
    given = CentreCrop("timm", 160, 0.95, "bicubic")
    assert given.resolved(224, "no network") == given
    assert CentreCrop("resnest").resolved(320, "").size == 320
    assert CentreCrop("encoding", 256).resolved(224, "").to_dict()["interpolation"] == "bilinear"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("resnet", "did you mean resnest"),
        ({"name": "resnest", "sise": 3}, "sise"),
        ({"name": "resnest", "crop_pct": 0.9}, "timm's; leave them out"),
        ({"name": "timm", "crop_pct": 1.5}, "a share up to 1"),
        ({"name": "timm", "interpolation": "area"}, "bilinear or bicubic"),
    ],
)
def test_a_wrong_protocol_is_one_line(wrong: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        CentreCrop.of(wrong)


def test_an_unknown_network_has_no_crop_of_timm() -> None:
    with pytest.raises(InputError, match="give its crop_pct"):
        CentreCrop("timm").resolved(224, "no_such_network")
