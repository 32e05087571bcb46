"""The losses: cross entropy against torch, mining against mmsegmentation's rule, the others against smp."""

from collections.abc import Callable
from dataclasses import fields
from functools import partial

import numpy as np
import pytest
import segmentation_models_pytorch.losses as smp
import torch
from largest_tensor import Largest
from torch import Tensor
from torch.nn import functional as F

from segkit.errors import InputError
from segkit.ops.upsample_cross_entropy import plain_true_probability, upsample_true_probability
from segkit.training.losses import LossConfig, loss_terms, segmentation_loss
from segkit.training.pixels import hard_target

SMP: dict[str, Callable[..., torch.nn.Module]] = {
    "dice": partial(smp.DiceLoss, "multiclass"),
    "lovasz": partial(smp.LovaszLoss, "multiclass"),
    "focal": partial(smp.FocalLoss, "multiclass", gamma=3.0),
    "tversky": partial(smp.TverskyLoss, "multiclass", alpha=0.3, beta=0.9),
}
NUMBERS = {"focal_gamma": 3.0, "tversky_alpha": 0.3, "tversky_beta": 0.9}
EVERYTHING = {"dice": 0.5, "lovasz": 2.0, "focal": 3.0, "tversky": 0.25, "ohem_threshold": 0.4, "ohem_min_kept": 20}
WEIGHTS = (0.5, 2.0, 7.0, 1.0)


def batch(seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Logits (2, 4, 8, 10) and a mask in which a block, and of the second image all but a row, is ignored."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 4, 8, 10, generator=generator, dtype=dtype) * 2
    mask = torch.randint(0, 3, (2, 8, 10), generator=generator, dtype=torch.uint8)  # class 3 is absent
    mask[0, 2:5, 3:] = 255
    mask[1, 1:] = 255
    return logits, mask


def only(name: str, **numbers: object) -> LossConfig:
    return LossConfig(**{"cross_entropy": 0.0, name: 1.0, **numbers})


def test_default_is_cross_entropy_over_valid_pixels_plus_auxiliary() -> None:
    torch.manual_seed(0)
    outputs = {"out": torch.randn(2, 5, 4, 6), "aux": torch.randn(2, 5, 4, 6)}
    mask = torch.randint(0, 5, (2, 29, 43), dtype=torch.uint8)
    mask[:, :7] = 255

    def reference(logits: Tensor, align_corners: bool) -> Tensor:
        full = F.interpolate(logits, (29, 43), mode="bilinear", align_corners=align_corners)
        return F.cross_entropy(full, mask.long(), ignore_index=255)

    for align_corners in (True, False):
        loss = segmentation_loss(outputs, mask, LossConfig(), align_corners)
        expected = reference(outputs["out"], align_corners) + 0.2 * reference(outputs["aux"], align_corners)
        torch.testing.assert_close(loss, expected)


def test_weights_and_smoothing_are_torchs() -> None:
    logits, mask = batch()
    loss = segmentation_loss({"out": logits}, mask, LossConfig(class_weights=WEIGHTS))
    reference = torch.nn.CrossEntropyLoss(torch.tensor(WEIGHTS), ignore_index=255)
    torch.testing.assert_close(loss, reference(logits, mask.long()))
    smooth = segmentation_loss({"out": logits}, mask, LossConfig(label_smoothing=0.1))
    torch.testing.assert_close(smooth, F.cross_entropy(logits, mask.long(), ignore_index=255, label_smoothing=0.1))
    with pytest.raises(InputError, match="2 numbers, the network 4 classes"):
        segmentation_loss({"out": logits}, mask, LossConfig(class_weights=(1, 2)))
    with pytest.raises(InputError, match=r"data\.class_weights\('enet'\)"):
        segmentation_loss({"out": logits}, mask, LossConfig(class_weights="enet"))


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_average_over_all_is_mmsegs_default(weights: tuple[float, ...] | None) -> None:
    logits, mask = batch()
    config = LossConfig(average="all", class_weights=weights, focal=1.0, aux_weight=0.5)
    given = None if weights is None else torch.tensor(weights)
    none = F.cross_entropy(logits, mask.long(), weight=given, ignore_index=255, reduction="none")  # ignored are 0
    terms = loss_terms({"out": logits, "aux": logits}, mask, config)
    torch.testing.assert_close(terms["cross_entropy"], none.mean())
    torch.testing.assert_close(terms["aux"], 0.5 * none.mean())
    focal = smp.FocalLoss("multiclass", ignore_index=255)(logits, mask.long())
    torch.testing.assert_close(terms["focal"], focal * (mask != 255).sum() / mask.numel())


@pytest.mark.parametrize("threshold, min_kept", [(0.3, 1), (0.05, 30), (0.9, 5), (0.1, 10_000), (1.0, 1)])
@pytest.mark.parametrize("average", ["valid", "all"])
def test_mining_is_mmsegs_rule(threshold: float, min_kept: int, average: str) -> None:
    logits, mask = batch()
    config = LossConfig(ohem_threshold=threshold, ohem_min_kept=min_kept, average=average)
    terms = loss_terms({"out": logits, "aux": logits}, mask, config)
    scores = np.exp(logits.numpy().astype(np.float64)).transpose(0, 2, 3, 1)[mask.numpy() != 255]
    own = np.take_along_axis(scores, mask.numpy()[mask.numpy() != 255][:, None].astype(int), 1)[:, 0] / scores.sum(1)
    limit = max(threshold, np.sort(own)[min(2 * min_kept, len(own) - 1)])
    hard = own[own < limit]
    assert 0 < len(hard) < len(own) or threshold == 1
    expected = -np.log(hard).sum() / (mask.numel() if average == "all" else len(hard))
    assert terms["cross_entropy"].item() == pytest.approx(expected, rel=1e-5)
    plain = loss_terms({"out": logits}, mask, LossConfig(average=average))["cross_entropy"]
    torch.testing.assert_close(terms["aux"], 0.2 * plain)  # the auxiliary head learns from all pixels


def test_mining_with_class_weights_divides_by_the_kept_weights() -> None:
    logits, mask = batch()
    kept = hard_target(upsample_true_probability(logits, mask.long()), mask.long(), 0.3, 10)
    assert 0 < (kept != 255).sum() < (mask != 255).sum() and torch.equal(kept[kept != 255], mask[kept != 255].long())
    config = LossConfig(ohem_threshold=0.3, ohem_min_kept=10, class_weights=WEIGHTS)
    reference = torch.nn.CrossEntropyLoss(torch.tensor(WEIGHTS), ignore_index=255)
    torch.testing.assert_close(segmentation_loss({"out": logits}, mask, config), reference(logits, kept))


@pytest.mark.parametrize("threshold, min_kept", [(0.5, 1), (0.001, 300), (0.2, 100)])
@pytest.mark.parametrize("align_corners", [True, False])
def test_hard_pixels_are_those_of_full_size_logits(threshold: float, min_kept: int, align_corners: bool) -> None:
    logits = batch(dtype=torch.float64)[0]
    mask = F.interpolate(batch()[1][None], (33, 47))[0].long()
    full = F.interpolate(logits, (33, 47), mode="bilinear", align_corners=align_corners)
    in_full = hard_target(upsample_true_probability(full, mask), mask, threshold, min_kept)
    found = hard_target(upsample_true_probability(logits, mask, align_corners), mask, threshold, min_kept)
    assert torch.equal(found, in_full) and 0 < (found != 255).sum() < (mask != 255).sum()
    plain = hard_target(plain_true_probability(logits, mask, align_corners), mask, threshold, min_kept)
    assert torch.equal(plain, in_full)
    expected = F.cross_entropy(full, in_full, ignore_index=255)
    for fused in (True, False):
        config = LossConfig(ohem_threshold=threshold, ohem_min_kept=min_kept, fused=fused)
        torch.testing.assert_close(loss_terms({"out": logits}, mask, config, align_corners)["cross_entropy"], expected)
    in_float32 = upsample_true_probability(logits.float(), mask, align_corners)
    assert (hard_target(in_float32, mask, threshold, min_kept) != in_full).sum() <= 2  # at the limit


def test_only_smps_terms_need_full_size_logits() -> None:
    logits, mask = torch.randn(2, 50, 8, 8, requires_grad=True), torch.randint(0, 50, (2, 64, 64), dtype=torch.uint8)
    outputs, full = {"out": logits, "aux": logits}, 4 * 50 * mask.numel()
    for options, wanted in (({}, False), ({"dice": 1.0}, True), ({"fused": False}, True)):
        with Largest() as largest:
            loss = segmentation_loss(outputs, mask, LossConfig(ohem_threshold=0.5, ohem_min_kept=10, **options))
            loss.backward()
        assert (largest.seen >= full) if wanted else (largest.seen <= full / 25)  # int64 masks


@pytest.mark.slow
def test_mining_and_all_cross_entropies_compile_to_one_graph() -> None:
    logits, mask = batch()
    logits.requires_grad_()
    config = LossConfig(ohem_threshold=0.4, ohem_min_kept=20, class_weights=WEIGHTS, label_smoothing=0.1)
    found = []
    for function in (segmentation_loss, torch.compile(segmentation_loss, fullgraph=True, backend="aot_eager")):
        loss = function({"out": logits, "aux": 2 * logits}, mask, config)
        found.append((loss.detach(), *torch.autograd.grad(loss, logits)))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("name", SMP)
def test_smps_losses_see_valid_pixels_only(name: str) -> None:
    logits, mask = batch()
    numbers = {option: value for option, value in NUMBERS.items() if option.startswith(name)}
    valid = mask != 255
    flat = logits.movedim(1, -1)[valid].T[None, :, None]  # (1, K, 1, valid)
    reference = SMP[name]()(flat, mask[valid].long()[None, None])
    loss = segmentation_loss({"out": logits}, mask, only(name, **numbers))
    torch.testing.assert_close(loss, reference)
    torch.testing.assert_close(loss, SMP[name](ignore_index=255)(logits, mask.long()))
    moved = torch.where(valid[:, None], logits, 50.0)  # what the network says of ignored pixels is all the same
    torch.testing.assert_close(segmentation_loss({"out": moved}, mask, only(name, **numbers)), reference)


@pytest.mark.parametrize("name", ["cross_entropy", *SMP])
def test_ignored_pixels_get_no_gradient(name: str) -> None:
    logits, mask = batch()
    logits.requires_grad_()
    segmentation_loss({"out": logits}, mask, only(name)).backward()
    size = logits.grad.abs().sum(1)
    assert (size[mask == 255] == 0).all() and (size[mask != 255] > 0).float().mean() > 0.9


def test_loss_is_the_sum_of_weighted_terms() -> None:
    logits, mask = batch()
    outputs = {"out": logits, "aux": logits.flip(0)}
    config = LossConfig(cross_entropy=0.7, aux_weight=0.3, **EVERYTHING, **NUMBERS)
    terms = loss_terms(outputs, mask, config)
    assert list(terms) == ["cross_entropy", "dice", "lovasz", "focal", "tversky", "aux"]
    torch.testing.assert_close(segmentation_loss(outputs, mask, config), sum(terms.values()))
    for name in SMP:
        reference = SMP[name](ignore_index=255)(logits, mask.long())
        torch.testing.assert_close(terms[name], getattr(config, name) * reference)
    mined = loss_terms({"out": logits}, mask, LossConfig(ohem_threshold=0.4, ohem_min_kept=20))
    torch.testing.assert_close(terms["cross_entropy"], 0.7 * mined["cross_entropy"])
    assert list(loss_terms({"out": logits}, mask, only("dice"))) == ["dice"]


@pytest.mark.parametrize("average", ["valid", "all"])
@pytest.mark.parametrize(
    "options", [{}, {"class_weights": WEIGHTS}, {"focal": 2.0}, {"cross_entropy": 0.0, "focal": 1.0}]
)
def test_two_processes_have_the_gradient_of_one(options: dict, average: str) -> None:
    """As DDP averages: the mean of the halves' gradients, each half divided by half the total count."""
    logits, mask = batch(dtype=torch.float64)
    config = LossConfig(average=average, label_smoothing=0.1, **options)

    def halves(mean_count: Callable[[int, Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """The mean loss of the two images and its gradient."""
        x = logits.clone().requires_grad_()
        losses = []
        for rank in (0, 1):
            outputs = {"out": x[rank : rank + 1], "aux": 0.5 * x[rank : rank + 1]}
            half = partial(mean_count, rank)
            losses.append(segmentation_loss(outputs, mask[rank : rank + 1], config, mean_count=half))
        loss = torch.stack(losses).mean()
        return loss.detach(), torch.autograd.grad(loss, x)[0]

    seen: tuple[list[Tensor], list[Tensor]] = ([], [])

    def own(rank: int, count: Tensor) -> Tensor:
        assert count.dtype == torch.float64 and count.shape == ()
        seen[rank].append(count)
        return count

    _, alone = halves(own)
    assert len(seen[0]) == len(seen[1])
    mean = iter([(a + b) / 2 for a, b in zip(*seen, strict=True)] * 2)
    loss, shared = halves(lambda rank, count: next(mean))
    x = logits.clone().requires_grad_()
    joined = segmentation_loss({"out": x, "aux": 0.5 * x}, mask, config)
    (expected,) = torch.autograd.grad(joined, x)
    torch.testing.assert_close(loss, joined.detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(shared, expected, rtol=1e-12, atol=1e-12)
    assert average == "all" or (alone - expected).abs().max() > 1e-3  # the counts do matter here


@pytest.mark.parametrize(
    "options, calls",
    [
        ({}, 1),
        ({"focal": 1.0}, 1),
        ({"dice": 1.0, "cross_entropy": 0.0}, 1),
        ({"class_weights": WEIGHTS}, 1),
        ({"class_weights": WEIGHTS, "focal": 1.0}, 2),
        (EVERYTHING, 2),
        ({**EVERYTHING, "class_weights": WEIGHTS}, 3),
        ({**EVERYTHING, "class_weights": WEIGHTS, "average": "all"}, 1),
    ],
)
def test_each_distinct_count_is_asked_for_once_whatever_the_mask_holds(options: dict, calls: int) -> None:
    logits, mask = batch()
    for some in (mask, torch.full_like(mask, 255), torch.zeros_like(mask)):
        counts: list[Tensor] = []

        def mean_count(count: Tensor, counts: list[Tensor] = counts) -> Tensor:
            counts.append(count)
            return count

        segmentation_loss({"out": logits, "aux": logits}, some, LossConfig(**options), mean_count=mean_count)
        assert len(counts) == calls and all(c.dtype == torch.float32 and c.shape == () for c in counts)


def test_a_divisor_below_one_divides() -> None:
    """One valid pixel on four processes is a quarter of a pixel each."""
    logits, mask = batch()
    mask[:] = 255
    mask[0, 0, 0] = 1
    quarter = segmentation_loss({"out": logits}, mask, LossConfig(), mean_count=lambda count: count / 4)
    torch.testing.assert_close(quarter, 4 * segmentation_loss({"out": logits}, mask, LossConfig()))


@pytest.mark.parametrize("size", [(8, 10), (16, 20)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_precision_is_never_lowered_and_half_is_raised_first(dtype: torch.dtype, size: tuple[int, int]) -> None:
    logits = batch(dtype=torch.float64)[0].to(dtype)
    mask = F.interpolate(batch()[1][None], size)[0]
    config = LossConfig(**EVERYTHING, class_weights=WEIGHTS)
    wanted = torch.float64 if dtype == torch.float64 else torch.float32
    terms = loss_terms({"out": logits, "aux": logits}, mask, config)
    exact = loss_terms({"out": logits.double(), "aux": logits.double()}, mask, config)
    for name, term in terms.items():
        assert term.dtype == wanted, name
        torch.testing.assert_close(term, exact[name].to(wanted), rtol=1e-5, atol=1e-6)
    assert segmentation_loss({"out": logits, "aux": logits}, mask, config).dtype == wanted
    with torch.autocast("cpu", torch.bfloat16):
        automatic = loss_terms({"out": logits, "aux": logits}, mask, config)
    assert {name: term.item() for name, term in automatic.items()} == {name: t.item() for name, t in terms.items()}


@pytest.mark.parametrize("options", [{}, {"ohem_threshold": 0.6}, {"class_weights": WEIGHTS, "label_smoothing": 0.1}])
def test_fused_is_not_fused(options: dict) -> None:
    """The same loss and gradients, with full-size logits and without."""
    found = []
    for fused in (True, False):
        logits = batch(dtype=torch.float64)[0].requires_grad_()
        mask = F.interpolate(batch()[1][None], (33, 47))[0]
        loss = segmentation_loss({"out": logits, "aux": 2 * logits}, mask, LossConfig(**options, fused=fused))
        found.append((loss.detach(), *torch.autograd.grad(loss, logits)))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("average", ["valid", "all"])
@pytest.mark.parametrize("weights", [None, WEIGHTS, (0.0, 1.0, 0.0, 0.0)])
@pytest.mark.parametrize("mined", [0.0, 0.7])
def test_nothing_to_learn_is_zero_not_nan(average: str, weights: tuple[float, ...] | None, mined: float) -> None:
    logits = batch()[0].requires_grad_()
    mask = torch.full((2, 8, 10), 255, dtype=torch.uint8)
    mining = {"ohem_threshold": mined, "ohem_min_kept": 20 if mined else 100_000}
    options = {**EVERYTHING, **mining, "average": average, "class_weights": weights}
    terms = loss_terms({"out": logits, "aux": logits}, mask, LossConfig(**options, label_smoothing=0.1))
    assert len(terms) == 6
    for name, term in terms.items():
        (gradient,) = torch.autograd.grad(term, logits, retain_graph=True)
        assert term.shape == () and term == 0 and not gradient.any(), name


def test_pixels_that_all_weigh_nothing_are_zero_not_nan() -> None:
    logits, mask = batch()[0].requires_grad_(), torch.zeros(2, 8, 10, dtype=torch.uint8)
    loss = segmentation_loss({"out": logits}, mask, LossConfig(class_weights=(0, 1, 1, 1), label_smoothing=0.1))
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss == 0 and not gradient.any()


@pytest.mark.parametrize(
    "wrong, words",
    [
        ({"cross_entropy": -1.0}, "finite number, 0 or more"),
        ({"dice": float("nan")}, "finite number"),
        ({"lovasz": float("inf")}, "finite number"),
        ({"focal": -0.1}, "finite number"),
        ({"tversky": -0.1}, "finite number"),
        ({"aux_weight": -0.1}, "finite number"),
        ({"aux_weight": float("nan")}, "finite number"),
        ({"label_smoothing": 1.1}, "in 0..1"),
        ({"ohem_threshold": 1.5}, "in 0..1"),
        ({"ohem_threshold": float("nan")}, "in 0..1"),
        ({"ohem_min_kept": 0}, "whole number of pixels, 1 or more"),
        ({"ohem_min_kept": 1.5}, "whole number"),
        ({"focal_gamma": -1.0}, "finite number"),
        ({"focal_gamma": 0.5}, "0, or 1 and more"),
        ({"tversky_alpha": -1.0}, "finite number"),
        ({"tversky_beta": -1.0}, "finite number"),
        ({"tversky_beta": 0.0, "tversky_alpha": 0.0}, "above 0 where tversky_alpha is 0"),
        ({"average": "batch"}, "valid or all"),
        ({"cross_entropy": 0.0}, "above 0, or one of dice, lovasz, focal, tversky"),
        ({"ohem_threshold": 0.7, "cross_entropy": 0.0, "dice": 1.0}, "0 where cross_entropy"),
    ],
)
def test_wrong_numbers(wrong: dict, words: str) -> None:
    with pytest.raises(InputError, match=rf"^model\.loss\.{next(iter(wrong))}=.* must be .*{words}") as error:
        LossConfig(**wrong)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"ohem_min_kept": 5}, "ohem_min_kept=5 has no effect without ohem_threshold above 0"),
        ({"focal_gamma": 3.0}, "focal_gamma=3.0 has no effect without focal above 0"),
        ({"tversky_alpha": 0.3, "dice": 1.0}, "tversky_alpha=0.3 has no effect without tversky above 0"),
        ({"tversky_beta": 0.3}, "tversky_beta=0.3 has no effect without tversky above 0"),
        ({"cross_entropy": 0, "aux_weight": 0, "dice": 1.0, "label_smoothing": 0.1}, "label_smoothing=0.1 has no"),
        ({"cross_entropy": 0, "aux_weight": 0, "focal": 1.0, "class_weights": (1, 2)}, "class_weights=.* has no"),
        ({"cross_entropy": 0, "aux_weight": 0, "dice": 1.0, "average": "all"}, "average='all' has no effect"),
        ({"cross_entropy": 0, "aux_weight": 0, "dice": 1.0, "fused": False}, "fused=False has no effect"),
    ],
)
def test_an_option_that_changes_nothing_is_refused(options: dict, words: str) -> None:
    with pytest.raises(InputError, match=rf"^model\.loss\.{words}") as error:
        LossConfig(**options)
    assert "\n" not in str(error.value) and "leave it out" in str(error.value)


def test_numbers_at_the_limits_are_allowed() -> None:
    regions = {"focal": 1.0, "focal_gamma": 0.0, "tversky": 1.0, "tversky_alpha": 0.0}
    LossConfig(ohem_threshold=1.0, ohem_min_kept=1, label_smoothing=1.0, **regions)
    assert all(isinstance(f.default, float | int | str | None) for f in fields(LossConfig))  # flat: one word an option
