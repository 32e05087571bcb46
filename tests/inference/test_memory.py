"""The measured footprint against what is known of tensors, and amounts of memory as text."""

import copy
import gc

import pytest
import torch
from torch import nn

from segkit import machine
from segkit.errors import InputError
from segkit.inference.engine import Task, predict, resolve
from segkit.inference.protocols import get
from segkit.inference.tiling import budget
from segkit.inference.tiling import footprint as footprints
from segkit.inference.tiling.budget import Budget, default_budget, held_bytes
from segkit.inference.tiling.footprint import footprint, meta_forward
from segkit.machine import format_bytes, parse_bytes
from segkit.models.inference_form import inference_form
from segkit.models.segmentation import FCN
from segkit.ops.processor import free_bytes
from segkit.ops.winograd import gave_up_filters


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


@pytest.mark.slow
def test_one_measurement_and_no_trace_of_it() -> None:
    network = Net(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    first = footprint(network)
    assert footprint(network) is first and network.seen == 0 and network.training
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert all(value.device.type == "cpu" for value in network.state_dict().values())
    count = len(footprints._footprints)
    del network
    gc.collect()
    assert len(footprints._footprints) == count - 1


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
    monkeypatch.setattr(machine, "_CGROUPS", ())
    whole = free_bytes(cpu)
    assert 10**8 < whole < 10**14
    limit, usage = tmp_path / "limit", tmp_path / "usage"
    monkeypatch.setattr(machine, "_CGROUPS", ((str(limit), str(usage)),))
    assert free_bytes(cpu) > 10**8  # no container
    limit.write_text("50000000\n")
    usage.write_text("20000000\n")
    assert free_bytes(cpu) == 30_000_000 and default_budget(cpu) == 21_000_000
    limit.write_text("max\n")
    assert free_bytes(cpu) > 10**8


class Wide(nn.Module):
    """Most of it is one convolution whose float32 form keeps transformed filters."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        wide = nn.Conv2d(128, 128, 3, padding=2, dilation=2)
        self.encoder = nn.Sequential(nn.Conv2d(3, 128, 4, stride=4), nn.ReLU(), wide, nn.ReLU())
        self.head = nn.Conv2d(128, 5, 1)
        self.num_classes, self.output_stride, self.align_corners, self.config = 5, 4, True, {}

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"out": self.head(self.encoder(x))}


@pytest.fixture
def form() -> nn.Module:
    return inference_form(Wide())


@pytest.fixture
def without() -> nn.Module:
    network = inference_form(Wide())
    assert gave_up_filters(network, "to compare with") and not gave_up_filters(network, "again")
    return network


def needed(network: nn.Module, image: torch.Tensor) -> int:
    """For the whole image in one forward."""
    measured = footprint(network)
    size = (image.shape[2], image.shape[3])
    held = held_bytes(measured, Task(image.shape, image.device, resolve(get("whole"), network), size))
    return held + int(measured.per_pixel * (image.shape[2] * image.shape[3] + 1))


def test_a_budget_that_is_too_small_for_the_filters_alone_is_kept_without_them(
    form: nn.Module, without: nn.Module, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "segkit")
    image = torch.randn(1, 3, 96, 80, generator=torch.Generator().manual_seed(1))
    filters = 4 * 49 * 128 * 128
    assert needed(form, image) - needed(without, image) == filters
    labels = predict(form, image, get("whole"), limits=Budget(memory=needed(form, image)))
    assert footprint(form).parameters == footprint(without).parameters + filters and "gives up" not in caplog.text
    limits = Budget(memory=needed(form, image) - 1000)
    for _ in range(2):
        found = predict(form, image, get("whole"), limits=limits)
        assert torch.equal(found, predict(without, image, get("whole"))) and (found == labels).float().mean() > 0.999
    assert footprint(form) == footprint(without)
    assert caplog.text.count("gives up its transformed filters, 3.21 MB") == 1
    assert "tiles" not in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["whole", "ms-flip", "window"])
def test_what_is_refused_with_filters_is_what_is_refused_without(
    form: nn.Module, without: nn.Module, protocol: str
) -> None:
    image = torch.randn(1, 3, 96, 80, generator=torch.Generator().manual_seed(1))
    accepted = []
    for memory in range(500_000, 12_000_000, 1_500_000):
        limits = Budget(memory=memory)
        try:
            expected = predict(without, image, get(protocol), limits=limits)
        except InputError:
            with pytest.raises(InputError, match=r"allow more"):
                predict(copy.deepcopy(form), image, get(protocol), limits=limits)
        else:
            found = predict(copy.deepcopy(form), image, get(protocol), limits=limits)
            assert (found == expected).float().mean() > 0.999
            accepted.append(memory)
    assert 500_000 < accepted[0] < 4 * 49 * 128 * 128 < accepted[-1]


def test_the_filters_count_where_nothing_is_measured(form: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "footprint", lambda *_: pytest.fail("measured"))
    task = Task(torch.Size((1, 3, 1, 1)), torch.device("cpu"), resolve(get("whole"), form), (1, 1))
    with pytest.raises(pytest.fail.Exception):
        Budget(memory=4 * 49 * 128 * 128, strip_bytes=1).applied(form, task)
