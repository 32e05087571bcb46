"""The fitted temperature against a general minimiser, planted ones, and itself in other orders."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor
from torch.nn import functional as F

from segkit.errors import InputError
from segkit.evaluation.temperature import TEMPERATURES, TemperatureFit

GENERATOR = torch.Generator().manual_seed(0)


def calibrated(classes: int = 7, size: tuple[int, int, int] = (2, 60, 70)) -> tuple[Tensor, Tensor]:
    """Logits, and a truth that is drawn from their softmax."""
    logits = 2 * torch.randn(size[0], classes, *size[1:], generator=GENERATOR)
    drawn = torch.multinomial(logits.softmax(1).movedim(1, -1).flatten(0, -2), 1, generator=GENERATOR)
    mask = drawn.view(size).to(torch.uint8)
    mask[torch.rand(size, generator=GENERATOR) < 0.1] = 255
    return mask, logits


def fitted(mask: Tensor, logits: Tensor) -> TemperatureFit:
    fit = TemperatureFit()
    fit.update(mask, logits)
    return fit


@pytest.mark.parametrize("planted", [0.3, 1.0, 1.9, 3.0, 11.0])
def test_it_is_that_of_a_general_minimiser_and_near_the_planted_one(planted: float) -> None:
    mask, logits = calibrated()
    logits = planted * logits

    def loss(temperature: float) -> float:
        return F.cross_entropy(logits.double() / temperature, mask.long(), ignore_index=255).item()

    expected = minimize_scalar(loss, bounds=(0.1, 30), method="bounded", options={"xatol": 1e-6}).x
    fit = fitted(mask, logits)
    assert fit.best() == pytest.approx(expected, rel=1e-3)
    assert fit.best() == pytest.approx(planted, rel=0.05)
    np.testing.assert_allclose(fit.losses, [loss(t) for t in TEMPERATURES], rtol=1e-5)
    assert fit.pixels == int((mask != 255).sum())


def test_logits_times_three_have_three_times_the_temperature() -> None:
    mask, logits = calibrated()
    assert fitted(mask, 3 * logits).best() == pytest.approx(3 * fitted(mask, logits).best(), rel=2e-3)


def test_order_and_strips_change_no_bit_and_constants_nothing() -> None:
    mask, logits = calibrated()
    whole = fitted(mask, logits)
    parts = [
        (mask[i : i + 1, rows], logits[i : i + 1, :, rows]) for i in (0, 1) for rows in (slice(0, 25), slice(25, 60))
    ]
    apart = [TemperatureFit(), TemperatureFit()]
    for fit, order in zip(apart, ((0, 1, 2, 3), (2, 0, 3, 1)), strict=True):
        for i in order:
            fit.update(*parts[i])
    assert apart[0].losses == apart[1].losses and apart[0].best() == apart[1].best()
    assert apart[0].losses == pytest.approx(whole.losses, rel=1e-6)
    moved = logits + 10 * torch.randn(2, 1, 60, 70, generator=GENERATOR)  # softmax does not see it
    assert fitted(mask, moved.log_softmax(1)).best() == pytest.approx(whole.best(), rel=1e-4)


def test_what_has_no_best_temperature_gets_the_nearest() -> None:
    logits = torch.tensor([3.0, 0.0, 1.0]).view(1, 3, 1, 1)
    assert fitted(torch.tensor([[[0]]]), logits).best() == TEMPERATURES[0]  # always right: as cold as can be
    assert fitted(torch.tensor([[[1]]]), logits).best() == TEMPERATURES[-1]
    with pytest.raises(InputError, match="no pixel"):
        fitted(torch.tensor([[[255]]]), logits).best()
