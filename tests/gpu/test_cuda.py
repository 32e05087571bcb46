"""What must be the same on CUDA as on the CPU; skipped without a GPU."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from segkit.evaluation.confusion import confusion_counts
from segkit.inference.engine import predict, scores
from segkit.inference.protocols import get
from segkit.models.segmentation import DeepLabV3
from segkit.ops.normalize import normalize
from segkit.training.losses import LossConfig, loss_terms, segmentation_loss

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_confusion_counts_are_the_same_integers_without_a_sync(dtype: torch.dtype) -> None:
    mask = torch.randint(0, 256, (2, 480, 640)).to(dtype)
    labels = torch.randint(0, 21, (2, 480, 640)).to(dtype)
    expected = confusion_counts(mask, labels, 19)
    mask, labels = mask.cuda(), labels.cuda()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        counted = confusion_counts(mask, labels, 19)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(counted.cpu(), expected)


@pytest.mark.parametrize("name", ["whole", "ms-flip", "encoding-ms"])
def test_scores_agree_with_the_cpu(name: str) -> None:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    protocol = get(name) if name != "encoding-ms" else replace(get(name), base_size=130, window=96)
    network = DeepLabV3("resnest14_tiny", 19).eval()
    image = torch.randn(1, 3, 97, 129)
    on_cpu = scores(network, image, protocol)
    network.cuda()
    torch.testing.assert_close(scores(network, image.cuda(), protocol).cpu(), on_cpu, rtol=1e-3, atol=1e-4)
    labels = predict(network, image.cuda(), protocol)
    assert labels.shape == (1, 97, 129) and labels.dtype == torch.uint8


@pytest.mark.parametrize("name", ["whole", "window", "ms-flip"])
def test_labels_are_made_without_a_sync(name: str) -> None:
    network, image = DeepLabV3("resnest14_tiny", 19).eval().cuda(), torch.zeros(1, 3, 97, 129, dtype=torch.uint8).cuda()
    predict(network, normalize(image), get(name))  # kernels are compiled, buffers made
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        predict(network, normalize(image), get(name))
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_bf16_training_step_is_finite() -> None:
    network = DeepLabV3("resnest50", 150).cuda().to(memory_format=torch.channels_last)
    image = torch.randn(2, 3, 256, 256, device="cuda").to(memory_format=torch.channels_last)
    mask = torch.randint(0, 150, (2, 256, 256), dtype=torch.uint8, device="cuda")
    with torch.autocast("cuda", torch.bfloat16):
        loss = segmentation_loss(network(image), mask, LossConfig())
    loss.backward()
    assert loss.dtype == torch.float32 and loss.isfinite()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


EVERY_TERM = {"dice": 1.0, "lovasz": 1.0, "focal": 1.0, "tversky": 1.0, "class_weights": (1.0, 2.0, 0.5, 4.0)}


@pytest.mark.parametrize("options", [{}, {"ohem_threshold": 0.7}, {"fused": False}], ids=["", "OHEM", "unfused"])
def test_losses_and_their_gradients_are_made_without_a_sync(options: dict[str, Any]) -> None:
    logits = torch.randn(2, 4, 12, 16, device="cuda", requires_grad=True)
    mask = torch.randint(0, 4, (2, 96, 128), dtype=torch.uint8, device="cuda")

    def step() -> None:
        terms = loss_terms({"out": logits, "aux": logits}, mask, LossConfig(**EVERY_TERM, **options))
        torch.stack(list(terms.values())).sum().backward()

    step()  # kernels are compiled, buffers made
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
