"""A loss that is no number stops training before it spoils the weights, or its step is left out."""

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from gloo import run_function, trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from segkit.errors import InputError
from segkit.models.segmentation import FCN
from segkit.training.guards.nonfinite import NonFiniteGuard, replay
from segkit.training.losses import LossConfig
from segkit.training.module import SegmentationModule
from segkit.training.optim import OptimConfig

SPOILT = 2  # the batch whose first mask value gives the loss its NaN


def batches(first: int = 0) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(first)
    found = []
    for step in range(4):
        image = torch.randint(0, 256, (2, 3, 33, 33), generator=generator, dtype=torch.uint8)
        mask = torch.randint(0, 3, (2, 33, 33), generator=generator, dtype=torch.uint8)
        found.append({"image": image, "mask": mask, "name": [f"street{step}a", f"street{step}b"]})
    return found


class Spoiling(pl.Callback):
    """Makes one channel of the first norm infinite for the step of one batch, as an overflow would."""

    def __init__(self, names: set[str]) -> None:
        self.names = names

    def on_train_batch_start(self, trainer, module, batch, batch_idx) -> None:
        module.network.encoder.bn1.register_forward_hook(self._spoil, prepend=True)
        self.now = bool(self.names & set(batch["name"]))

    def _spoil(self, norm: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return output * torch.inf if self.now else output


def fit(
    folder: Path,
    guard: NonFiniteGuard,
    names: set[str],
    extra: pl.Callback | None = None,
    world: int = 1,
    **options: Any,
) -> SegmentationModule:
    torch.manual_seed(0)
    module = SegmentationModule(
        FCN("resnest14_tiny", 3), OptimConfig(lr=0.1, reference_batch=0, schedule="constant"), LossConfig()
    )
    callbacks = [Spoiling(names), guard, *([extra] if extra else [])]
    many = trainer(world, sync=False, max_epochs=1, default_root_dir=folder, callbacks=callbacks, **options)
    many.fit(module, DataLoader(batches(many.global_rank), batch_size=None))
    return module


def test_it_stops_with_step_lr_and_images_and_keeps_the_batch(tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        fit(tmp_path, NonFiniteGuard(), {"street2a"})
    message = str(error.value)
    assert message.startswith("step 2 (epoch 0, lr 0.1): the loss is nan for street2a, street2b; kept in ")
    (kept,) = tmp_path.glob("nonfinite-step000002*.pt")
    assert str(kept) in message and "\n" not in message
    data = torch.load(kept, weights_only=True)
    assert torch.equal(data["batch"]["image"], batches()[2]["image"])
    weights = [value for name, value in data["state_dict"].items() if "running" not in name]
    assert all(bool(value.isfinite().all()) for value in weights)


def test_replay_names_the_first_layer(tmp_path: Path) -> None:
    with pytest.raises(InputError):
        fit(tmp_path, NonFiniteGuard(), {"street2a"})
    (kept,) = tmp_path.glob("*.pt")
    found = replay(kept)  # without what spoilt it
    assert (found.step, found.names, found.first) == (2, ("street2a", "street2b"), None) and found.loss < 10
    data = torch.load(kept, weights_only=True)
    data["state_dict"]["network.encoder.layer2.0.conv3.weight"][0] = torch.inf
    torch.save(data, kept)
    found = replay(kept)
    assert found.first == "encoder.layer2.0.conv3" and "encoder.layer2.0.conv3.weight" in found.parameters
    with pytest.raises(InputError, match="no file of a stopped step"):
        torch.save({"a": torch.ones(1)}, tmp_path / "other.pt")
        replay(tmp_path / "other.pt")


def test_a_step_that_is_left_out_changes_nothing(tmp_path: Path) -> None:
    """The weights and the norms' statistics are those of a run whose batch was never there."""
    guard = NonFiniteGuard(skip=1)
    module = fit(tmp_path, guard, {"street3a"})
    assert guard.skipped == 1 and not list(tmp_path.glob("*.pt"))
    shorter = fit(tmp_path, NonFiniteGuard(), set(), limit_train_batches=3)
    expected = shorter.state_dict()
    for name, value in module.state_dict().items():
        assert torch.equal(value, expected[name]), name
    with pytest.raises(InputError, match="step 3 "):
        fit(tmp_path, NonFiniteGuard(skip=1), {"street1a", "street3a"})
    with pytest.raises(InputError, match="skip_nonfinite is -1"):
        NonFiniteGuard(-1)


def test_a_step_that_is_left_out_is_told(tmp_path: Path) -> None:
    """Also where the loss is finite and only a gradient is not."""
    with pytest.warns(UserWarning, match=r"left out step 3 .*: the loss is nan for street3a, .* \(1 of 1 allowed\)"):
        fit(tmp_path, NonFiniteGuard(skip=1), {"street3a"})

    class Gradient(pl.Callback):
        def on_after_backward(self, trainer, module) -> None:
            if trainer.global_step == 1:
                module.network.encoder.conv1[0].weight.grad[0] = torch.nan

    with pytest.warns(UserWarning, match=r"left out step 1 .*: a gradient is not finite for street1a, street1b"):
        fit(tmp_path, NonFiniteGuard(skip=1), set(), extra=Gradient())


def test_of_accumulated_batches_the_spoilt_one_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is nan for street0a, street0b; kept"):
        fit(tmp_path, NonFiniteGuard(), {"street0a"}, accumulate_grad_batches=2)


def of_a_process(rank: int, world: int, folder: str) -> dict[str, Tensor]:
    """Only the second process has a spoilt batch; both leave the step out."""
    names = {"street1a"} if rank == 1 else set()
    guard = NonFiniteGuard(skip=1)
    module = fit(Path(folder), guard, names, world=world)
    assert guard.skipped == 1
    return {name: value.detach().clone() for name, value in module.named_parameters()}


@pytest.mark.slow
def test_all_processes_decide_alike(tmp_path: Path) -> None:
    one, two = run_function(2, of_a_process, str(tmp_path), folder=tmp_path)
    assert all(torch.equal(one[name], two[name]) and bool(one[name].isfinite().all()) for name in one)


def stopped(rank: int, world: int, folder: str) -> dict[str, str]:
    try:
        fit(Path(folder), NonFiniteGuard(), {"street1a"} if rank == 1 else set(), world=world)
    except InputError as error:
        return {"said": str(error)}
    return {}


@pytest.mark.slow
def test_the_others_name_the_process_that_it_came_from(tmp_path: Path) -> None:
    one, two = run_function(2, stopped, str(tmp_path), folder=tmp_path)
    (kept,) = tmp_path.glob("nonfinite*")
    assert kept.name == "nonfinite-step000001-rank1.pt" and str(kept) in two["said"]
    assert "in rank 1 the loss is nan for street1a, street1b; that process has kept the batch" in one["said"]
