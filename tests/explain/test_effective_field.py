"""The effective receptive field of encoders whose gradient is known."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from segkit.errors import InputError
from segkit.explain.effective_field import SIDE, crops, effective_field, wired
from segkit.models.decoders import EncoderDecoder
from segkit.models.segmentation import FCN


class OneConvolution(nn.Module):
    """A network whose encoder is one convolution, of weights 1 and -1, with a global pool beside it."""

    def __init__(self, kernel: int, pooled: float = 0) -> None:
        super().__init__()
        self.encoder = Encoder(kernel, pooled)


class Encoder(nn.Module):
    channels = (3, 3, 3)

    def __init__(self, kernel: int, pooled: float) -> None:
        super().__init__()
        self.conv, self.pooled = nn.Conv2d(3, 3, kernel, 8, kernel // 2), pooled
        places = torch.arange(kernel)
        self.conv.weight.data[:] = (-1.0) ** (places + places[:, None])  # a checkerboard

    def forward(self, x: Tensor) -> list[Tensor]:
        return [x, x, self.conv(x) + self.pooled * x.mean((2, 3), keepdim=True)]


@pytest.mark.parametrize("kernel, side", [(1, 1), (7, 7), (41, 41)])
def test_a_convolution_sees_its_kernel(kernel: int, side: int) -> None:
    network = OneConvolution(kernel)
    found = effective_field("conv", network, [torch.randn(1, 3, SIDE, SIDE) for _ in range(2)])  # type: ignore[arg-type]
    assert (found.side, found.bound, found.beyond) == (side, kernel, 0)
    middle = slice(SIDE // 2 - kernel // 2, SIDE // 2 + kernel // 2 + 1)
    expected = np.zeros((SIDE, SIDE))
    expected[middle, middle] = 1 / kernel**2
    np.testing.assert_allclose(found.gradient, expected, atol=1e-9)


def test_what_comes_by_a_global_pool_lies_beyond_the_bound() -> None:
    network = OneConvolution(3, pooled=3 * 3**2)  # as much as by the convolution, which adds three channels up
    found = effective_field("conv", network, [torch.randn(1, 3, SIDE, SIDE)])  # type: ignore[arg-type]
    assert found.side == 3 and found.bound == 3
    assert found.beyond == pytest.approx(0.5, abs=1e-3)


@pytest.mark.slow
def test_conventions_have_the_same_weights_and_other_fields() -> None:
    torch.manual_seed(0)
    network = FCN("resnest14_tiny", num_classes=2).eval().requires_grad_(False)
    x = crops(torch.randn(1, 3, 30, 40), 1)
    own, authors, timm = (
        effective_field(name, made, x)
        for name, made in (("own", network), *((n, wired(network, n)) for n in ("authors", "timm")))
    )
    assert (own.gradient == authors.gradient).all() and own[2:] == authors[2:]
    assert authors.bound is not None and timm.bound is not None and authors.bound > timm.bound
    assert not np.allclose(authors.gradient, timm.gradient, rtol=0.1)


def test_only_a_resnest_has_conventions() -> None:
    with pytest.raises(InputError, match="only a ResNeSt has dilation conventions, and the encoder is senet14_tiny"):
        wired(FCN("senet14_tiny", num_classes=2), "timm")


def test_crops_are_around_pixels_of_the_image_and_mirrored_beyond() -> None:
    x = torch.arange(12.0).view(1, 1, 3, 4)
    found = crops(x, 5, seed=3)
    assert len(found) == 5 and all(crop.shape == (1, 1, SIDE, SIDE) for crop in found)
    around = SIDE // 2
    centres = {crop[0, 0, around, around].item() for crop in found}
    assert centres <= set(range(12)) and len(centres) > 1
    assert {value for crop in found for value in crop.unique().tolist()} == set(range(12))


@pytest.mark.slow
def test_encoders_behind_a_decoder_are_fed_as_it_does() -> None:
    """A transformer of patches of 16 takes no 513 pixels; and what no stages has is refused in words."""
    torch.manual_seed(0)
    network = EncoderDecoder("vit_tiny_patch16_224", 2, decoder="dpt").eval().requires_grad_(False)
    found = effective_field("vit", network, [torch.randn(1, 3, SIDE, SIDE)])
    assert found.gradient.shape == (SIDE, SIDE) and found.gradient.sum() == pytest.approx(1)
    network.encoder = nn.Conv2d(3, 2, 16, 16)  # as the module of a user
    with pytest.raises(InputError, match="Conv2d has no stages"):
        effective_field("own", network, [torch.randn(1, 3, SIDE, SIDE)])
