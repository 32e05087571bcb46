"""Norms on 1x1 maps, norms and stages that do not train: against PyTorch's own errors and batch norm's formula."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from segkit.errors import InputError
from segkit.models.norms import (
    BATCH_NORMS,
    FrozenBatchNorm2d,
    freeze_stages,
    needs_more_than_one_value,
    norms_to_eval,
    pooled_norms,
    set_pooled_norm,
    without_absent_statistics,
)
from segkit.models.segmentation import FCN, DeepLabV3, MMSegDeepLabV3, MMSegFCN, SegmentationModel, build_network
from segkit.models.weights import load_encoder_weights

HEADED = (FCN, DeepLabV3, MMSegFCN, MMSegDeepLabV3)
TINY = "resnest14_tiny"
SPLIT_ATTENTION = [f"encoder.layer{stage}.0.conv2.bn1" for stage in (1, 2, 3, 4)]


def train_step(network: SegmentationModel, batch: int = 1) -> dict[str, Tensor]:
    outputs: dict[str, Tensor] = network.train()(torch.randn(batch, 3, 64, 64))
    sum(output.square().mean() for output in outputs.values()).backward()
    return outputs


@pytest.mark.slow
@pytest.mark.parametrize(
    "network, names",
    [
        (FCN(TINY, 3), SPLIT_ATTENTION),
        (DeepLabV3(TINY, 3, output_stride=32), [*SPLIT_ATTENTION, "head.aspp.convs.4.2"]),
        (MMSegDeepLabV3(TINY, 3), [*SPLIT_ATTENTION, "head.pool.2"]),
        (FCN(TINY, 3, encoder_args={"radix": 0}), []),
        (DeepLabV3("resnet18", 3), ["head.aspp.convs.4.2"]),
    ],
)
def test_the_norms_on_1x1_maps_are_found(network: SegmentationModel, names: list[str]) -> None:
    before = {name: value.clone() for name, value in network.state_dict().items()}
    network.encoder.eval()
    modes = [m.training for m in network.modules()]
    assert [name for name, _ in pooled_norms(network)] == names
    assert [m.training for m in network.modules()] == modes
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    network.train()
    assert needs_more_than_one_value(network) == names
    if names:
        with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
            train_step(network)
    else:
        train_step(network)


def test_the_norms_of_selective_kernels_are_found() -> None:
    """SKNet, the paper's comparator, has one in each block."""
    names = needs_more_than_one_value(FCN("skresnet18", 3))
    assert len(names) == 8 and all(name.endswith(".attn.bn") for name in names)


@pytest.mark.slow
@pytest.mark.parametrize("network_class", HEADED)
@pytest.mark.parametrize("kind", ["frozen", "group"])
def test_one_image_trains(network_class: type[SegmentationModel], kind: str) -> None:
    network = network_class(TINY, 3, pooled_norm=kind)
    norms = pooled_norms(network)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    assert len(norms) >= 4 and needs_more_than_one_value(network) == []
    train_step(network)
    for name, norm in norms:
        assert norm.weight.grad is not None and norm.weight.grad.any(), name
        for buffer, _ in norm.named_buffers():
            assert torch.equal(network.state_dict()[f"{name}.{buffer}"], before[f"{name}.{buffer}"])
    again = build_network(network.config)
    again.load_state_dict(network.state_dict())
    x = torch.randn(1, 3, 33, 33)
    assert torch.equal(network.eval()(x)["out"], again.eval()(x)["out"])


def test_a_frozen_norm_is_a_batch_norm_in_eval_mode() -> None:
    frozen, batch = FrozenBatchNorm2d(5), nn.BatchNorm2d(5)
    nn.init.normal_(frozen.running_mean), nn.init.uniform_(frozen.running_var, 0.5, 2.0), nn.init.normal_(frozen.weight)
    batch.load_state_dict(frozen.state_dict())
    x = torch.randn(2, 5, 3, 3)
    for training in (True, False):
        assert torch.equal(frozen.train(training)(x), batch.eval()(x))
    assert torch.equal(frozen.running_mean, batch.running_mean) and frozen.num_batches_tracked == 0


def test_frozen_keeps_names_and_predictions_of_a_checkpoint() -> None:
    network, frozen = DeepLabV3(TINY, 3), DeepLabV3(TINY, 3, pooled_norm="frozen")
    train_step(network, batch=2)
    frozen.load_state_dict(network.state_dict())
    x = torch.randn(1, 3, 40, 40)
    assert torch.equal(network.eval()(x)["out"], frozen.eval()(x)["out"])


@pytest.mark.slow
def test_groups_have_sixteen_channels_at_least() -> None:
    norms = [n for _, n in pooled_norms(DeepLabV3("resnest26", 3, pooled_norm="group"))]
    assert {(n.num_channels, n.num_groups) for n in norms} == {(32, 2), (64, 4), (128, 8), (256, 16)}
    prime = FCN(TINY, 3, encoder_args={"planes": (70, 24, 48, 96)}, pooled_norm="group")
    assert [n.num_groups for _, n in pooled_norms(prime)] == [1, 2, 2, 3]  # 35 channels: no smaller group


@pytest.mark.slow
def test_set_and_set_back() -> None:
    network = DeepLabV3(TINY, 3)
    train_step(network, batch=2)
    before = copy.deepcopy(network.state_dict())
    parameters = set(network.parameters())
    for kind in ("frozen", "batch", "group", "batch"):
        set_pooled_norm(network, kind)
        assert network.config["init_args"]["pooled_norm"] == kind
        assert set(network.parameters()) == parameters  # an optimizer keeps them
        if kind != "group":
            assert network.state_dict().keys() == before.keys()
        if kind == "frozen":
            assert all(torch.equal(network.state_dict()[name], value) for name, value in before.items())
    assert not network.get_submodule(SPLIT_ATTENTION[0]).running_mean.any()  # a group norm had none to give back
    with pytest.raises(InputError, match="pooled_norm='layer' is not one of batch, frozen, group"):
        set_pooled_norm(network, "layer")


@pytest.mark.slow
def test_config_has_it_and_older_configs_lack_it() -> None:
    assert list(DeepLabV3(TINY, 3, pooled_norm="group").config["init_args"])[-1] == "pooled_norm"
    for cls in HEADED:
        config = cls(TINY, 3).config
        older = {name: value for name, value in config["init_args"].items() if name != "pooled_norm"}
        assert build_network({**config, "init_args": older}).config == config
    with torch.device("meta"):
        assert len(pooled_norms(DeepLabV3(TINY, 3, pooled_norm="group"))) == 5


def test_statistics_without_a_place_are_left_out() -> None:
    state = FCN(TINY, 3).state_dict()
    network = FCN(TINY, 3, pooled_norm="group")
    network.load_state_dict(without_absent_statistics(network, state))
    assert without_absent_statistics(FCN(TINY, 3), state) == state


def test_norms_to_eval() -> None:
    network = DeepLabV3(TINY, 3).train()
    norms_to_eval(network.encoder)
    assert needs_more_than_one_value(network) == ["head.aspp.convs.4.2"]
    norms_to_eval(network)
    before = copy.deepcopy(network.state_dict())
    network(torch.randn(1, 3, 64, 64))["out"].sum().backward()
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert network.training and network.encoder.layer1[0].bn1.weight.grad is not None


@pytest.mark.slow
@pytest.mark.parametrize("encoder, prefix", [(TINY, "encoder."), ("resnet18", "encoder.encoder.model.")])
@pytest.mark.parametrize("stages", [-1, 0, 2, 4])
def test_frozen_stages_do_not_change(encoder: str, prefix: str, stages: int) -> None:
    network = FCN(encoder, 3)
    freeze_stages(network, stages)
    before = copy.deepcopy(network.state_dict())
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=0.1)
    network.train()
    freeze_stages(network, stages)
    network(torch.randn(2, 3, 64, 64))["out"].square().mean().backward()
    optimizer.step()
    frozen = ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4")[: 2 + stages if stages >= 0 else 0]
    for name, value in network.state_dict().items():
        if name.startswith("aux_head."):
            continue
        is_frozen = name.startswith(tuple(f"{prefix}{part}." for part in frozen))
        if is_frozen or name.endswith(".num_batches_tracked"):
            assert torch.equal(before[name], value) == is_frozen, name
    for name, parameter in network.named_parameters():
        assert parameter.requires_grad != name.startswith(tuple(f"{prefix}{part}." for part in frozen)), name


def test_what_cannot_be_frozen() -> None:
    with pytest.raises(InputError, match="frozen_stages=5 is not -1"):
        freeze_stages(FCN(TINY, 3), 5)
    with pytest.raises(InputError, match="the encoder's stages are not known"):
        freeze_stages(FCN("convnext_atto", 3, output_stride=32), 1)


def test_all_kinds_of_batch_norms_are_meant() -> None:
    assert issubclass(FrozenBatchNorm2d, BATCH_NORMS) and issubclass(nn.SyncBatchNorm, BATCH_NORMS)


def test_an_encoders_file_fits_where_pooled_norms_are_group_norms(tmp_path: Path) -> None:
    """Its running statistics have no place there; all else is taken."""
    torch.manual_seed(1)
    source = FCN(TINY, 3)
    torch.save(source.encoder.state_dict(), tmp_path / "encoder.pth")
    network = FCN(TINY, 3, pooled_norm="group")
    load_encoder_weights(network.encoder, tmp_path / "encoder.pth")
    own, theirs = network.encoder.state_dict(), source.encoder.state_dict()
    assert len(own) == len(theirs) - 3 * len(SPLIT_ATTENTION)
    assert all(torch.equal(own[name], theirs[name]) for name in own)
