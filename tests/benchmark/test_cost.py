"""Costs against numbers worked out by hand, and the published network's count."""

import pytest
import torch
from clock import Clock
from torch import nn

from segkit.benchmark import cost
from segkit.benchmark.cost import PeakMemory, Stopwatch, flops, flops_of, parameters, recorded_forwards
from segkit.inference.engine import predict
from segkit.inference.protocols import Protocol
from segkit.models.segmentation import FCN, DeepLabV3


class Small(nn.Module):
    """Two convolutions and a matrix product; the logits are of no use."""

    num_classes = 5

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.second = nn.Conv2d(8, 12, 3, padding=2, dilation=2, groups=4, bias=False)
        self.last = nn.Linear(12, 5)
        self.aux_head = nn.Conv2d(8, 7, 1)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        x = torch.relu(self.second(self.first(x)))
        return {"out": self.last(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)}


def test_parameters_leave_out_the_auxiliary_head() -> None:
    assert parameters(Small()) == (3 * 8 * 9 + 8) + (2 * 12 * 9) + (12 * 5 + 5)
    with_aux, without = FCN("resnest14_tiny", 5), FCN("resnest14_tiny", 5, aux=False)
    assert parameters(with_aux) == parameters(without) == sum(p.numel() for p in without.parameters())
    assert sum(p.numel() for p in with_aux.parameters()) > parameters(with_aux)


def test_flops_by_hand() -> None:
    # 9 x 13 pixels -> 5 x 7 cells; each output of a convolution costs 2 x (inputs of its group) x 9.
    by_hand = 5 * 7 * (8 * 2 * 3 * 9 + 12 * 2 * 2 * 9 + 2 * 12 * 5)
    network = Small().train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    assert flops(network, (9, 13)) == by_hand
    assert network.training and all(p.device.type == "cpu" for p in network.parameters())
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


@pytest.mark.slow
def test_published_network_at_the_authors_crop() -> None:
    """ResNeSt-50, DeepLabV3, stride 8, 150 classes, 480 x 480: 293 GFLOP, 41.6 million parameters without aux."""
    with torch.device("meta"):
        network = DeepLabV3("resnest50", 150)
    assert round(flops(network, (480, 480)) / 1e9, 1) == 293.2
    assert round(parameters(network) / 1e6, 1) == 41.6


@pytest.mark.slow
def test_forwards_of_a_protocol_are_those_that_ran() -> None:
    network = FCN("resnest14_tiny", 3).eval()
    protocol = Protocol("p", scales=(0.5, 1.0), flip=True, window=32, stride=32)
    with recorded_forwards(network) as seen:
        predict(network, torch.zeros(1, 3, 64, 40), protocol)
    # 32 x 20 in one window of 32 x 20; 64 x 40 in 2 x 2 windows of 32; each flipped too
    assert dict(seen) == {(32, 20): 2, (32, 32): 8}
    assert flops_of(network, seen) == 2 * flops(network, (32, 20)) + 8 * flops(network, (32, 32))
    predict(network, torch.zeros(1, 3, 64, 40), protocol)
    assert sum(seen.values()) == 10  # no longer listening


def test_stopwatch_leaves_out_the_first_image_and_failures() -> None:
    clock = Clock()
    watch = Stopwatch("cpu", clock)
    for seconds in (5, 1, 2):
        with watch.image():
            clock.sleep(seconds)
    with pytest.raises(ValueError), watch.image():
        clock.sleep(4)
        raise ValueError
    assert (watch.images, watch.seconds) == (2, 3)


@pytest.mark.slow
@pytest.mark.skipif(not cost._STATUS.is_file(), reason="needs Linux")
def test_peak_memory_is_the_blocks_own() -> None:
    def use(megabytes: int) -> int:
        with PeakMemory("cpu") as memory:
            pieces = [torch.ones(2**18) for _ in range(megabytes)]  # 1 MiB each, which an allocator likes to keep
            del pieces
        assert memory.bytes is not None
        return memory.bytes >> 20

    # A small block after a large one neither inherits its peak nor borrows the memory that it left.
    assert [abs(use(size) - size) < 12 for size in (20, 200, 40)] == [True, True, True]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_peak_memory_on_a_gpu_is_that_of_its_tensors() -> None:
    held = torch.ones(2**22, device="cuda")
    for _ in range(2):
        with PeakMemory("cuda") as memory:
            del_me = torch.ones(2**20, device="cuda")
            del del_me
        assert memory.bytes == 4 * 2**20
    del held


@pytest.mark.slow
def test_peak_memory_is_unknown_where_it_cannot_be_measured(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "_RESET", tmp_path / "absent" / "clear_refs")
    with PeakMemory("cpu") as memory:
        torch.ones(1000)
    assert memory.bytes is None
