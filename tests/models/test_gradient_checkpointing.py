"""Recomputed activations: gradients, statistics and masks are those of a network that keeps them, to the bit."""

import copy
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from segkit.errors import InputError
from segkit.models.encoders import build_encoder
from segkit.models.gradient_checkpointing import checkpoint_stages
from segkit.models.norms import BATCH_NORMS, freeze_stages, norms_to_eval
from segkit.models.segmentation import FCN, DeepLabV3, SegmentationModel
from segkit.ops.sync_batch_norm import to_sync_batch_norm

TINY = "resnest14_tiny"
X = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


class Counted(nn.BatchNorm2d):
    """A subclass that a batch norm may have."""


def steps(network: SegmentationModel, autocast: bool = False) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """Two training steps with one seed: last output, gradients, parameters and buffers."""
    torch.manual_seed(3)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    for _ in range(2):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            outputs = network(X)
            loss = outputs["out"].float().square().mean() + outputs["aux"].float().square().mean()
        loss.backward()
        optimizer.step()
    gradients = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    return outputs["out"].detach(), gradients, network.state_dict()


def require_equal(network: SegmentationModel, stages: Sequence[int], autocast: bool = False) -> None:
    checkpointed = copy.deepcopy(network)
    checkpoint_stages(checkpointed.encoder, stages)
    checkpointed = copy.deepcopy(checkpointed)
    kept = count_kept(network), count_kept(checkpointed)
    assert kept[1] < kept[0]
    ours, theirs = steps(checkpointed, autocast), steps(network, autocast)
    assert torch.equal(ours[0], theirs[0])
    for mine, other in zip(ours[1:], theirs[1:], strict=True):
        assert mine.keys() == other.keys() and all(torch.equal(mine[name], other[name]) for name in other)


def count_kept(network: SegmentationModel) -> int:
    """Tensors that autograd keeps for one backward pass; the network is not changed."""
    kept: list[int] = []
    network = copy.deepcopy(network)

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network(X)
    return len(kept)


@pytest.mark.slow
@pytest.mark.parametrize("stages", [(3,), (3, 4), (1, 2, 3, 4)])
@pytest.mark.parametrize("autocast", [False, True])
def test_equal_to_the_bit(stages: tuple[int, ...], autocast: bool) -> None:
    require_equal(DeepLabV3(TINY, 3, encoder_args={"layers": (1, 2, 2, 1)}).train(), stages, autocast)


def test_dropblock_draws_its_masks_again() -> None:
    require_equal(DeepLabV3(TINY, 3, encoder_args={"dropblock_prob": 0.3}).train(), (3, 4))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["torch_sync", "our_sync", "subclass", "cumulative"])
def test_every_kind_of_batch_norm_counts_once(kind: str) -> None:
    network = FCN(TINY, 3).train()
    for name, norm in list(network.named_modules()):
        if not isinstance(norm, nn.BatchNorm2d):
            continue
        if kind == "cumulative":
            norm.momentum = None
        elif kind == "subclass":
            network.set_submodule(name, Counted(norm.num_features))
        elif kind == "our_sync":
            network.set_submodule(name, to_sync_batch_norm(norm))
    if kind == "torch_sync":
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    require_equal(network, (1, 2, 3, 4))
    norms = [m for m in network.modules() if isinstance(m, BATCH_NORMS)]
    assert all(norm.num_batches_tracked == 2 for norm in norms)


def test_norms_in_eval_mode_and_frozen_norms() -> None:
    network = FCN(TINY, 3, pooled_norm="frozen").train()
    norms_to_eval(network.encoder)
    require_equal(network, (2, 3))


def test_beside_frozen_stages() -> None:
    network = FCN(TINY, 3).train()
    checkpoint_stages(network.encoder, (1, 2, 3, 4))
    freeze_stages(network, 2)
    before = copy.deepcopy(network.encoder.layer2.state_dict())
    _, gradients, _ = steps(network)
    assert all(torch.equal(before[n], v) for n, v in network.encoder.layer2.state_dict().items())
    assert {name.split(".")[1] for name in gradients if name.startswith("encoder.")} == {"layer3", "layer4"}


@pytest.mark.slow
def test_timms_resnets_stage_by_stage() -> None:
    require_equal(FCN("resnet18", 3).train(), (2, 3))


def test_timms_own_way_where_no_batch_norm_counts() -> None:
    encoder = build_encoder("convnext_atto", output_stride=32)
    with pytest.raises(InputError, match=r"\[3\]: this encoder can only checkpoint all: \[1, 2, 3, 4\]"):
        checkpoint_stages(encoder, [3])
    checkpoint_stages(encoder, [1, 2, 3, 4])
    assert encoder.encoder.model.grad_checkpointing
    checkpoint_stages(encoder, [])
    assert not encoder.encoder.model.grad_checkpointing


def test_refused() -> None:
    with pytest.raises(InputError, match="0 is no stage; allowed are 1, 2, 3 and 4"):
        checkpoint_stages(build_encoder(TINY), [0, 1])
    with pytest.raises(InputError, match="cannot recompute its activations"):
        checkpoint_stages(build_encoder("efficientnet_b0", 16), [1, 2, 3, 4])


def test_nothing_else_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names, config and modes stay; without gradients or in eval mode nothing is recomputed; it can be undone."""
    network = FCN(TINY, 3).train()
    names, config, text = list(network.state_dict()), copy.deepcopy(network.config), str(network)
    checkpoint_stages(network.encoder, (1, 3))
    assert list(network.state_dict()) == names and network.config == config and network.encoder.layer3.training
    with monkeypatch.context() as patch:
        patch.setattr("segkit.models.gradient_checkpointing.checkpoint", None)
        network.eval()(X)["out"].sum().backward()
        with torch.no_grad():
            network.train()(X)
        with pytest.raises(TypeError):
            network(X)
    assert str(network) != text
    checkpoint_stages(network.encoder, ())
    assert str(network) == text
