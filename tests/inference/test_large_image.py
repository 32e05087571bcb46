"""Labels in strips, of rows of tiles, against the engine that has the whole image."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from segkit.errors import InputError
from segkit.inference.engine import resolve, scores
from segkit.inference.protocols import Protocol, get
from segkit.inference.tiling.footprint import footprint
from segkit.inference.tiling.large_image import LargeImage, plan_large
from segkit.ops.normalize import IMAGENET, normalize

CPU = torch.device("cpu")
PROTOCOLS = {
    "whole": get("whole"),
    "flip": Protocol("flip", flip=True),
    "sums": Protocol("sums", flip=True, fusion="exp_sum"),
    "corners not aligned": Protocol("logits", flip=True, fusion="logit_mean", align_corners=False),
}


class Strides(nn.Module):
    """To stride 8 by padded convolutions, one of them dilated."""

    def __init__(self, num_classes: int = 5) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.layers = nn.Sequential(
            nn.Conv2d(3, 6, 5, stride=2, padding=2),
            nn.ReLU(),
            nn.Conv2d(6, 6, 3, padding=2, dilation=2),
            nn.ReLU(),
            nn.Conv2d(6, 6, 3, stride=2, padding=1),
            nn.Conv2d(6, num_classes, 3, stride=2, padding=1),
        )
        self.align_corners = True
        self.largest = 0

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        self.largest = max(self.largest, x.shape[2] * x.shape[3])
        return {"out": self.layers(x)}


class File:
    """Rows of an image, and how many were ever read at once."""

    def __init__(self, *size: int) -> None:
        self.rgb = np.random.default_rng(sum(size)).integers(0, 256, (*size, 3), np.uint8)
        self.most_rows = 0

    def read(self, first: int, last: int) -> np.ndarray:
        self.most_rows = max(self.most_rows, last - first)
        return self.rgb[first:last].copy()

    @property
    def size(self) -> tuple[int, int]:
        return self.rgb.shape[0], self.rgb.shape[1]


def planned(network: nn.Module, file: File, protocol: Protocol, memory: int) -> LargeImage:
    return plan_large(network, file.read, file.size, resolve(protocol, network), IMAGENET, CPU, memory)


@pytest.mark.slow
@pytest.mark.parametrize("size", [(413, 307), (100, 801), (807, 64)])
@pytest.mark.parametrize("name", PROTOCOLS)
def test_strips_are_the_whole_images_labels(name: str, size: tuple[int, int]) -> None:
    network, file, protocol = Strides(), File(*size), PROTOCOLS[name]
    image = normalize(torch.from_numpy(file.rgb).permute(2, 0, 1)[None], IMAGENET)
    reference = scores(network, image, protocol)[0]
    network.largest = 0
    large = planned(network, file, protocol, 2_500_000)
    assert len(large.tiles.rows) > 1 or size[0] == 100
    calls: list[int] = []
    strips = list(large.strips(seen=lambda: calls.append(1)))
    starts = [start for start, _ in strips]
    assert starts == np.cumsum([0, *(len(labels) for _, labels in strips[:-1])]).tolist()
    labels = np.concatenate([labels for _, labels in strips])
    assert labels.shape == size and labels.dtype == np.uint8 and len(calls) == large.forwards > 1
    best = reference.topk(2, dim=0).values
    clear = ((best[0] - best[1]) > 1e-5 * best[0].abs()).numpy()
    assert clear.mean() > 0.99 and (labels == reference.argmax(0).numpy())[clear].all()
    assert network.largest <= 2_500_000 / 2 / footprint(network).per_pixel


def test_what_is_read_at_once_depends_on_the_width_alone() -> None:
    rows = []
    for height in (600, 2400):
        file = File(height, 300)
        for _ in planned(Strides(), file, get("whole"), 4_000_000).strips():
            pass
        rows.append(file.most_rows)
    assert abs(rows[0] - rows[1]) <= 16 and max(rows) < 300
    wide = File(600, 1200)
    for _ in planned(Strides(), wide, get("whole"), 4_000_000).strips():
        pass
    assert wide.most_rows < max(rows)


@pytest.mark.parametrize("protocol", [get("window"), get("ms-flip"), Protocol("half", scales=(0.5,))])
def test_other_views_than_the_image_itself_are_refused(protocol: Protocol) -> None:
    with pytest.raises(InputError, match=r"300 x 300 .*use whole"):
        planned(Strides(), File(300, 300), protocol, 10**7)


def test_a_budget_without_room_is_refused() -> None:
    with pytest.raises(InputError, match=r"allow more memory.*\(now 200 kB\)"):
        planned(Strides(), File(300, 3000), get("whole"), 200_000)


def test_more_than_256_classes_need_sixteen_bits() -> None:
    _, labels = next(planned(Strides(300), File(200, 200), get("whole"), 10**7).strips())
    assert labels.dtype == np.int16


def test_the_networks_mode_is_its_own_between_strips() -> None:
    network = Strides().train()
    for _ in planned(network, File(300, 200), get("whole"), 2_000_000).strips():
        assert network.training
