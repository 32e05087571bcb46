"""Whether bfloat16 is fast here: what the processor has, and what the environment leaves of it."""

import os

import pytest
import torch

from segkit.ops.processor import multiplies_bfloat16


@pytest.mark.parametrize(
    ("capabilities", "aten", "onednn", "expected"),
    [
        ({"avx512_bf16": True, "amx_bf16": False}, "AVX512", None, True),
        ({"amx_bf16": True}, "AVX512", None, True),
        ({"avx512_bf16": True}, "AVX512", "ALL", True),
        ({"avx512_bf16": True}, "AVX512", "avx512_core_bf16", True),
        ({"avx512_bf16": False, "avx2": True}, "AVX512", None, False),
        ({}, "DEFAULT", None, False),  # not an x86
        ({"avx512_bf16": True}, "AVX2", None, False),
        ({"avx512_bf16": True}, "DEFAULT", None, False),
        ({"avx512_bf16": True}, "AVX512", "AVX2", False),
        ({"amx_bf16": True}, "AVX512", "avx512_core", False),
    ],
)
def test_what_it_has_and_may_use(
    monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, bool], aten: str, onednn: str | None, expected: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: aten)
    for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        monkeypatch.delenv(name, raising=False)
    if onednn:
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", onednn)
    assert multiplies_bfloat16() == expected


@pytest.mark.skipif("ATEN_CPU_CAPABILITY" not in os.environ, reason="no lesser processor is pretended")
def test_a_pretended_processor_is_believed() -> None:
    assert os.environ["ATEN_CPU_CAPABILITY"] in ("default", "avx2") and not multiplies_bfloat16()
