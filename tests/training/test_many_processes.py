"""Training in several gloo processes is training in one with the joined batch: parameters and running statistics."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from gloo import run_function, trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from segkit.errors import InputError
from segkit.models.norms import FrozenBatchNorm2d
from segkit.models.segmentation import DeepLabV3
from segkit.ops.sync_batch_norm import SYNCHRONISED
from segkit.training.losses import LossConfig
from segkit.training.module import SegmentationModule
from segkit.training.network import SyncBatchNormPlugin
from segkit.training.optim import OptimConfig

pytestmark = pytest.mark.slow

CLASSES = 5
# Images of each process in each of the three steps; the last batch is uneven.
SIZES = {1: [(6,), (6,), (5,)], 2: [(3, 3), (3, 3), (3, 2)], 3: [(2, 2, 2), (2, 2, 2), (2, 2, 1)]}


def batches(rank: int, world: int) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(3)
    found = []
    for sizes in SIZES[world]:
        count = sum(sizes)
        image = torch.randint(0, 256, (count, 3, 65, 49), generator=generator, dtype=torch.uint8)
        mask = torch.randint(0, CLASSES, (count, 65, 49), generator=generator, dtype=torch.uint8)
        mask[0], mask[1, :40] = 255, 255  # the first process has far fewer valid pixels than the others
        first = sum(sizes[:rank])
        own = slice(first, first + sizes[rank])
        found.append({"image": image[own], "mask": mask[own], "name": [f"{i}" for i in range(sizes[rank])]})
    return found


def trained(
    rank: int, world: int, sync: bool = True, loss: dict[str, Any] | None = None, stages: tuple[int, ...] = ()
) -> dict[str, Tensor]:
    """The state after three steps in float64, without dropout, which each process would draw by itself."""
    torch.manual_seed(0)
    network = DeepLabV3("resnest14_tiny", CLASSES)
    for name, module in list(network.named_modules()):
        if isinstance(module, (nn.Dropout, nn.Dropout2d)):
            network.set_submodule(name, nn.Identity())
    config = OptimConfig(lr=0.05, reference_batch=0, schedule="constant")
    module = SegmentationModule(network, config, LossConfig(**(loss or {})), checkpoint_stages=stages)
    trainer(world, sync, precision="64-true", max_steps=3).fit(
        module, DataLoader(batches(rank, world), batch_size=None)
    )
    assert not any(isinstance(m, SYNCHRONISED) for m in module.modules())  # the network has its own norms again
    return {name: value.clone() for name, value in module.state_dict().items()}


def relative_error(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The largest difference of a tensor from the expected one, in units of the latter's largest value."""
    assert found.keys() == expected.keys()
    errors = {
        name: float((found[name] - value).abs().max() / value.abs().max().clamp(min=1e-30))
        for name, value in expected.items()
        if value.is_floating_point()
    }
    return max(errors.values())


@pytest.fixture(scope="module")
def alone() -> dict[str, Tensor]:
    return trained(0, 1)


@pytest.mark.parametrize("world", [2, 3])
def test_parameters_and_statistics_are_those_of_one_process(
    world: int, alone: dict[str, Tensor], tmp_path: Path
) -> None:
    ranks = run_function(world, trained, folder=tmp_path)
    for state in ranks:
        assert relative_error(state, alone) <= 1e-10
        assert all(torch.equal(state[name], ranks[0][name]) for name in state)
    start = DeepLabV3("resnest14_tiny", CLASSES).state_dict()
    assert len(start) == len(alone)


def test_it_is_not_so_without_synchronised_norms(alone: dict[str, Tensor], tmp_path: Path) -> None:
    """What the test above would miss if it could not see a difference."""
    assert relative_error(run_function(2, trained, False, folder=tmp_path)[0], alone) > 1e-3


def test_class_weights_and_all_pixels_too(tmp_path: Path) -> None:
    for number, loss in enumerate([{"class_weights": [1.0, 5.0, 0.5, 2.0, 1.0]}, {"average": "all", "focal": 0.5}]):
        (tmp_path / str(number)).mkdir()
        ranks = run_function(2, trained, True, loss, folder=tmp_path / str(number))
        assert relative_error(ranks[0], trained(0, 1, True, loss)) <= 1e-10


def test_activations_that_are_computed_again_are_synchronised_again(alone: dict[str, Tensor], tmp_path: Path) -> None:
    ranks = run_function(2, trained, True, None, (1, 2, 3, 4), folder=tmp_path)
    assert relative_error(ranks[0], alone) <= 1e-10


def test_one_image_a_process_needs_a_cure() -> None:
    """What a single process with one image is told before its first step; and that each cure works."""

    def fit(**options: Any) -> None:
        network = DeepLabV3("resnest14_tiny", CLASSES, **options)
        one = {name: value[:1] for name, value in batches(0, 1)[0].items()}
        loader = DataLoader([one["image"][0]], batch_size=1, collate_fn=lambda items: one)
        trainer(1, max_steps=1).fit(SegmentationModule(network), loader)

    with pytest.raises(InputError, match=r"batch_size is 1, but 5 norms see one value .*sync_batchnorm.*pooled_norm"):
        fit()
    fit(pooled_norm="frozen")
    fit(pooled_norm="group")


class Counting(pl.Callback):
    """Counts collective operations from the first image of a validation to its end."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        for name in ("all_reduce", "all_gather", "all_gather_object", "gather", "broadcast"):
            setattr(torch.distributed, name, self._counted(name, getattr(torch.distributed, name)))

    def _counted(self, name: str, function: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            self.calls.append(name)
            return function(*arguments, **options)

        return call

    def on_validation_batch_start(self, trainer, module, batch, batch_idx, dataloader_idx=0) -> None:
        if batch_idx == 0:
            self.calls.clear()

    def on_validation_end(self, trainer, module) -> None:
        self.seen = list(self.calls)


def evaluated(rank: int, world: int) -> dict[str, Any]:
    counting = Counting()
    torch.manual_seed(0)
    module = SegmentationModule(DeepLabV3("resnest14_tiny", CLASSES))
    rows = batches(rank, world)[: 3 - rank]  # one process has an image less
    trainer(world, sync=False, callbacks=[counting]).validate(module, DataLoader(rows, batch_size=None), verbose=False)
    return {"calls": counting.seen, "images": module.confusion.num_images}


def test_an_evaluation_is_one_all_reduce(tmp_path: Path) -> None:
    one, two = run_function(2, evaluated, folder=tmp_path)
    assert one["calls"] == two["calls"] == ["all_reduce"]
    assert one["images"] == two["images"] == sum(sum(sizes) for sizes in SIZES[2]) - SIZES[2][2][1]


def test_every_norm_is_synchronised_but_those_that_never_learn() -> None:
    """And each is itself again afterwards, with what it has learnt."""
    module = SegmentationModule(DeepLabV3("resnest14_tiny", CLASSES, pooled_norm="frozen"))
    module.trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device("cpu")))
    before = {name: type(m) for name, m in module.named_modules()}
    frozen = [name for name, kind in before.items() if kind is FrozenBatchNorm2d]
    plugin = SyncBatchNormPlugin()
    plugin.apply(module)
    now = {name: type(m) for name, m in module.named_modules()}
    assert len(frozen) == 5 and all(now[name] is FrozenBatchNorm2d for name in frozen)
    assert nn.BatchNorm2d in before.values() and nn.BatchNorm2d not in now.values()
    module.network.encoder.bn1.running_mean.fill_(7)
    plugin.revert(module)
    assert {name: type(m) for name, m in module.named_modules()} == before
    assert (module.network.encoder.bn1.running_mean == 7).all()
