"""The measured footprint against what is known of tensors, and amounts of memory as text."""

import gc

import pytest
import torch
from torch import nn

from segkit.errors import InputError
from segkit.inference import memory
from segkit.inference.memory import default_budget, footprint, format_bytes, free_bytes, meta_forward, parse_bytes
from segkit.models.segmentation import FCN


class Net(nn.Module):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)
        self.seen = 0

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        self.seen += 1
        return {"out": self.layers(x)}


@pytest.mark.parametrize(
    ("layers", "floats"),
    [
        ((nn.ReLU(),), 3 + 3),
        ((nn.ReLU(), nn.ReLU(), nn.ReLU()), 3 + 3 + 3),  # the input is the caller's; what is between is given up
        ((nn.ReLU(), nn.ReLU(inplace=True)), 3 + 3),
        ((nn.ReLU(), nn.MaxPool2d(2)), 3 + 3 + 3 * (1 / 4 + 2 / 4)),  # and int64 places of the largest
        ((nn.Conv2d(3, 8, 1),), 2 * (3 + 8)),  # as read and written, and as the library arranges them
        ((nn.Conv2d(3, 8, 1), nn.Conv2d(8, 16, 1)), 3 + 2 * (8 + 16)),
    ],
)
def test_what_lives_at_once(layers: tuple[nn.Module, ...], floats: float) -> None:
    assert footprint(Net(*layers)).per_pixel == pytest.approx(4 * floats, rel=1e-3)


def test_parameters_and_logits() -> None:
    found = footprint(Net(nn.Conv2d(3, 10, 3, stride=4, padding=1), nn.BatchNorm2d(10)))
    assert found.parameters == 4 * (10 * 27 + 10 + 4 * 10) + 8
    assert found.logits_per_pixel == 4 * 10 / 16 and found.num_classes == 10


def test_half_precision_takes_half() -> None:
    network = FCN("resnest14_tiny", num_classes=4)
    whole = footprint(network).per_pixel
    assert footprint(FCN("resnest14_tiny", num_classes=4).bfloat16()).per_pixel == pytest.approx(whole / 2, rel=0.05)


def test_one_measurement_and_no_trace_of_it() -> None:
    network = Net(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    first = footprint(network)
    assert footprint(network) is first and network.seen == 0 and network.training
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert all(value.device.type == "cpu" for value in network.state_dict().values())
    count = len(memory._footprints)
    del network
    gc.collect()
    assert len(memory._footprints) == count - 1


def test_it_works_in_inference_mode_and_finds_sizes() -> None:
    with torch.inference_mode():
        assert meta_forward(FCN("resnest14_tiny", num_classes=4), (1, 3, 97, 65)).shape == (1, 4, 13, 9)


def test_a_network_that_looks_at_values_is_told() -> None:
    class Looks(nn.Module):
        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"out": x if x.sum().item() > 0 else -x}

    with pytest.raises(InputError, match="Looks cannot be measured"):
        footprint(Looks())


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("8GB", 8 * 10**9),
        ("500 MB", 5 * 10**8),
        ("16GiB", 2**34),
        ("1.5g", 1_500_000_000),
        ("64kib", 2**16),
        ("123", 123),
        (" 2 TB ", 2 * 10**12),
    ],
)
def test_amounts(text: str, count: int) -> None:
    assert parse_bytes(text) == count


@pytest.mark.parametrize("text", ["", "GB", "8XB", "-1GB", "0", "0.1", "8 G B", "1e9", "nan"])
def test_what_is_no_amount(text: str) -> None:
    with pytest.raises(InputError, match=r"not an amount of memory.*8GB"):
        parse_bytes(text)


def test_amounts_are_told_in_three_digits() -> None:
    assert [format_bytes(count) for count in (7.52e9, 320e6, 85_000)] == ["7.52 GB", "320 MB", "85 kB"]


def test_free_memory_is_the_least_of_machine_and_container(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    monkeypatch.setattr(memory, "_CGROUPS", ())
    machine = free_bytes(cpu)
    assert 10**8 < machine < 10**14
    limit, usage = tmp_path / "limit", tmp_path / "usage"
    monkeypatch.setattr(memory, "_CGROUPS", ((str(limit), str(usage)),))
    assert free_bytes(cpu) > 10**8  # no container
    limit.write_text("50000000\n")
    usage.write_text("20000000\n")
    assert free_bytes(cpu) == 30_000_000 and default_budget(cpu) == 21_000_000
    limit.write_text("max\n")
    assert free_bytes(cpu) > 10**8
