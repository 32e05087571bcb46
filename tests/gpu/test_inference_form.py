"""The inference form, compiled too, and streams of files on CUDA; skipped without a GPU."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from segkit.inference import protocols
from segkit.inference.segmenter import Segmenter, load
from segkit.inference.stream import predict_files
from segkit.io import write_png
from segkit.models.inference_form import InferenceForm, inference_form
from segkit.models.segmentation import DeepLabV3
from segkit.ops.normalize import IMAGENET, normalize

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")]

DEVICE = "cuda"
SIZES = [(97, 129), (64, 80)]


@pytest.fixture(autouse=True)
def no_tf32() -> Iterator[None]:
    """Ten bits of a feature are too few to compare float32 with anything."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = False
    yield
    matmul.allow_tf32, cudnn.allow_tf32 = before


@torch.no_grad()
def trained() -> DeepLabV3:
    """Norms that are not the identity, and all classes equally likely on the whole."""
    torch.manual_seed(0)
    network = DeepLabV3("resnest14_tiny", 19)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.5, 1.5)
    network.eval()
    classifier = [module for module in network.head.modules() if isinstance(module, nn.Conv2d)][-1]
    assert classifier.bias is not None
    images = torch.stack([torch.from_numpy(image(SIZES[0], seed)) for seed in range(4)]).permute(0, 3, 1, 2)
    classifier.bias -= network(normalize(images))["out"].mean((0, 2, 3))
    return network


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    network = trained()
    path = tmp_path_factory.mktemp("network") / "tiny.ckpt"
    parts = {"network": network.config, "label_space": None, "normalization": IMAGENET.to_dict()}
    weights = {f"network.{name}": value for name, value in network.state_dict().items()}
    torch.save({"hyper_parameters": parts, "state_dict": weights}, path)
    return path


def image(size: tuple[int, int], seed: int = 0) -> np.ndarray:
    """Smooth colours, uint8 (H, W, 3)."""
    coarse = torch.rand(1, 3, 7, 9, generator=torch.Generator().manual_seed(seed))
    smooth = nn.functional.interpolate(coarse, size, mode="bicubic").clamp(0, 1)
    return np.ascontiguousarray((255 * smooth[0]).byte().permute(1, 2, 0).numpy())


def agreement(a: np.ndarray, b: np.ndarray) -> float:
    return float((a == b).mean())


@torch.inference_mode()
def test_float32_has_the_logits_of_the_network() -> None:
    network = trained().to(DEVICE)
    x = torch.randn(2, 3, 97, 129, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    expected, found = network(x)["out"], inference_form(network)(x)["out"]
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()


def test_labels_by_precision(checkpoint: Path) -> None:
    exact = load(checkpoint, DEVICE, precision="exact")
    float32 = load(checkpoint, DEVICE, precision="float32")
    bfloat16 = exact.optimize("bfloat16")
    assert [one.precision for one in (exact, float32, bfloat16)] == ["exact", "float32", "bfloat16"]
    for size in SIZES:
        expected = exact.predict(image(size))
        assert len(np.unique(expected)) > 2  # else agreement is no news
        assert agreement(float32.predict(image(size)), expected) > 0.999
        assert agreement(bfloat16.predict(image(size)), expected) > 0.94  # one in thirty differs on a CPU
        assert agreement(load(checkpoint, "cpu", precision="exact").predict(image(size)), expected) > 0.999


def test_auto_is_bfloat16_where_the_gpu_has_it(checkpoint: Path) -> None:
    fast = torch.cuda.get_device_capability() >= (8, 0)
    assert load(checkpoint, DEVICE).precision == ("bfloat16" if fast else "float32")


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@torch.inference_mode()
def test_results_of_cuda_graphs_are_not_overwritten(precision: str) -> None:
    """By the next call of the same shape, nor by one of another shape; the first calls warm up and record."""
    network = trained().to(DEVICE)
    form = inference_form(network, getattr(torch, precision), compiled=True)
    assert isinstance(form, InferenceForm)
    generator = torch.Generator().manual_seed(0)
    sizes = [*SIZES, *SIZES, *SIZES, *SIZES]
    inputs = [i * torch.randn(1, 3, *size, generator=generator).to(DEVICE) for i, size in enumerate(sizes, 1)]
    results = [form(x)["out"] for x in inputs]
    allowed = {"float32": 1e-4, "bfloat16": 0.05}[precision]
    for x, result in zip(inputs, results, strict=True):
        expected = network(x)["out"]
        assert (result - expected).abs().max() < allowed * expected.abs().max()


def test_compiled_labels_are_the_same_each_time(checkpoint: Path) -> None:
    uncompiled = load(checkpoint, DEVICE, precision="float32")
    compiled = load(checkpoint, DEVICE, precision="float32", compiled=True)
    for size in SIZES:
        first, *others = (compiled.predict(image(size)) for _ in range(4))
        assert all(np.array_equal(first, other) for other in others)
        assert agreement(first, uncompiled.predict(image(size))) > 0.999


class Brightness(nn.Module):
    """Class 1 where an image is bright: nothing in it is rounded differently on a GPU."""

    num_classes, align_corners, output_stride = 2, True, 1

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        brightness = x[:, :1]
        return {"out": torch.cat([-brightness, brightness], 1)}


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    """Runs of images of one size, which share forwards, and single ones."""
    sizes = [SIZES[0]] * 5 + [SIZES[1]] + [SIZES[0]] * 2 + [(300, 400)] * 20
    for number, size in enumerate(sizes):
        write_png(tmp_path / f"{number:02}.png", image(size, seed=number))
    return sorted(tmp_path.iterdir())


def streamed(segmenter: Segmenter, paths: list[Path]) -> list[np.ndarray]:
    def failed(path: Path, error: Exception) -> None:
        raise AssertionError(f"{path}: {error}")

    found = list(predict_files(segmenter, paths, failed))
    assert [one.path for one in found] == paths
    return [one.labels for one in found]


def test_streams_give_each_image_its_own_labels(paths: list[Path]) -> None:
    whole = protocols.get("whole")
    on_gpu, on_cpu = (Segmenter(Brightness(), None, IMAGENET, whole, torch.device(name)) for name in (DEVICE, "cpu"))
    for found, expected in zip(streamed(on_gpu, paths), streamed(on_cpu, paths), strict=True):
        assert np.array_equal(found, expected) and expected.any() and not expected.all()


@pytest.mark.parametrize("protocol", ["whole", "ms-flip"])
def test_streams_of_a_network_agree_with_the_cpu(checkpoint: Path, paths: list[Path], protocol: str) -> None:
    some = paths[:8]
    on_gpu, on_cpu = (load(checkpoint, name, protocol, precision="exact") for name in (DEVICE, "cpu"))
    for found, expected in zip(streamed(on_gpu, some), streamed(on_cpu, some), strict=True):
        assert agreement(found, expected) > 0.999
