"""A kernel is compared with the plain form before it is trusted; in Triton's interpreter where there is no GPU."""

import logging
from collections.abc import Callable
from threading import Thread
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from segkit.ops import dispatch
from segkit.ops.split_attention import split_attention
from segkit.ops.upsample_argmax import upsample_argmax, upsample_argmax_confidence
from segkit.ops.upsample_cross_entropy import upsample_cross_entropy, upsample_true_probability

pytest.importorskip("triton", reason="Triton has no wheel for this system")
from segkit.ops.kernels import first_use
from segkit.ops.kernels import split_attention as attention_kernels
from segkit.ops.kernels import upsample_argmax as argmax_kernel
from segkit.ops.kernels import upsample_cross_entropy as entropy_kernel

DEVICE = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
ONE = torch.ones(1, device=DEVICE)


@pytest.fixture(autouse=True)
def nothing_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first_use, "_verdicts", {})


@pytest.mark.slow
@pytest.mark.parametrize("kernel", first_use.COMPARISONS)
def test_the_kernels_agree_in_half_precision(kernel: str) -> None:
    assert first_use.fault(kernel, DEVICE, torch.bfloat16) is None


def raising(*arguments: Any, **options: Any) -> Any:
    raise RuntimeError("PassManager::run failed\n on sm_999")


def altered(function: Callable[..., Any], change: Callable[[Tensor], Tensor]) -> Callable[..., Any]:
    """The kernel, with its last result changed."""

    def call(*arguments: Any, **options: Any) -> Any:
        found = function(*arguments, **options)
        return (*found[:-1], change(found[-1])) if isinstance(found, tuple) else change(found)

    return call


CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "a thousandth": lambda x: x * 1.001,
    "NaN": lambda x: x * torch.nan,
    "one value": lambda x: x.index_fill(-1, torch.tensor([0], device=x.device), 0),
    "another shape": lambda x: x[:1],
}


@pytest.mark.slow
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(
    "kernel, module, name",
    [
        ("split_attention", attention_kernels, "forward"),
        ("split_attention_backward", attention_kernels, "backward"),
        ("upsample_argmax", argmax_kernel, "launch"),
        ("upsample_true_probability", entropy_kernel, "true_probability"),
    ],
)
def test_a_wrong_kernel_is_found(
    kernel: str, module: Any, name: str, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, name, altered(getattr(module, name), CHANGES[change]))
    text = first_use.fault(kernel, DEVICE, torch.float32)
    assert text is not None and ("has the shape" if change == "another shape" else "differs by") in text


@pytest.mark.slow
def test_wrong_labels_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    launch = argmax_kernel.launch

    def shifted(*arguments: Any, **options: Any) -> Any:
        labels, confidence = launch(*arguments, **options)
        labels[0, 0, 0] = (labels[0, 0, 0] + 1) % 5
        return labels, confidence

    monkeypatch.setattr(argmax_kernel, "launch", shifted)
    assert "differs by" in str(first_use.fault("upsample_argmax", DEVICE, torch.float32))


# --- what the operations do then


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors of this device take the kernels' way."""

    def uses_triton(tensor: Tensor, kernel: str) -> bool:
        return dispatch.fused_ops() and first_use.trusted(kernel, tensor)

    for operation in ("split_attention", "upsample_argmax", "upsample_cross_entropy"):
        monkeypatch.setattr(f"segkit.ops.{operation}.uses_triton", uses_triton)


def results() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 3, 2, 2, generator=generator).to(DEVICE).requires_grad_()
    mask = torch.randint(0, 3, (1, 4, 3), generator=generator).to(DEVICE)
    splits, attention = (torch.randn(1, 4, n, n, generator=generator).to(DEVICE).requires_grad_() for n in (3, 1))
    loss = upsample_cross_entropy(logits, mask)
    attended = split_attention(splits, attention, 2)
    inputs = (logits, splits, attention)
    gradients = torch.autograd.grad(loss + attended.square().sum(), inputs)
    labels = upsample_argmax_confidence(logits, (4, 3))
    return [loss, attended, *gradients, *labels, upsample_true_probability(logits, mask)]


@pytest.mark.usefixtures("on_gpu")
def test_the_plain_form_takes_over_with_one_warning_for_each_kernel(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with dispatch.plain_ops():
        expected = results()
    for module, name in ((attention_kernels, "forward"), (attention_kernels, "backward"), (argmax_kernel, "launch")):
        monkeypatch.setattr(module, name, raising)
    for name in ("cross_entropy", "true_probability"):
        monkeypatch.setattr(entropy_kernel, name, raising)
    for _ in range(2):
        torch.testing.assert_close(results(), expected, rtol=1e-5, atol=1e-6)
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == len(first_use.COMPARISONS)
    for kernel, text in zip(sorted(first_use.COMPARISONS), sorted(warnings), strict=True):
        assert f"kernel {kernel} is not used for float32 on {DEVICE}" in text
        assert f"torch {torch.__version__}, triton 3." in text and "PassManager::run failed on sm_999" in text


@pytest.mark.slow
@pytest.mark.usefixtures("on_gpu")
def test_right_kernels_are_used_and_nothing_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with dispatch.plain_ops():
        expected = results()
    torch.testing.assert_close(results(), expected, rtol=1e-4, atol=1e-5)
    assert set(first_use._verdicts.values()) == {None} and not caplog.records
    assert {kernel for kernel, _, _ in first_use._verdicts} == set(first_use.COMPARISONS)


# --- when, how often, and in what


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Arguments of each comparison."""
    calls: list[tuple[Any, ...]] = []

    def comparison(device: torch.device, dtype: torch.dtype) -> list[Any]:
        calls.append((device, dtype, torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")))
        return []

    monkeypatch.setitem(first_use.COMPARISONS, "split_attention", comparison)
    return calls


def test_once_for_each_device_and_type(compared: list[Any]) -> None:
    for _ in range(3):
        assert first_use.trusted("split_attention", ONE)
        assert first_use.trusted("split_attention", ONE.bfloat16())
        assert first_use.trusted("split_attention", torch.ones(1, device="meta"))
    assert [call[:2] for call in compared] == [
        (DEVICE, torch.float32),
        (DEVICE, torch.bfloat16),
        (torch.device("meta"), torch.float32),
    ]


def test_threads_wait_for_one_comparison(compared: list[Any]) -> None:
    threads = [Thread(target=first_use.trusted, args=("split_attention", ONE)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(compared) == 1


def test_the_callers_modes_are_not_the_comparisons(compared: list[Any]) -> None:
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert first_use.trusted("split_attention", ONE)
    assert compared == [(DEVICE, torch.float32, False, False)]


def test_nothing_is_compared_while_a_graph_is_captured(compared: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The plain form is captured, and a kernel that is known to agree."""
    capturing = SimpleNamespace(is_cuda=True, device=torch.device("cuda:7"), dtype=torch.float32)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert not first_use.trusted("split_attention", capturing) and not compared  # type: ignore[arg-type]
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    assert first_use.trusted("split_attention", capturing) and compared  # type: ignore[arg-type]
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert first_use.trusted("split_attention", capturing)  # type: ignore[arg-type]


def test_too_little_memory_is_no_fault_of_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(device: torch.device, dtype: torch.dtype) -> Any:
        raise torch.OutOfMemoryError("2 GiB")

    monkeypatch.setitem(first_use.COMPARISONS, "split_attention", full)
    with pytest.raises(torch.OutOfMemoryError):
        first_use.trusted("split_attention", ONE)
    assert not first_use._verdicts


def test_labels_alone_go_through_the_check_too(on_gpu: None) -> None:
    upsample_argmax(torch.zeros(1, 2, 2, 2, device=DEVICE), (3, 3))
    assert [kernel for kernel, _, _ in first_use._verdicts] == ["upsample_argmax"]
