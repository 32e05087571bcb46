"""Training, validation and inference on CUDA without a GPU: where tensors lie, and what waits for the device.

Shapes, dtypes and devices only (`tests/support/fake_cuda.py`); values are compared in tests/gpu, on a real one.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from fake_cuda import DEVICE, CudaError, Watch, fake_cuda, on_gpu
from torch import Tensor, nn

from segkit.evaluation.calibration import Calibration
from segkit.evaluation.confusion import ConfusionMatrix
from segkit.inference import protocols
from segkit.inference.engine import predict, predict_with_confidence, scores
from segkit.inference.segmenter import Segmenter
from segkit.inference.tiling import tiles
from segkit.inference.tiling.budget import Budget
from segkit.models.inference_form import InferenceForm
from segkit.models.segmentation import FCN, DeepLabV3, MMSegDeepLabV3, MMSegFCN, SegmentationModel
from segkit.ops.dispatch import plain_ops
from segkit.ops.normalize import IMAGENET, normalize
from segkit.training.losses import LossConfig, loss_terms
from segkit.training.module import SegmentationModule
from segkit.training.network import EvaluationForm

K, SIZE = 4, (64, 96)
NETWORKS = [FCN, DeepLabV3, MMSegFCN, MMSegDeepLabV3]
LOSSES: dict[str, dict[str, Any]] = {
    "cross entropy": {},
    "unfused": {"fused": False},
    "of all pixels": {"average": "all"},
    "smoothed": {"label_smoothing": 0.1},
    "class weights": {"class_weights": (1.0, 2.0, 0.0, 4.0)},
    "OHEM": {"ohem_threshold": 0.7},
    "unfused OHEM": {"ohem_threshold": 0.7, "fused": False, "class_weights": (1.0, 2.0, 0.0, 4.0)},
    "dice": {"dice": 1.0},
    "Lovász": {"lovasz": 1.0},
    "focal": {"focal": 1.0},
    "focal of all pixels": {"focal": 1.0, "average": "all"},
    "Tversky": {"tversky": 1.0},
}
TWO = (0.5, 1.0)
PROTOCOLS = {
    "whole": protocols.get("whole"),
    "window": replace(protocols.get("window"), window=48),
    "ms-flip": replace(protocols.get("ms-flip"), scales=TWO),
    "encoding-ms": replace(protocols.get("encoding-ms"), scales=TWO, base_size=96, window=48),
    "mmseg-ss": replace(protocols.get("mmseg-ss"), base_size=48, long_limit=256),
    "mmseg-slide": replace(protocols.get("mmseg-slide"), base_size=48, long_limit=256, window=32, stride=24),
    "csail-ms": replace(protocols.get("csail-ms"), scales=TWO, base_size=48, long_limit=256),
    "paddleseg-ms": replace(protocols.get("paddleseg-ms"), scales=TWO),
}

# What waits for the GPU, and is meant to.
LARGEST_LOGIT = "StripFusion.__init__"  # exp_sum asks, once an image, whether float32 holds its sums
ON_THE_CPU = "ImageResizer.__call__"  # OpenCV and Pillow resize there, as mmsegmentation and CSAIL do
WAITS = {"encoding-ms": {LARGEST_LOGIT}} | {name: {ON_THE_CPU} for name in ("mmseg-ss", "mmseg-slide", "csail-ms")}
CHECKED_ONCE = "_fold_norms"  # the inference form compares its logits with the network's when it is made
LABELS = "Segmenter.predict"  # NumPy's labels are the CPU's


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Iterator[Watch]:
    with fake_cuda(monkeypatch) as watched:
        yield watched


class Strided(nn.Module):
    """The smallest network: one convolution of stride 8."""

    num_classes, align_corners, output_stride = K, True, 8

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, K, 9, 8, padding=4)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"out": self.convolution(x)}


def network(kind: type[SegmentationModel]) -> Any:
    return kind("resnest14_tiny", K).to(memory_format=torch.channels_last)


def batch() -> Any:
    image = torch.zeros(2, 3, *SIZE, dtype=torch.uint8, device=DEVICE)
    return {"image": image, "mask": image[:, 0].clone(), "name": ["a", "b"]}


class Run:
    """What a module asks of its trainer."""

    def __init__(self, command: str) -> None:
        self.world_size, self.state = 1, SimpleNamespace(fn=command)


def module(command: str, kind: type[SegmentationModel] = DeepLabV3, **options: Any) -> SegmentationModule:
    made: Any = SegmentationModule(kind("resnest14_tiny", K), **options)
    on_gpu(made).to(DEVICE)  # the latter for what Lightning remembers
    made.trainer = Run(command)
    made.optimizers = lambda **_: SimpleNamespace(param_groups=[{"name": "encoder", "lr": 0.1}])
    made.log = made.log_dict = lambda *_, **__: None  # a logger reads values when it writes, not in each step
    found: SegmentationModule = made
    return found


@pytest.mark.slow
@pytest.mark.parametrize("kind", NETWORKS)
def test_a_training_step(kind: type[SegmentationModel], watch: Watch) -> None:
    with torch.autocast("cuda", torch.bfloat16):
        loss = module("fit", kind).training_step(batch(), 0)
    assert loss.device == DEVICE and loss.dtype == torch.float32 and loss.requires_grad
    assert watch.waits == set()


@pytest.mark.slow
@pytest.mark.parametrize("name", LOSSES)
def test_losses(name: str, watch: Watch) -> None:
    outputs = {key: torch.zeros(2, K, 8, 12, device=DEVICE, requires_grad=True) for key in ("out", "aux")}
    terms = loss_terms(outputs, batch()["mask"], LossConfig(**LOSSES[name]))
    assert all(term.device == DEVICE and term.shape == () and term.requires_grad for term in terms.values())
    assert watch.waits == set()


@pytest.mark.slow
@pytest.mark.parametrize("kind", NETWORKS)
def test_gradients_do_not_depend_on_values(kind: type[SegmentationModel]) -> None:
    """On meta tensors, which have none to read, as the backward pass asks for a CUDA context."""
    net = network(kind).to("meta")
    image = torch.zeros(2, 3, *SIZE, dtype=torch.uint8, device="meta")
    terms = loss_terms(net(normalize(image)), image[:, 0], LossConfig(ohem_threshold=0.7, class_weights=(1, 2, 3, 4)))
    torch.stack(list(terms.values())).sum().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in net.parameters())


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_of_losses_do_not_depend_on_values(name: str) -> None:
    logits = torch.zeros(2, K, 8, 12, device="meta", requires_grad=True)
    mask = torch.zeros(2, *SIZE, dtype=torch.uint8, device="meta")
    terms = loss_terms({"out": logits, "aux": logits}, mask, LossConfig(**LOSSES[name]))
    torch.stack(list(terms.values())).sum().backward()
    assert logits.grad is not None and logits.grad.shape == logits.shape


@pytest.mark.slow
@pytest.mark.parametrize("kind", NETWORKS)
@torch.no_grad()
def test_validation_reads_its_counts_at_the_end(kind: type[SegmentationModel], watch: Watch) -> None:
    made = module("fit", kind).eval()
    made.on_validation_epoch_start()
    labels = made.validation_step(batch(), 0)
    assert (labels.device, labels.dtype, labels.shape) == (DEVICE, torch.uint8, (2, *SIZE))
    assert watch.waits == set()
    made.on_validation_epoch_end()
    assert watch.waits  # a few hundred integers, once an epoch, whoever reads them


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["exact", "auto"])
@torch.no_grad()
def test_test_and_predict(precision: Any, watch: Watch) -> None:
    made = module("test").eval()
    made.protocol = PROTOCOLS["ms-flip"]
    EvaluationForm(precision).on_test_start(made.trainer, made)
    assert watch.waits == (set() if precision == "exact" else {CHECKED_ONCE})
    watch.waits.clear()
    made.on_test_epoch_start()
    labels = made.test_step(batch(), 0)
    made.calibration, made.predicts_confidence = Calibration(made.device, num_classes=K), True
    watch.waits.clear()  # its thresholds are copied once
    made.test_step(batch(), 0)
    assert [found.device for found in made.predict_step(batch(), 0)] == [DEVICE, DEVICE]
    made.predicts_confidence = False
    assert labels.device == made.predict_step(batch(), 0).device == DEVICE
    assert watch.waits == set()


@pytest.mark.parametrize("name", PROTOCOLS)
@pytest.mark.parametrize("function", [predict, predict_with_confidence, scores])
@pytest.mark.slow
def test_protocols(name: str, function: Callable[..., Any], watch: Watch) -> None:
    net, image = on_gpu(Strided()).eval(), torch.zeros(2, 3, *SIZE, device=DEVICE)
    results = function(net, image, PROTOCOLS[name])
    assert all(one.device == DEVICE for one in (results if isinstance(results, tuple) else (results,)))
    assert watch.waits == WAITS.get(name, set())


@pytest.mark.parametrize("function", [predict, predict_with_confidence])
def test_plain_operations(function: Callable[..., Any], watch: Watch) -> None:
    with plain_ops():
        function(on_gpu(Strided()), torch.zeros(2, 3, *SIZE, device=DEVICE), PROTOCOLS["whole"])
    assert watch.waits == set()


@pytest.mark.slow
def test_tiles(watch: Watch, caplog: pytest.LogCaptureFixture) -> None:
    tiles._log_once.cache_clear()  # another test may have said the same
    net, image = on_gpu(Strided()), torch.zeros(1, 3, 300, 400, device=DEVICE)
    labels = predict(net, image, PROTOCOLS["whole"], limits=Budget(memory=4_000_000))
    assert " tiles of up to " in caplog.text
    assert labels.shape == (1, 300, 400) and labels.device == DEVICE and watch.waits == set()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_counting(dtype: torch.dtype, watch: Watch) -> None:
    mask = torch.zeros(2, *SIZE, dtype=dtype, device=DEVICE)
    matrix = ConfusionMatrix(K, DEVICE)
    matrix.update(mask, mask)
    assert watch.waits == set()


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["exact", "auto"])
def test_a_segmenter_reads_its_labels_once(precision: Any, watch: Watch) -> None:
    exact = Segmenter(on_gpu(network(DeepLabV3)), None, IMAGENET, protocols.get("whole"), DEVICE)
    segmenter = exact.optimize(precision)
    assert segmenter.precision == {"auto": "bfloat16"}.get(precision, precision)  # of a card like an H100
    assert watch.waits == ({CHECKED_ONCE} if isinstance(segmenter.network, InferenceForm) else set())
    watch.waits.clear()
    labels = segmenter.predict(np.zeros((*SIZE, 3), np.uint8))
    assert labels.shape == SIZE and labels.dtype == np.uint8 and watch.waits == {LABELS}
    _, confidence = segmenter.predict(np.zeros((*SIZE, 3), np.uint8), with_confidence=True)
    assert confidence.shape == SIZE and watch.waits == {LABELS}
    assert segmenter.predict_proba(np.zeros((*SIZE, 3), np.uint8)).shape == (K, *SIZE)
    assert watch.waits == {LABELS, "Segmenter.predict_proba"}


# --- the test can fail


class Wrong(Strided):
    """A network with a fault in its forward."""

    def __init__(self, fault: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.fault = fault

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        logits = self.convolution(x)
        self.fault(logits)
        return {"out": logits}


NOTED: dict[str, Callable[[Tensor], Any]] = {
    "item": lambda x: x.sum().item(),
    "float": lambda x: float(x.max()),
    "bool": lambda x: bool((x > 0).any()),
    "equal": lambda x: torch.equal(x, x),
    "cpu": lambda x: x.cpu(),
    "tolist": lambda x: x.tolist(),
    "to the CPU": lambda x: x.to("cpu", torch.float64),
    "copy to the CPU": lambda x: torch.empty(x.shape).copy_(x),
    "from a list": lambda x: x.new_tensor([1.0, 2.0]),
    "from the CPU": lambda x: torch.ones(3).to(x.device),
}
REFUSED: dict[str, Callable[[Tensor], Any]] = {
    "nonzero": lambda x: x.nonzero(),
    "unique": lambda x: x.unique(),
    "bincount": lambda x: torch.bincount(x.long().flatten()),
    "masked_select": lambda x: x.masked_select(x > 0),
    "a boolean mask": lambda x: x[x > 0],
    "assigning by a boolean mask": lambda x: x.clone().__setitem__(x > 0, x[0, 0, 0, :1]),
    "a CPU tensor": lambda x: x + torch.ones(x.shape),
    "a CPU index": lambda x: x[:, torch.tensor([0, 1])],
}


@pytest.mark.parametrize("name", NOTED)
def test_a_wait_is_noted(name: str, watch: Watch) -> None:
    predict(on_gpu(Wrong(NOTED[name])), torch.zeros(1, 3, *SIZE, device=DEVICE), protocols.get("whole"))
    assert len(watch.waits) == 1 and "_forward" in watch.waits.pop()  # the innermost function of segkit


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_answer_is_refused(name: str, watch: Watch) -> None:
    with pytest.raises(CudaError):
        predict(on_gpu(Wrong(REFUSED[name])), torch.zeros(1, 3, *SIZE, device=DEVICE), protocols.get("whole"))


def test_a_constant_left_on_the_cpu_is_refused(watch: Watch) -> None:
    net = on_gpu(Strided())
    net.convolution.weight = nn.Parameter(torch.zeros(net.convolution.weight.shape))  # type: ignore[union-attr,operator]
    with pytest.raises(CudaError, match="CPU and on the GPU"):
        predict(net, torch.zeros(1, 3, *SIZE, device=DEVICE), protocols.get("whole"))
