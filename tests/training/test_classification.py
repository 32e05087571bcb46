"""Classification: the loss against the authors' formula, lighting, and several processes against one."""

from pathlib import Path
from typing import Any

import pytest
import torch
from gloo import run_function, trainer
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

from segkit.errors import InputError
from segkit.models.classifier import Classifier
from segkit.ops.normalize import IMAGENET
from segkit.training.classification import ClassificationModule, light, mixed_loss
from segkit.training.optim import OptimConfig

CLASSES = 4


@pytest.mark.slow
def test_the_network_is_the_authors() -> None:
    authors = pytest.importorskip("resnest.torch.resnest", reason="the authors' wheel is not installed")
    torch.manual_seed(0)
    theirs, ours = authors.resnest50(pretrained=False).eval(), Classifier("resnest50").eval()
    ours.encoder.load_state_dict(theirs.state_dict())
    ours.fc.load_state_dict(theirs.fc.state_dict())
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("share", [1.0, 0.3])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_that_of_mixed_and_smoothed_truths(share: float, smoothing: float) -> None:
    """Written out: truths are blended, a share of each is spread over all classes, and the loss is their product."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, CLASSES, generator=generator, dtype=torch.float64)
    label, other = (torch.randint(0, CLASSES, (6,), generator=generator) for _ in range(2))
    of_label, of_other = (F.one_hot(classes, CLASSES).double() for classes in (label, other))
    truth = share * of_label + (1 - share) * of_other
    truth = (1 - smoothing) * truth + smoothing / CLASSES
    expected = -(truth * logits.log_softmax(1)).sum(1).mean()
    assert float(mixed_loss(logits, label, other, share, smoothing)) == pytest.approx(float(expected), abs=1e-12)


def test_lighting_moves_colours_along_the_principal_components() -> None:
    """With a deviation of s the colours of [0, 1] have the covariance s^2 V diag(eigenvalues^2) V'."""
    torch.manual_seed(0)
    drawn = light(200_000, 0.1, IMAGENET).view(-1, 3) * torch.tensor(IMAGENET.std)
    vectors = torch.tensor([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])
    values = torch.tensor([0.2175, 0.0188, 0.0045])
    expected = 0.01 * vectors @ torch.diag(values**2) @ vectors.T
    torch.testing.assert_close(torch.cov(drawn.T), expected, rtol=0.02, atol=1e-7)
    assert drawn.mean(0).abs().max() < 3e-4


@pytest.mark.parametrize("option", [{"mixup": -1.0}, {"label_smoothing": 1.0}, {"lighting": -0.1}])
def test_a_number_out_of_range_is_refused(option: dict[str, float]) -> None:
    with pytest.raises(InputError, match=r"allowed are 0 or more"):
        ClassificationModule(Classifier("resnest14_tiny", CLASSES), **option)  # type: ignore[arg-type]


@pytest.mark.parametrize("option", [{"num_classes": 0}, {"final_drop": 1.0}, {"encoder_args": {"final_drop": 0.2}}])
def test_a_classifier_that_cannot_be_is_refused(option: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        Classifier("resnest14_tiny", **option)


def batches(rank: int, world: int) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(1)
    found = []
    for _ in range(3):
        image = torch.randint(0, 256, (8, 3, 40, 40), generator=generator, dtype=torch.uint8)
        label = torch.randint(0, CLASSES, (8,), generator=generator)
        own = slice(rank * 8 // world, (rank + 1) * 8 // world)
        found.append({"image": image[own], "label": label[own], "name": ["x"] * (8 // world)})
    return found


def trained(rank: int, world: int) -> dict[str, Tensor]:
    """The state after three steps in float64, and the scores of a validation of uneven shares."""
    torch.manual_seed(0)
    module = ClassificationModule(
        Classifier("resnest14_tiny", CLASSES),
        OptimConfig(lr=0.05, reference_batch=0, schedule="constant", head_lr_mult=1),
        label_smoothing=0.1,
    )
    of_processes = trainer(world, precision="64-true", max_epochs=1, num_sanity_val_steps=0)
    held_out = batches(0, 1)[:2]
    shares = held_out if world == 1 else [held_out[rank]] if rank else [held_out[0]]
    of_processes.fit(module, DataLoader(batches(rank, world), batch_size=None), DataLoader(shares, batch_size=None))
    assert module.accuracy is not None
    scores = torch.tensor([module.accuracy.images, module.accuracy.first, module.accuracy.among_five])
    return {name: value.clone() for name, value in module.state_dict().items()} | {
        "scores": scores,
        "val/loss": of_processes.callback_metrics["val/loss"],
    }


@pytest.mark.slow
def test_two_processes_with_synchronised_norms_train_and_score_as_one(tmp_path: Path) -> None:
    alone = trained(0, 1)
    for found in run_function(2, trained, folder=tmp_path):
        assert found.keys() == alone.keys()
        for name, value in alone.items():
            assert torch.allclose(found[name].double(), value.double(), rtol=1e-9, atol=1e-12), name
