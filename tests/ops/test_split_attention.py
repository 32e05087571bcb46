"""Split attention without products as large as the splits, against the same written with PyTorch's operations."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from segkit.benchmark.cost import flops
from segkit.errors import InputError
from segkit.models.resnest import SplitAttention
from segkit.ops import split_attention as module
from segkit.ops.dispatch import plain_ops
from segkit.ops.split_attention import split_attention, split_pool

SHAPES = list(itertools.product([1, 2, 3, 4], [1, 2, 3]))  # radix, cardinality
FORMATS = [torch.contiguous_format, torch.channels_last]
HALF = [torch.float16, torch.bfloat16]


@pytest.fixture(params=[2**20, 500], ids=["one strip", "many strips"])
def strips(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STRIP_BYTES", request.param)


in_strips = pytest.mark.usefixtures("strips")


def example(radix: int, dtype: torch.dtype = torch.float32, channels: int = 12) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    splits = torch.randn(2, radix * channels, 7, 5, generator=generator, dtype=torch.float64)
    attention = 2 * torch.randn(2, radix * channels, 1, 1, generator=generator, dtype=torch.float64)
    return splits.to(dtype).requires_grad_(), attention.to(dtype).requires_grad_()


def by_definition(splits: Tensor, attention: Tensor, radix: int, cardinality: int) -> tuple[Tensor, Tensor]:
    """The formula of the paper, one channel of one group at a time."""
    channels = splits.shape[1] // radix
    size = channels // cardinality
    attended = []
    for group, place in itertools.product(range(cardinality), range(size)):
        values = torch.stack([attention[:, (group * radix + r) * size + place] for r in range(radix)])  # (R, B, 1, 1)
        weights = values.sigmoid() if radix == 1 else values.exp() / values.exp().sum(0)
        parts = torch.stack([splits[:, r * channels + group * size + place] for r in range(radix)])  # (R, B, h, w)
        attended.append((weights * parts).sum(0))
    parts = splits.unflatten(1, (radix, channels))
    return torch.stack(attended, 1), parts.sum(1).mean((2, 3), keepdim=True)


def both(splits: Tensor, attention: Tensor, radix: int, cardinality: int) -> tuple[Tensor, Tensor]:
    return split_attention(splits, attention, radix, cardinality), split_pool(splits, radix)


def gradients(outputs: tuple[Tensor, ...], inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    given = [torch.randn(o.shape, generator=generator, dtype=torch.float64).to(o.dtype) for o in outputs]
    return torch.autograd.grad(outputs, inputs, given)


@in_strips
@pytest.mark.parametrize("radix, cardinality", SHAPES)
def test_values_and_gradients_are_those_of_the_definition(radix: int, cardinality: int) -> None:
    inputs = example(radix, torch.float64)
    wanted = by_definition(*inputs, radix, cardinality)
    found = both(*inputs, radix, cardinality)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(gradients(found, inputs), gradients(wanted, inputs))
    with plain_ops():
        torch.testing.assert_close(both(*inputs, radix, cardinality), wanted)


@in_strips
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("radix, cardinality", SHAPES)
def test_float32_equals_plain_pytorch_bit_for_bit(
    radix: int, cardinality: int, memory_format: torch.memory_format
) -> None:
    splits, attention = example(radix)
    splits = splits.detach().contiguous(memory_format=memory_format).requires_grad_()
    found = both(splits, attention, radix, cardinality)
    with plain_ops():
        wanted = both(splits, attention, radix, cardinality)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    assert found[0].is_contiguous(memory_format=memory_format)
    by_splits, by_attention = gradients(found, (splits, attention))
    assert by_splits.is_contiguous(memory_format=memory_format)
    torch.testing.assert_close((by_splits, by_attention), gradients(wanted, (splits, attention)))


@in_strips
@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("radix", [1, 2, 4])
def test_half_precision_is_rounded_once(radix: int, dtype: torch.dtype) -> None:
    inputs = example(radix, dtype)
    raised = tuple(t.detach().float().requires_grad_() for t in inputs)
    found, wanted = both(*inputs, radix, 2), both(*raised, radix, 2)
    for a, b in zip(found, wanted, strict=True):
        if radix == 2 and dtype == torch.bfloat16:  # its weights are rounded, too: by half of the last of eight bits
            torch.testing.assert_close(a, b.to(dtype), rtol=2**-7, atol=2**-8)
        else:
            assert torch.equal(a, b.to(dtype))
    (attended,), (exact,) = found[:1], wanted[:1]
    given = torch.ones_like(attended)
    for own, reference in zip(
        torch.autograd.grad(attended, inputs, given), torch.autograd.grad(exact, raised, given.float()), strict=True
    ):
        assert own.dtype == dtype and torch.equal(own, reference.to(dtype))


@in_strips
@pytest.mark.parametrize(
    "of_splits, of_attention",
    [
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.bfloat16),
        (torch.float16, torch.bfloat16),
        (torch.float64, torch.float32),
        (torch.bfloat16, torch.float64),
    ],
)
def test_mixed_types_are_promoted(of_splits: torch.dtype, of_attention: torch.dtype) -> None:
    splits, attention = (
        t.detach().to(dtype).requires_grad_() for t, dtype in zip(example(2), (of_splits, of_attention), strict=True)
    )
    found = both(splits, attention, 2, 3)
    with plain_ops():
        wanted = both(splits, attention, 2, 3)
    assert [t.dtype for t in found] == [t.dtype for t in wanted]
    torch.testing.assert_close(found, wanted, rtol=2e-2, atol=2e-2)
    own, reference = (gradients(outputs, (splits, attention)) for outputs in (found, wanted))
    assert [t.dtype for t in own] == [of_splits, of_attention]
    torch.testing.assert_close(own, reference, rtol=2e-2, atol=1e-1)


@pytest.mark.slow
@pytest.mark.parametrize("radix", [1, 2, 4])
@pytest.mark.parametrize("cardinality", [1, 2])
def test_gradcheck(radix: int, cardinality: int) -> None:
    splits, attention = example(radix, torch.float64, channels=4)
    splits = splits.detach()[:, :, :3, :2].requires_grad_()  # not dense
    assert torch.autograd.gradcheck(lambda *inputs: both(*inputs, radix, cardinality), (splits, attention))


@in_strips
def test_views_and_odd_layouts() -> None:
    wide = torch.randn(3, 24, 8, 12)
    attention = torch.randn(3, 1, 1, 24).permute(0, 3, 1, 2)
    for splits in (wide[:, :, ::2, 1:], wide.transpose(2, 3), wide[..., :1, :1], wide[:, ::2].repeat(1, 2, 1, 1)):
        splits = splits.detach().requires_grad_()
        found = both(splits, attention, 3, 2)
        torch.testing.assert_close(found, by_definition(splits, attention, 3, 2))
        (own,) = torch.autograd.grad(found[0].sum(), splits)  # a gradient of stride 0
        (reference,) = torch.autograd.grad(by_definition(splits, attention, 3, 2)[0].sum(), splits)
        torch.testing.assert_close(own, reference)
    none = both(wide[:0], attention[:0], 3, 2)
    assert [t.shape for t in none] == [(0, 8, 8, 12), (0, 8, 1, 1)]


@pytest.mark.slow
def test_a_second_derivative_is_refused_and_a_forward_one_taken_plainly() -> None:
    splits, attention = example(2, torch.float64)
    (gradient,) = torch.autograd.grad(split_attention(splits, attention, 2).sum(), splits, create_graph=True)
    with pytest.raises(RuntimeError, match="split_attention_backward"):
        gradient.sum().backward()
    given = torch.ones_like(splits), torch.ones_like(attention)
    _, found = torch.func.jvp(lambda *inputs: both(*inputs, 2, 3), (splits, attention), given)
    _, wanted = torch.func.jvp(lambda *inputs: by_definition(*inputs, 2, 3), (splits, attention), given)
    torch.testing.assert_close(found, wanted)
    output = split_attention(splits, attention, 2)
    with forward_ad.dual_level(), pytest.raises(InputError, match="forward-mode"):
        output.backward(forward_ad.make_dual(output.detach(), output.detach()))


@pytest.mark.parametrize("wrong", [(0, 1), (5, 1), (2, 5), (2, 0), (-2, 1)])
def test_wrong_shapes(wrong: tuple[int, int]) -> None:
    splits, attention = example(2)
    with pytest.raises(InputError, match=r"radix|cardinality"):
        split_attention(splits, attention, *wrong)
    with pytest.raises(InputError, match="attention has shape"):
        split_attention(splits, attention[:, :12], 2)
    with pytest.raises(InputError, match="radix=5"):
        split_pool(splits, 5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("radix", [1, 3])
def test_pool_of_cuda(radix: int, dtype: torch.dtype) -> None:
    splits, _ = example(radix, dtype)
    for some in (splits, splits.contiguous(memory_format=torch.channels_last), splits[:0], splits[:, :, 1:, ::2]):
        found, wanted = module._pool_at_once(some, radix), split_pool(some, radix)
        assert found.dtype == dtype and found.stride() == wanted.stride()
        torch.testing.assert_close(found, wanted)


@pytest.mark.slow
def test_operators_keep_their_contract() -> None:
    splits, attention = example(2)
    torch.library.opcheck(torch.ops.segkit.split_attention.default, (splits, attention, 2, 3))
    torch.library.opcheck(torch.ops.segkit.split_pool.default, (splits, 2))
    given = (torch.randn(2, 12, 7, 5), splits.detach(), attention.detach(), 2, 3)
    torch.library.opcheck(torch.ops.segkit.split_attention_backward.default, given)
    last = splits.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    torch.library.opcheck(torch.ops.segkit.split_attention.default, (last, attention, 2, 1))


class Block(nn.Module):
    """As in the network: split attention is between convolutions, and its input comes out of a ReLU in place."""

    def __init__(self, radix: int = 2, cardinality: int = 2) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.attention = nn.Conv2d(3, 8, 3), SplitAttention(8, radix, cardinality)
        self.last = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.last(self.attention(self.first(x)))
        return logits


X = torch.randn(3, 3, 11, 9, generator=torch.Generator().manual_seed(2))


@pytest.mark.slow
def test_compiled_whole() -> None:
    torch.compiler.reset()
    block = Block()
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    wanted = torch.autograd.grad(block(X).square().sum(), list(block.parameters()))
    found = torch.autograd.grad(compiled(X).square().sum(), list(block.parameters()))
    torch.testing.assert_close(found, wanted)
    with plain_ops():  # compiled anew
        torch.testing.assert_close(compiled(X), block(X))


@pytest.mark.slow
def test_exported_and_traced() -> None:
    block = Block().eval()
    sizes = {0: torch.export.Dim("batch"), 2: torch.export.Dim("height", min=4)}
    other = torch.randn(2, 3, 15, 9)
    for plain in (False, True):
        with plain_ops() if plain else torch.enable_grad():
            exported = torch.export.export(block, (X,), dynamic_shapes=(sizes,))
        names = {str(node.target) for node in exported.graph.nodes}
        assert any(name.startswith("segkit") for name in names) != plain
        torch.testing.assert_close(exported.module()(other), block(other))
    with pytest.warns(torch.jit.TracerWarning):
        traced = torch.jit.trace(block, (X,))
    torch.testing.assert_close(traced(other), block(other))


def test_functional_call_fake_and_meta_tensors_and_checkpoints() -> None:
    block = Block()
    plain = torch.autograd.grad(block(X).square().sum(), list(block.parameters()))
    named = {name: parameter.detach().requires_grad_() for name, parameter in block.named_parameters()}
    called = torch.func.functional_call(block, named, (X,))
    torch.testing.assert_close(torch.autograd.grad(called.square().sum(), list(named.values())), plain)
    again = checkpoint(block, X, use_reentrant=False)
    torch.testing.assert_close(torch.autograd.grad(again.square().sum(), list(block.parameters())), plain)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        output = block(mode.from_tensor(X))
        output.sum().backward()
    assert output.shape == (3, 2, 9, 7)
    assert block.to("meta")(X.to("meta")).shape == (3, 2, 9, 7)


def test_flops_are_those_of_plain_pytorch() -> None:
    network = Block().eval()
    with plain_ops():
        wanted = flops(network, (17, 13))
    assert flops(network, (17, 13)) == wanted


@in_strips
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("radix, cardinality", [(1, 1), (2, 1), (4, 2)])
def test_a_training_step_of_the_block(
    radix: int, cardinality: int, memory_format: torch.memory_format, dtype: torch.dtype
) -> None:
    block = Block(radix, cardinality).to(memory_format=memory_format)
    x = X.contiguous(memory_format=memory_format)

    def step() -> tuple[Tensor, ...]:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            output = block(x)
        return output, *torch.autograd.grad(output.float().square().sum(), list(block.parameters()))

    found = step()
    with plain_ops():
        wanted = step()
    assert found[0].dtype == wanted[0].dtype == dtype
    if dtype == torch.float32:
        assert torch.equal(found[0], wanted[0])
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    else:
        torch.testing.assert_close(found[0], wanted[0], rtol=5e-2, atol=5e-2)


class Allocated(TorchDispatchMode):
    """The elements of the largest storage that any operation makes, but for some tensors' own."""

    def __init__(self, *known: Tensor) -> None:
        super().__init__()
        self.known, self.largest = {t.untyped_storage().data_ptr() for t in known}, 0

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        output = function(*arguments, **(options or {}))
        storage = output.untyped_storage() if isinstance(output, Tensor) else None
        if storage is not None and storage.data_ptr() not in self.known:
            self.largest = max(self.largest, storage.nbytes() // output.element_size())
        return output


def test_nothing_but_the_inputs_is_kept_or_made_at_their_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STRIP_BYTES", 500)
    splits, attention = example(4)
    kept: list[Tensor] = []
    with saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        both(splits, attention, 4, 2)
    assert {t.data_ptr() for t in kept} == {splits.data_ptr(), attention.data_ptr()}
    output = module._empty_result(splits, attention, 4)
    with Allocated(splits, output) as seen, torch.no_grad():
        module._attend_in_strips(splits, attention, output, 4, 2)
        module._pool_in_strips(splits, 4)
    assert seen.largest <= splits[..., :1, :1].numel()  # the weights, and less: a strip of two channels


@pytest.mark.parametrize("radix", [1, 2, 4])
def test_a_bfloat16_pool_of_channels_last_is_summed_in_float32(radix: int) -> None:
    splits = (1 + torch.rand(2, 3 * radix, 40, 41)).bfloat16().contiguous(memory_format=torch.channels_last)
    wanted = splits.double().view(2, radix, 3, -1).sum(1).mean(-1)  # of 1640 terms that bfloat16 would stop adding
    torch.testing.assert_close(split_pool(splits, radix)[..., 0, 0].double(), wanted, rtol=2**-7, atol=0)
