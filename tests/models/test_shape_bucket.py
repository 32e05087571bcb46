"""Only the first shapes are compiled, and each of them once."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from segkit.models.inference_form import ShapeBuckets, inference_form
from segkit.models.segmentation import FCN


class Compiler:
    """Stands in for `torch.compile`: counts, and marks what a program of its own computed."""

    def __init__(self) -> None:
        self.programs = 0

    def __call__(self, run: Callable[[Tensor], Tensor], **options: Any) -> Callable[[Tensor], Tensor]:
        self.programs += 1
        assert options == {"dynamic": False, "mode": None}
        return lambda x: run(x) + 100


def test_first_shapes_get_a_program_and_others_run_plain() -> None:
    compiler = Compiler()
    run = ShapeBuckets(lambda x: x * 2, max_shapes=2, compile_=compiler)
    for _ in range(2):
        assert run(torch.ones(1)).tolist() == [102]
        assert run(torch.ones(2)).tolist() == [102, 102]
        assert run(torch.ones(3)).tolist() == [2, 2, 2]
    assert compiler.programs == 2
    assert run(torch.ones(1, dtype=torch.float64)).tolist() == [2]  # another dtype is another program


@pytest.mark.slow
def test_a_compiled_network_has_no_graph_breaks() -> None:
    network = FCN("resnest14_tiny", 5).eval()
    form = inference_form(network)
    x = torch.randn(1, 3, 64, 64)
    compiled = torch.compile(form, fullgraph=True, backend="eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(x)["out"], form(x)["out"])
