"""Many images in order, some of one size together, and none lost by another that fails."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from segkit.errors import InputError
from segkit.inference import protocols, stream
from segkit.inference.segmenter import Segmenter
from segkit.inference.stream import predict_files
from segkit.io import write_png
from segkit.ops.normalize import IMAGENET


class Brightness(nn.Module):
    """Class 1 where an image is bright; remembers its batches and fails on those that it is told to."""

    num_classes, align_corners, output_stride = 2, True, 1

    def __init__(self, most: int = 99) -> None:
        super().__init__()
        self.batches: list[tuple[int, ...]] = []
        self.most = most

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        if len(x) > self.most:
            raise torch.OutOfMemoryError("no")
        self.batches.append(tuple(x.shape))
        brightness = x.mean(1, keepdim=True)
        return {"out": torch.cat([-brightness, brightness], 1)}


def segmenter(most: int = 99) -> Segmenter:
    return Segmenter(Brightness(most), None, IMAGENET, protocols.get("whole"), torch.device("cpu"))


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    sizes = [(8, 9), (8, 9), (8, 9), (5, 4), (8, 9)]
    for number, (height, width) in enumerate(sizes):
        image = np.random.default_rng(number).integers(0, 2, (height, width, 1), np.uint8).repeat(3, 2) * 255
        write_png(tmp_path / f"{number}.png", image)
    return [tmp_path / f"{number}.png" for number in range(len(sizes))]


def never(path: Path, error: Exception) -> None:
    raise AssertionError(f"{path}: {error}")


@pytest.mark.parametrize("ahead", [0, 1, 99])
def test_every_image_gets_its_own_labels_in_order(paths: list[Path], ahead: int) -> None:
    found = list(predict_files(segmenter(), paths, never, ahead))
    assert [one.path for one in found] == paths
    for one in found:
        assert np.array_equal(one.labels, one.image[..., 0] // 255)


def test_equal_sizes_share_a_forward_where_that_helps(paths: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(stream.BATCH_PIXELS, "cpu", 2 * 8 * 9)
    made = segmenter()
    found = list(predict_files(made, paths, never))
    network = made.network
    assert isinstance(network, Brightness)
    assert network.batches == [(2, 3, 8, 9), (1, 3, 8, 9), (1, 3, 5, 4), (1, 3, 8, 9)]
    assert [one.path for one in found] == paths
    for one in found:
        assert np.array_equal(one.labels, one.image[..., 0] // 255)


def test_what_fits_alone_but_not_together_is_done_alone(paths: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(stream.BATCH_PIXELS, "cpu", 3 * 8 * 9)
    assert [one.path for one in predict_files(segmenter(most=1), paths, never)] == paths


def test_unreadable_images_are_told_and_the_others_done(paths: list[Path]) -> None:
    paths[1].write_bytes(b"no image")
    paths[3].unlink()
    told: list[tuple[Path, str]] = []
    found = list(predict_files(segmenter(), paths, lambda path, error: told.append((path, str(error)))))
    assert [one.path for one in found] == [paths[0], paths[2], paths[4]]
    assert [path for path, _ in told] == [paths[1], paths[3]]


def test_what_does_not_fit_is_told(paths: list[Path]) -> None:
    told: list[Exception] = []
    assert not list(predict_files(segmenter(most=0), paths[:2], lambda path, error: told.append(error)))
    assert len(told) == 2 and all(isinstance(error, InputError) for error in told)


def test_reading_stays_a_few_images_ahead(paths: list[Path]) -> None:
    taken = 0

    def counted() -> Iterator[Path]:
        nonlocal taken
        for path in paths * 10:
            taken += 1
            yield path

    found = predict_files(segmenter(), counted(), never, ahead=3)
    next(found)
    assert taken <= 3 + 1 + 4  # those ahead, that in hand, and the groups under way
    found.close()
