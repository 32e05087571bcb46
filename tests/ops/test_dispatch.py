"""When an operation is an operator, and when it is fused."""

import runpy
import subprocess
import sys
from threading import Thread

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from segkit.ops import dispatch
from segkit.ops.dispatch import fused_ops, operator, plain_ops

CALLS: list[bool] = []


@operator("segkit_test::double")
def double(x: torch.Tensor) -> torch.Tensor:
    CALLS.append(True)
    return x * 2


@double.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


double.register_autograd(lambda ctx, gradient: gradient * 2)


def test_gradients_go_through_the_operator() -> None:
    x = torch.ones(2, requires_grad=True)
    double(x).sum().backward()
    assert x.grad is not None and x.grad.tolist() == [2, 2]
    assert double(torch.ones(2)).tolist() == [2, 2]


@pytest.mark.slow
def test_the_compiler_sees_one_operator() -> None:
    seen: list[str] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> object:
        seen.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return graph.forward

    assert torch.compile(lambda x: double(x), fullgraph=True, backend=backend)(torch.ones(2)).tolist() == [2, 2]
    assert any("segkit_test.double" in target for target in seen)


def test_tensors_without_values_go_through_the_operator() -> None:
    CALLS.clear()
    with FakeTensorMode():
        assert double(torch.ones(2)).shape == (2,)
    assert not CALLS


@pytest.mark.slow
def test_a_plain_call_does_not_import_the_compiler() -> None:
    code = (
        "import sys, torch; from segkit.ops.upsample_argmax import upsample_argmax;"
        "from segkit.ops.split_attention import split_attention, split_pool;"
        "x = torch.ones(1, 4, 3, 3); upsample_argmax(x, (6, 6));"
        "split_attention(x, split_pool(x, 2).repeat(1, 2, 1, 1), 2); print('torch._dynamo' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]


def test_plain_ops_is_of_one_thread_and_ends() -> None:
    elsewhere: list[bool] = []
    assert fused_ops()
    with plain_ops():
        assert not fused_ops()
        thread = Thread(target=lambda: elsewhere.append(fused_ops()))
        thread.start()
        thread.join()
    assert fused_ops() and elsewhere == [True]


def test_the_environment_turns_all_of_it_off(monkeypatch: pytest.MonkeyPatch) -> None:
    for value, fused in (("0", False), ("1", True)):
        monkeypatch.setenv("SEGKIT_FUSED_OPS", value)
        assert runpy.run_path(dispatch.__file__)["fused_ops"]() is fused  # as a process that imports it with this set
