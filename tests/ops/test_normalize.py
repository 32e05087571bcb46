"""Normalisation against torchvision's `ToTensor` and `Normalize`, bit for bit."""

import numpy as np
import pytest
import torch
from torchvision.transforms import Compose, Normalize, ToTensor

from segkit.errors import InputError
from segkit.ops.normalize import IMAGENET, Normalization, normalize


def test_bits_of_torchvision():
    pixels = np.random.default_rng(0).integers(0, 256, (2, 13, 17, 3), dtype=np.uint8)
    reference = Compose([ToTensor(), Normalize(IMAGENET.mean, IMAGENET.std)])
    expected = torch.stack([reference(array) for array in pixels])
    image = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    kept = image.clone()
    result = normalize(image)
    assert result.dtype == torch.float32 and torch.equal(result, expected)
    assert torch.equal(image, kept)


def test_black_is_the_value_of_a_black_pixel():
    black = normalize(torch.zeros(1, 3, 1, 1, dtype=torch.uint8))
    torch.testing.assert_close(black.flatten(), torch.tensor(IMAGENET.black))


def test_dtype_of_the_result():
    image = torch.full((1, 3, 2, 2), 200, dtype=torch.uint8)
    half = normalize(image, dtype=torch.float16)
    assert half.dtype == torch.float16 and torch.equal(half, normalize(image).half())


def test_plain_data_and_back():
    assert Normalization.from_dict(IMAGENET.to_dict()) == IMAGENET
    assert Normalization([0.5], [1]).mean == (0.5,)


@pytest.mark.parametrize("image", [torch.zeros(1, 3, 2, 2), torch.zeros(1, 4, 2, 2, dtype=torch.uint8)])
def test_wrong_images_are_refused(image):
    with pytest.raises(InputError, match="needed"):
        normalize(image)


@pytest.mark.parametrize("mean, std", [((0.5,), (0.5, 0.5)), ((), ()), ((0.5,), (0.0,))])
def test_wrong_statistics_are_refused(mean, std):
    with pytest.raises(InputError):
        Normalization(mean, std)
