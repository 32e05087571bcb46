"""Learning rates, parameter groups and schedules, against the authors' recipe, torch, timm and mmcv's formula."""

import math
from typing import Any

import pytest
import timm
import torch
from resnest.torch import resnest as authors
from timm.optim import param_groups_layer_decay
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LRScheduler, MultiStepLR

from segkit.errors import InputError
from segkit.models.classifier import Classifier
from segkit.models.own import around, build_module
from segkit.models.segmentation import FCN, DeepLabV3
from segkit.training.optim import (
    OptimConfig,
    build_optimizer,
    groups_table,
    lr_factors,
    parameter_groups,
    scaled_lr,
)


class TimmNetwork(nn.Module):
    """One of timm's networks where a segmentation network has its encoder, and its classifier for a head."""

    def __init__(self, name: str, wrapped: str = "") -> None:
        super().__init__()
        self.encoder: Any = timm.create_model(name, num_classes=3)
        self.head = self.encoder.get_classifier()
        self.encoder.reset_classifier(0)
        if wrapped:
            inner, self.encoder = self.encoder, nn.Module()
            self.encoder.add_module(wrapped, inner)


def learning_rates(network: nn.Module, groups: list[dict[str, Any]]) -> dict[str, tuple[float, float]]:
    """Learning rate and weight decay of each parameter by its name."""
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    return {names[id(p)]: (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}


def schedule(scheduler: LRScheduler, steps: int) -> list[list[float]]:
    """Learning rates of the groups at each step."""
    rates = []
    for _ in range(steps):
        rates.append([group["lr"] for group in scheduler.optimizer.param_groups])
        scheduler.optimizer.step()
        scheduler.step()
    return rates


def two_groups(*lrs: float) -> list[dict[str, Any]]:
    return [{"params": [nn.Parameter(torch.ones(1))], "lr": lr, "name": f"{lr}"} for lr in lrs]


def factor(config: OptimConfig, total_steps: int) -> Any:
    return lr_factors(config, total_steps, two_groups(config.lr))[0]


def test_linear_scaling_from_batch_16() -> None:
    assert scaled_lr(OptimConfig(), 16) == 0.01
    assert scaled_lr(OptimConfig(), 8) == 0.005
    assert scaled_lr(OptimConfig(reference_batch=0), 8) == 0.01


def test_head_and_auxiliary_head_learn_ten_times_faster() -> None:
    network = DeepLabV3("resnest14_tiny", 5)
    optimizer = build_optimizer(OptimConfig(), parameter_groups(network, 0.01, OptimConfig()))
    encoder, heads = optimizer.param_groups
    assert isinstance(optimizer, torch.optim.SGD)
    assert (encoder["name"], heads["name"]) == ("encoder", "head")
    assert (encoder["lr"], heads["lr"]) == (0.01, 0.1)
    assert {g["momentum"] for g in optimizer.param_groups} == {0.9}
    assert {g["weight_decay"] for g in optimizer.param_groups} == {1e-4}  # on all parameters, norms and biases too
    assert [id(p) for p in encoder["params"]] == [id(p) for p in network.encoder.parameters()]
    assert len(encoder["params"]) + len(heads["params"]) == len(list(network.parameters()))


def test_adamw_takes_the_groups_numbers() -> None:
    config = OptimConfig(name="adamw", weight_decay=0.05)
    optimizer = build_optimizer(config, parameter_groups(FCN("resnest14_tiny", 5), 1e-4, config))
    assert isinstance(optimizer, torch.optim.AdamW)
    assert [(g["lr"], g["weight_decay"]) for g in optimizer.param_groups] == [(1e-4, 0.05), (1e-3, 0.05)]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnest26d", "resnet18", "convnext_atto", "efficientnet_b0", "regnety_002"])
def test_layer_decay_and_no_decay_are_timms(name: str) -> None:
    network = TimmNetwork(name)
    config = OptimConfig(layer_decay=0.75, head_lr_mult=1, decay_norm_bias=False, weight_decay=0.05)
    ours = learning_rates(network, parameter_groups(network, 1.0, config))
    whole = timm.create_model(name, num_classes=3)  # with its classifier, which is timm's last layer
    theirs = {}
    names = {id(parameter): n for n, parameter in whole.named_parameters()}
    for group in param_groups_layer_decay(whole, weight_decay=0.05, layer_decay=0.75):
        for parameter in group["params"]:
            theirs[names[id(parameter)]] = (group["lr_scale"], group["weight_decay"])
    compared = {n.removeprefix("encoder."): rates for n, rates in ours.items() if n.startswith("encoder.")}
    # What stands behind the last block is the classifier's layer in timm, and the encoder's last one in segkit.
    behind = {"conv_head.weight", "bn2.weight", "bn2.bias", "head.norm.weight", "head.norm.bias"}
    assert len(compared) > 50
    assert {n: r for n, r in compared.items() if n not in behind} == {n: theirs[n] for n in compared if n not in behind}
    assert {rate for n, rate in ours.items() if n.startswith("head")} == {(1.0, 0.05), (1.0, 0.0)}


def test_a_network_of_ones_own_has_no_head_that_learns_faster() -> None:
    network = around(build_module(nn.Conv2d, {"in_channels": 3, "out_channels": 2, "kernel_size": 1}))
    for allowed in (1, OptimConfig.head_lr_mult):
        (group,) = parameter_groups(network, 0.5, OptimConfig(head_lr_mult=allowed))
        assert group["lr"] == 0.5
    with pytest.raises(InputError, match=r"head_lr_mult=4 has no effect: .*; leave it out, or set it to 1"):
        parameter_groups(network, 0.5, OptimConfig(head_lr_mult=4))


def test_layer_decay_of_segkits_own_encoder_by_hand() -> None:
    network = FCN("resnest14_tiny", 5)  # four stages of one block: the stem is layer 0, the heads are layer 5
    groups = parameter_groups(network, 1.0, OptimConfig(layer_decay=0.5, head_lr_mult=3))
    assert [(g["name"], g["lr"]) for g in groups] == [
        ("encoder.stem", 1 / 32),
        ("encoder.block1", 1 / 16),
        ("encoder.block2", 1 / 8),
        ("encoder.block3", 1 / 4),
        ("encoder.block4", 1 / 2),
        ("head", 3),
    ]
    rates = learning_rates(network, groups)
    assert rates["encoder.conv1.0.weight"][0] == rates["encoder.bn1.bias"][0] == 1 / 32
    assert rates["encoder.layer3.0.conv1.weight"][0] == rates["encoder.layer3.0.downsample.1.weight"][0] == 1 / 4
    assert len(rates) == len(list(network.parameters()))


@pytest.mark.parametrize("names", ["{}.{}.x", "model.{}.blocks.{}.x", "model.{}.denselayer{}.x", "_orig_mod.{}.{}.x"])
@pytest.mark.parametrize("stage", ["layer{}", "stages_{}", "stages.{}", "blocks.{}", "s{}", "features_denseblock{}"])
def test_names_of_blocks(names: str, stage: str) -> None:
    """Two stages of two blocks, whatever the toolkit calls them."""
    network = named(
        "encoder.stem.0.weight",
        *[f"encoder.{names.format(stage.format(s), b)}" for s in (1, 2) for b in (0, 1)],
        "encoder.norm.weight",
        "head.weight",
    )
    groups = parameter_groups(network, 1.0, OptimConfig(layer_decay=0.5))
    assert [g["lr"] for g in groups] == [1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 10]
    assert [len(g["params"]) for g in groups] == [1, 1, 1, 1, 2, 1]


def test_what_a_stage_has_around_its_blocks_belongs_to_the_nearest() -> None:
    names = [
        "stages_0.0.x",
        "stages_0.norm.x",
        "stages_1.downsample.1.x",
        "stages_1.0.x",
        "stages_1.1.x",
        "stages_1.n.x",
    ]
    network = named("encoder.stem.x", *[f"encoder.{name}" for name in names])
    rates = learning_rates(network, parameter_groups(network, 1.0, OptimConfig(layer_decay=0.5)))
    assert [rate for rate, _ in rates.values()] == [1 / 16, 1 / 8, 1 / 8, 1 / 4, 1 / 4, 1 / 2, 1 / 2]


@pytest.mark.slow
@pytest.mark.parametrize("wrapper", ["_fsdp_wrapped_module", "_orig_mod", "_checkpoint_wrapped_module"])
def test_wrappers_change_nothing(wrapper: str) -> None:
    config = OptimConfig(layer_decay=0.9, decay_norm_bias=False)
    plain, wrapped = TimmNetwork("resnet18"), TimmNetwork("resnet18", wrapper)
    groups, same = parameter_groups(plain, 0.1, config), parameter_groups(wrapped, 0.1, config)
    assert [(g["name"], g["lr"], len(g["params"])) for g in groups] == [
        (g["name"], g["lr"], len(g["params"])) for g in same
    ]


def test_flat_shards_keep_their_weight_decay() -> None:
    """FSDP makes one dimension of every parameter."""
    network = FCN("resnest14_tiny", 5)
    config = OptimConfig(decay_norm_bias=False)
    before = learning_rates(network, parameter_groups(network, 0.1, config))
    for parameter in network.parameters():
        parameter.data = parameter.data.flatten()
    assert learning_rates(network, parameter_groups(network, 0.1, config)) == before


def test_norms_and_biases_without_weight_decay() -> None:
    network = DeepLabV3("resnest14_tiny", 5)
    groups = parameter_groups(network, 0.1, OptimConfig(decay_norm_bias=False))
    assert [(g["name"], g["weight_decay"]) for g in groups] == [
        ("encoder", 1e-4),
        ("encoder.no_decay", 0),
        ("head", 1e-4),
        ("head.no_decay", 0),
    ]
    for name, (_, decay) in learning_rates(network, groups).items():
        assert (decay == 0) == (network.get_parameter(name).ndim == 1), name


def test_frozen_parameters_are_left_out() -> None:
    network = FCN("resnest14_tiny", 5)
    network.encoder.requires_grad_(False)
    (head,) = parameter_groups(network, 0.1, OptimConfig())
    assert head["name"] == "head"
    network.encoder.layer4.requires_grad_(True)  # scales do not depend on what is frozen
    groups = parameter_groups(network, 1.0, OptimConfig(layer_decay=0.5))
    assert [(g["name"], g["lr"]) for g in groups] == [("encoder.block4", 0.5), ("head", 10)]
    network.requires_grad_(False)
    with pytest.raises(InputError, match=r"all \d+ parameter tensors are frozen"):
        parameter_groups(network, 0.1, OptimConfig())


def test_an_encoder_without_blocks_has_no_layers() -> None:
    with pytest.raises(InputError, match=r"layer_decay=0.5: no blocks .*encoder.features.0.weight"):
        parameter_groups(named("encoder.features.0.weight", "head.x"), 1.0, OptimConfig(layer_decay=0.5))


def test_table() -> None:
    network = nn.Module()
    network.encoder, network.head = nn.Linear(1000, 2), nn.Linear(3, 4)
    config = OptimConfig(weight_decay=0.05, decay_norm_bias=False)
    assert groups_table(parameter_groups(network, 1e-4, config), network).splitlines() == [
        "group             tensors  parameters      lr  weight decay",
        "encoder                 1       2,000  0.0001          0.05",
        "encoder.no_decay        1           2  0.0001             0",
        "head                    1          12   0.001          0.05",
        "head.no_decay           1           4   0.001             0",
        "total                   4       2,018",
    ]
    network.encoder.requires_grad_(False)
    assert groups_table(parameter_groups(network, 1e-4, config), network).splitlines()[-2:] == [
        "total                2          16",
        "frozen               2       2,002",
    ]


def test_poly_is_the_authors_formula() -> None:
    poly = factor(OptimConfig(), 100)
    assert [poly(t) for t in (0, 50, 99, 100, 200)] == pytest.approx([1, 0.5**0.9, 0.01**0.9, 0, 0])


def test_poly_with_min_lr_is_mmcvs_formula() -> None:
    """PolyLrUpdaterHook: `(base_lr - min_lr) * (1 - progress / max_progress) ** power + min_lr`, for every group."""
    config, total, lrs = OptimConfig(min_lr=1e-4), 50, (0.01, 0.1)
    optimizer = torch.optim.SGD(two_groups(*lrs))
    ours = schedule(LambdaLR(optimizer, lr_factors(config, total, optimizer.param_groups)), total + 3)
    for t, rates in enumerate(ours):
        share = (1 - min(t, total) / total) ** 0.9
        assert rates == pytest.approx([(lr - 1e-4) * share + 1e-4 for lr in lrs], rel=1e-9)
    assert ours[-1] == pytest.approx([1e-4, 1e-4])


def test_cosine_with_min_lr_is_torchs() -> None:
    config, lrs = OptimConfig(schedule="cosine", min_lr=3e-3), (0.01, 0.1)
    ours, theirs = torch.optim.SGD(two_groups(*lrs)), torch.optim.SGD(two_groups(*lrs))
    rates = schedule(LambdaLR(ours, lr_factors(config, 40, ours.param_groups)), 41)
    for ours_t, theirs_t in zip(rates, schedule(CosineAnnealingLR(theirs, 40, eta_min=3e-3), 41), strict=True):
        assert ours_t == pytest.approx(theirs_t)


@pytest.mark.parametrize("milestones", [(4, 9), (1,), (3, 3, 30)])
def test_step_is_torchs(milestones: tuple[int, ...]) -> None:
    config = OptimConfig(schedule="step", milestones=milestones, gamma=0.3)
    ours, theirs = torch.optim.SGD(two_groups(0.01, 0.1)), torch.optim.SGD(two_groups(0.01, 0.1))
    rates = schedule(LambdaLR(ours, lr_factors(config, 12, ours.param_groups)), 12)
    for ours_t, theirs_t in zip(rates, schedule(MultiStepLR(theirs, list(milestones), 0.3), 12), strict=True):
        assert ours_t == pytest.approx(theirs_t)


def test_constant_and_warmup() -> None:
    assert factor(OptimConfig(schedule="constant"), 100)(99) == 1
    warm = factor(OptimConfig(warmup_steps=4), 104)
    assert [warm(t) for t in (0, 3, 4, 54)] == pytest.approx([0.2, 0.8, 1.0, 0.5**0.9])
    step = factor(OptimConfig(warmup_steps=4, schedule="step", milestones=(10,)), 104)
    assert [step(t) for t in (3, 13, 14)] == pytest.approx(
        [0.8, 1, 0.1]
    )  # milestones count from the end of the warm-up


@pytest.mark.parametrize(
    "wrong",
    [
        {"lr": 0},
        {"lr": math.nan},
        {"weight_decay": -1},
        {"weight_decay": math.nan},
        {"warmup_steps": -1},
        {"min_lr": -1e-4},
        {"gamma": 0},
        {"layer_decay": 0},
        {"layer_decay": 1.1},
        {"milestones": (0, 5)},
        {"name": "adam"},
        {"schedule": "linear"},
    ],
)
def test_wrong_numbers(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        OptimConfig(**wrong)


def test_step_needs_milestones_and_takes_a_list() -> None:
    with pytest.raises(InputError, match="milestones"):
        OptimConfig(schedule="step")
    assert OptimConfig(schedule="step", milestones=[5]).milestones == (5,)  # type: ignore[arg-type]


def test_min_lr_above_a_groups_learning_rate() -> None:
    groups = two_groups(0.01, 0.001)
    with pytest.raises(InputError, match=r"min_lr=0\.002 is above the learning rate 0\.001 of the group 0\.001"):
        lr_factors(OptimConfig(min_lr=2e-3), 10, groups)


def named(*names: str) -> nn.Module:
    """A network with parameters of these names."""
    root = nn.Module()
    for name in names:
        module = root
        *path, last = name.split(".")
        for part in path:
            if not hasattr(module, part):
                module.add_module(part, nn.Module())
            module = getattr(module, part)
        module.register_parameter(last, nn.Parameter(torch.ones(2, 2)))
    return root


@pytest.mark.parametrize(
    "options, words",
    [
        ({"name": "adamw", "momentum": 0.8}, "momentum=0.8 has no effect without name sgd"),
        ({"schedule": "cosine", "power": 2.0}, "power=2.0 has no effect without schedule poly"),
        ({"schedule": "constant", "min_lr": 1e-4}, "min_lr=0.0001 has no effect without schedule poly or cosine"),
        ({"milestones": (5,)}, r"milestones=\(5,\) has no effect without schedule step"),
        ({"gamma": 0.3}, "gamma=0.3 has no effect without schedule step"),
    ],
)
def test_an_option_that_changes_nothing_is_refused(options: dict, words: str) -> None:
    with pytest.raises(InputError, match=rf"^model\.optim\.{words}; leave it out, or at its default") as error:
        OptimConfig(**options)
    assert "\n" not in str(error.value)


def test_options_at_their_defaults_may_be_written_out() -> None:
    """As a run's config.yaml does."""
    OptimConfig(name="adamw", momentum=0.9, schedule="constant", power=0.9, min_lr=0.0, milestones=(), gamma=0.1)


@pytest.mark.slow
def test_the_authors_exempt_by_name_on_imagenet() -> None:
    """The groups of scripts/torch/train.py, of the authors' own network; norms that no "bn" names are decayed."""
    theirs = authors.resnest50(pretrained=False)
    network = Classifier("resnest50")
    exempt = {n for n, _ in theirs.named_parameters() if "bn" in n or "bias" in n}
    groups = parameter_groups(network, 0.1, OptimConfig(decay_norm_bias="not_by_name"))
    found = {name.removeprefix("encoder."): decay for name, (_, decay) in learning_rates(network, groups).items()}
    assert found == {n: 0 if n in exempt else 1e-4 for n, _ in theirs.named_parameters()}
    norms = {n for n, m in network.encoder.named_modules() if isinstance(m, nn.BatchNorm2d)}
    decayed = {n for n in norms if found[f"{n}.weight"]}
    assert decayed == {"conv1.1", "conv1.4", *(f"layer{i}.0.downsample.2" for i in (1, 2, 3, 4))}
    others = learning_rates(network, parameter_groups(network, 0.1, OptimConfig(decay_norm_bias=False)))
    assert all(others[f"encoder.{n}.weight"][1] == 0 for n in norms)
