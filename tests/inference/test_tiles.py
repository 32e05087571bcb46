"""Images beyond the budget: the logits of tiles are those of the whole image, and the budget is kept."""

import logging
import math
from functools import partial
from itertools import pairwise

import pytest
import torch
from random_image import random_image
from torch import Tensor, nn

from segkit.errors import InputError
from segkit.inference.engine import Task, predict, predict_with_confidence, resolve, scores
from segkit.inference.protocols import Protocol, get
from segkit.inference.tiling import budget
from segkit.inference.tiling.budget import Budget, held_bytes
from segkit.inference.tiling.footprint import footprint
from segkit.inference.tiling.tiles import Tiles, plan_tiles, tiled_logits
from segkit.models.segmentation import FCN, DeepLabV3


class Strides(nn.Module):
    """Strides, a dilation, a ceil-mode pool and a shortcut; counts the pixels of its largest forward."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 5, stride=2, padding=2)
        self.wide = nn.Conv2d(6, 6, 3, padding=3, dilation=3)
        self.pool = nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False)
        self.head = nn.Conv2d(6, 5, 3, stride=2, padding=1)
        self.align_corners = True
        self.largest = 0

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        self.largest = max(self.largest, x.shape[0] * x.shape[2] * x.shape[3])
        x = self.stem(x).relu()
        return {"out": self.head(self.pool(x + self.wide(x).relu()))}


class Valid(nn.Module):
    """No padding: fewer cells than pixels / stride."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 5, 2), nn.ReLU(), nn.Conv2d(4, 3, 4, 2), nn.Conv2d(3, 3, 3))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"out": self.layers(x)}


NETWORKS = {
    "strides": Strides,
    "valid": Valid,
    "resnet": lambda: FCN("resnest14_tiny", 3, encoder_args={"radix": 0}),
    "resnet, timm's dilation": lambda: FCN(
        "resnest14_tiny", 3, dilation_convention="timm", encoder_args={"radix": 0, "avd_first": True}
    ),
}


def made(name: str) -> nn.Module:
    torch.manual_seed(0)
    return NETWORKS[name]().double().eval()


make_image = partial(random_image, dtype=torch.float64)


def budget_of(network: nn.Module, image: Tensor, protocol: Protocol, pixels: int, all_classes: bool = False) -> int:
    """The memory that leaves room for `pixels` in one forward."""
    size = (image.shape[2], image.shape[3])
    task = Task(image.shape, image.device, resolve(protocol, network), size, all_classes)
    return held_bytes(footprint(network), task) + math.ceil(pixels * footprint(network).per_pixel)


def is_exact(tiles: Tiles) -> bool:
    """Whether the logits are those of the whole image but for rounding."""
    return not tiles.field.sees_all and tiles.overlap >= max(tiles.field.before, tiles.field.after)


CASES = [
    ("strides", (301, 207), 100**2),
    ("strides", (96, 411), 66**2),
    ("strides", (400, 90), 8000),
    ("valid", (97, 411), 84**2),
    ("valid", (203, 150), 82**2),
    ("resnet", (423, 361), 310**2),
    ("resnet, timm's dilation", (150, 700), 40_000),
]


@torch.no_grad()
@pytest.mark.parametrize(("name", "size", "most"), CASES)
@pytest.mark.slow
def test_tiles_with_the_receptive_fields_overlap_are_the_whole_image(name: str, size: tuple[int, int], most: int):
    network, image = made(name), make_image(*size, batch=2)
    tiles = plan_tiles(network, size, most)
    assert len(list(tiles)) > 1 and is_exact(tiles)
    assert tiles.shape[0] * tiles.shape[1] <= most
    torch.testing.assert_close(tiled_logits(network, image, tiles), network(image)["out"], rtol=1e-9, atol=1e-9)


@pytest.mark.slow
@torch.no_grad()
def test_less_overlap_than_the_receptive_field_is_not_exact_and_says_so(caplog: pytest.LogCaptureFixture):
    network, image = made("resnet"), make_image(400, 400)
    tiles = plan_tiles(network, (400, 400), 160**2)
    assert tiles.overlap == 40 and not is_exact(tiles)  # a quarter of the side; the field has 67
    assert tiles.shape[0] * tiles.shape[1] <= 160**2
    parts, whole = tiled_logits(network, image, tiles), network(image)["out"]
    assert 1e-9 < (parts - whole).abs().max() < 0.5 * whole.std()
    predict(network, image, get("whole"), limits=Budget(memory=budget_of(network, image, get("whole"), 160**2)))
    assert "overlap of 40, less than its receptive field of 67 pixels" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("size", [(1, 5000), (5000, 3), (333, 333), (64, 1000)])
@pytest.mark.parametrize("most", [64**2, 5001, 20_000, 10**6])
def test_every_cell_is_one_tiles_own_and_every_tile_fits(size: tuple[int, int], most: int) -> None:
    tiles = plan_tiles(made("resnet"), size, most)
    for parts, side in ((tiles.rows, size[0]), (tiles.columns, size[1])):
        assert parts[0].first == parts[0].start == 0 and parts[-1].last == -(-side // 8) and parts[-1].stop == side
        assert all(a.last == b.first for a, b in pairwise(parts))
        assert all(part.start % 8 == 0 for part in parts)
    assert tiles.shape[0] * tiles.shape[1] <= most
    assert (len(list(tiles)) == 1) == (size[0] * size[1] <= most)


def test_cost_grows_linearly_in_pixels() -> None:
    def seen(side: int) -> float:
        tiles = plan_tiles(made("resnet"), (side, side), 600**2)
        return sum((row.stop - row.start) * (column.stop - column.start) for row, column in tiles) / side**2

    assert seen(8000) <= seen(4000) * 1.05 <= 2.2


PROTOCOLS = {
    "whole": get("whole"),
    "flip": Protocol("flip", flip=True),
    "sums": Protocol("sums", scales=(1.0, 1.5), flip=True, fusion="exp_sum"),
    "logits": Protocol("logits", scales=(0.75, 1.0), flip=True, fusion="logit_mean", align_corners=False),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PROTOCOLS)
def test_the_engine_gives_the_same_scores_in_tiles(name: str, caplog: pytest.LogCaptureFixture) -> None:
    network, image, protocol = made("strides"), make_image(203, 158, batch=2), PROTOCOLS[name]
    reference = scores(network, image, protocol)
    network.largest = 0
    memory = budget_of(network, image, protocol, 90**2, all_classes=True)
    result = scores(network, image, protocol, limits=Budget(memory=memory))
    torch.testing.assert_close(result, reference, rtol=1e-6, atol=1e-6)
    assert 0 < network.largest <= 90**2
    assert "does not fit into" in caplog.text and "tiles" in caplog.text
    assert "split attention" not in caplog.text  # it has none
    best = reference.topk(2, dim=1).values
    clear = best[:, 0] - best[:, 1] > 1e-5 * best[:, 0].abs()
    labels, confidence = predict_with_confidence(network, image, protocol, limits=Budget(memory=memory))
    assert (labels == predict(network, image, protocol))[clear].all() and confidence.shape == labels.shape


@pytest.mark.slow
def test_it_is_said_once_for_each_size(caplog: pytest.LogCaptureFixture) -> None:
    network = FCN("resnest14_tiny", 3).double()
    for side in (211, 211, 217, 211):
        image = make_image(side, side)
        with caplog.at_level(logging.WARNING):
            predict(network, image, get("whole"), limits=Budget(memory=budget_of(network, image, get("whole"), 128**2)))
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2 and "211 x 211" in messages[0] and "217 x 217" in messages[1]
    assert messages[0].endswith("split attention and global pooling then see one tile each")


@pytest.mark.slow
@pytest.mark.parametrize("memory", [10**9, 10**10])
def test_a_budget_in_which_the_image_fits_changes_nothing(caplog: pytest.LogCaptureFixture, memory: int) -> None:
    network, image = made("strides"), make_image(120, 90, batch=3)
    limits = Budget(memory=memory)
    for protocol in (*PROTOCOLS.values(), Protocol("windows", window=40, flip=True)):
        for look in (scores, predict):
            assert torch.equal(look(network, image, protocol), look(network, image, protocol, limits=limits))
    assert not caplog.records


def test_a_budget_that_is_surely_enough_costs_no_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "footprint", lambda *_: pytest.fail("measured"))
    network, image = made("strides"), make_image(120, 90)
    predict(network, image, get("whole"), limits=Budget(memory=3 * 10**8))
    with pytest.raises(pytest.fail.Exception):
        predict(network, image, get("whole"), limits=Budget(memory=2 * 10**8))


def test_fewer_windows_and_images_share_a_forward() -> None:
    network, image, protocol = made("strides"), make_image(120, 90, batch=4), Protocol("w", window=40, flip=True)
    reference = predict(network, image, protocol)
    network.largest = 0
    limits = Budget(memory=budget_of(network, image, protocol, 3 * 40**2))
    assert torch.equal(predict(network, image, protocol, limits=limits), reference)
    assert network.largest == 3 * 40**2
    network.largest = 0
    whole = predict(network, image, get("whole"))
    limits = Budget(memory=budget_of(network, image, get("whole"), 23_000))
    assert torch.equal(predict(network, image, get("whole"), limits=limits), whole)
    assert network.largest == 4 * 120 * 90 or network.largest == 2 * 120 * 90


@pytest.mark.parametrize("protocol", [get("whole"), Protocol("w", window=64)], ids=lambda protocol: protocol.name)
def test_a_budget_without_room_names_what_is_needed(protocol: Protocol) -> None:
    network, image = made("strides"), make_image(200, 200)
    with pytest.raises(InputError, match=r"200 x 200.*at least .*B.* but 100 kB are allowed: allow more"):
        predict(network, image, protocol, limits=Budget(memory=100_000))
    needed = budget_of(network, image, protocol, 64**2)
    predict(network, image, protocol, limits=Budget(memory=needed))
    with pytest.raises(InputError, match="memory"):
        predict(network, image, protocol, limits=Budget(memory=needed - 64**2 * 200))


def test_a_network_that_cannot_be_measured_runs_without_the_budget(caplog: pytest.LogCaptureFixture) -> None:
    class Looks(Strides):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return super().forward(x if x.sum().item() > 0 else x.clone())

    network, image = Looks().double(), make_image(60, 60)
    labels = predict(network, image, get("whole"), limits=Budget(memory=1))
    assert torch.equal(labels, predict(network, image, get("whole")))
    assert "the budget of 0.001 kB is not kept" in caplog.text


@pytest.mark.slow
def test_global_pools_make_tiles_near_the_image_not_equal() -> None:
    torch.manual_seed(0)
    network, image = FCN("resnest14_tiny", 3).double().eval(), make_image(350, 350)
    tiles = plan_tiles(network, (350, 350), 290**2)
    assert tiles.overlap == 72 and not is_exact(tiles)
    with torch.no_grad():
        parts, whole = tiled_logits(network, image, tiles), network(image)["out"]
    assert 1e-9 < (parts - whole).abs().max() < 0.1 * whole.std()


@pytest.mark.slow
@torch.no_grad()
def test_twelve_megapixels_with_150_classes_run_in_24_gb_by_the_formula() -> None:
    network = DeepLabV3("resnest50", 150)
    shape, size = torch.Size((1, 3, 3000, 4000)), (3000, 4000)
    task = Task(shape, torch.device("cpu"), resolve(get("whole"), network), size)
    runs, limits = Budget(memory=24 * 10**9).applied(network, task)
    assert runs is network and not limits.always_strips  # neither tiles nor strips
