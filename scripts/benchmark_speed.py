"""How fast segkit is beside other toolkits and beside the machine's limit: prints Markdown tables.

    python scripts/benchmark_speed.py                      all tables; on 2 cores half an hour
    python scripts/benchmark_speed.py --only image ops   some of them
    python scripts/benchmark_speed.py --device cuda

Every contestant of a table runs once in each round, one after the other, after a round that warms up; times are medians
over the rounds, and so are ratios, which are taken within a round. "agrees" is the share of pixels whose label is that
of the table's reference. Memory is the most that a fresh process held while it ran once, above what it held before.
Networks have random weights with statistics of a trained one's kind, unless --checkpoint gives a trained one to the
tables `views` and `precision`.

  ceiling    best rates of matrix products and convolutions of this machine: what no network can pass
  image    one normalised image of 480 x 480 to labels: DeepLabV3, ResNeSt-50, stride 8, 150 classes
  decoders   one normalised image of 512 x 512 to labels: smp's decoders over ResNeSt-50, the same weights in both
  views      a whole image by `encoding-ms`, against PyTorch-Encoding's evaluation, restated
  precision  labels and mIoU of a trained network by precision; needs --checkpoint, --images and --masks
  ops        segkit.ops against the PyTorch that it replaces
  matrix     confusion matrices
  training   one optimisation step
  export     one stored image of 480 x 480 to labels, by the formats of `segkit export`; needs the extra openvino
"""

import argparse
import gc
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from benchmark_common import header, measure, peak_memory, times_table
from benchmark_score import disturbed, draw
from speed_peers import has_mmseg, mmseg_areas, mmseg_network, multi_eval, smp_decoder, smp_network, torchvision_network
from torch import Tensor, nn
from torchmetrics.classification import MulticlassJaccardIndex

from segkit.evaluation.confusion import confusion_counts
from segkit.evaluation.conventions import convention_scores
from segkit.inference.engine import predict
from segkit.inference.exported.network import open_network
from segkit.inference.protocols import get
from segkit.inference.segmenter import load
from segkit.io import read_image, read_label
from segkit.models.checkpoint import Checkpoint
from segkit.models.decoders import EncoderDecoder
from segkit.models.export.deploy import Form, deploy
from segkit.models.export.quantize import Calibration
from segkit.models.inference_form import convolution_dtype, inference_form
from segkit.models.segmentation import DeepLabV3, MMSegDeepLabV3, SegmentationModel
from segkit.ops.dispatch import plain_ops
from segkit.ops.normalize import IMAGENET, normalize
from segkit.ops.split_attention import split_attention
from segkit.ops.upsample_argmax import upsample_argmax
from segkit.text import markdown, percent
from segkit.training.losses import LossConfig, segmentation_loss

PACKAGES = (
    *("segkit", "python", "torch", "torchvision", "segmentation-models-pytorch", "timm", "torchmetrics"),
    *("onnxruntime", "openvino", "nncf", "onedl-mmsegmentation", "onedl-mmcv"),
)
CLASSES = 150
CROP = 480
GFLOP = 293.2  # of DeepLabV3, ResNeSt-50, stride 8, 480 x 480, as `segkit benchmark` counts it


@dataclass
class Table:
    """Contestants of one table; the first is what the others are compared with.

    Attributes:
        make: Each contestant's maker, so that one of them can be made alone, in a fresh process.
        agree: Whether they return labels that are compared with `reference`'s.
        memory: Whether their peak memory is measured too.
    """

    title: str
    make: dict[str, Callable[[], Callable[[], object]]]
    agree: bool = False
    reference: str = ""
    memory: bool = False
    rounds: int | None = None
    notes: list[str] = field(default_factory=list)


def main() -> None:
    """Measure and print."""
    options = parse()
    if options.peak_of:
        table, name = options.peak_of
        print(peak_memory(find(tables(options), table).make[name](), options.device))
        return
    print(header(PACKAGES), flush=True)
    if options.device == "cuda":
        print(f"on {torch.cuda.get_device_name()}")
    if not has_mmseg():
        print(
            "mmsegmentation is not installed and is left out: `uv run --group mmseg python scripts/benchmark_speed.py`"
        )
    if "ceiling" in options.only:
        print(ceiling(options), flush=True)
    for title in tables(options):
        print(show(title, options), flush=True)
    if "precision" in options.only and options.checkpoint:
        print(precision(options), flush=True)


def parse() -> argparse.Namespace:
    """What is measured, on what."""
    names = ("ceiling", "image", "decoders", "views", "precision", "ops", "matrix", "training", "export")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=names, default=list(names))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--views-rounds", type=int, default=3, help="of the table `views`: a round takes minutes")
    parser.add_argument("--checkpoint", type=Path, help="a trained network, for `views` and `precision`")
    parser.add_argument("--images", type=Path, help="a folder of images; without it, noise of 683 x 512")
    parser.add_argument("--masks", type=Path, help="a folder of their masks, of the same names, train ids")
    parser.add_argument("--peak-of", nargs=2, metavar=("TABLE", "CONTESTANT"), help=argparse.SUPPRESS)
    return parser.parse_args()


def tables(options: argparse.Namespace) -> Iterator[Table]:
    """The tables that are wanted, each made when its turn comes."""
    makers = {
        "image": one_image,
        "decoders": decoders,
        "views": views,
        "ops": ops,
        "matrix": matrix,
        "training": training,
        "export": export,
    }
    for name, make in makers.items():
        if name in options.only or options.peak_of:
            yield from make(options)


def find(made: Iterator[Table], title: str) -> Table:
    """One table by its title."""
    return next(table for table in made if table.title == title)


# --- the tables


def ceiling(options: argparse.Namespace) -> str:
    """Best rates of five runs, GFLOP/s."""
    lines = ["\n| Ceiling, GFLOP/s | float32 | bfloat16 |", "|---|---|---|"]
    size = 4096 if options.device == "cpu" else 8192
    for what in (f"matrix product, {size} x {size}", "convolution 3x3, 512 to 512 channels, 60 x 60, channels-last"):
        cells = []
        for dtype in (torch.float32, torch.bfloat16):
            run, flop = _rate(what, size, dtype, options.device)
            seconds = measure({"": _synchronised(run, options.device)}, rounds=5)[""]
            cells.append(f"{flop / min(seconds) / 1e9:.0f}")
        lines.append(f"| {what} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _rate(what: str, size: int, dtype: torch.dtype, device: str) -> tuple[Callable[[], object], float]:
    if what.startswith("matrix"):
        a = torch.randn(size, size, device=device).to(dtype)
        return (lambda: a @ a), 2.0 * size**3
    batch = 1 if device == "cpu" else 16
    layer = nn.Conv2d(512, 512, 3, padding=1).to(device, dtype, memory_format=torch.channels_last)
    x = torch.randn(batch, 512, 60, 60, device=device).to(dtype, memory_format=torch.channels_last)
    return torch.no_grad()(lambda: layer(x)), 2.0 * batch * 3600 * 512 * 512 * 9


def one_image(options: argparse.Namespace) -> Iterator[Table]:
    """One normalised image of 480 x 480 to labels."""
    device = torch.device(options.device)
    image = torch.randn(1, 3, CROP, CROP, generator=torch.Generator().manual_seed(0)).to(device)
    whole = get("whole")

    def ours(network: nn.Module, precision: str, compiled: bool = False) -> Callable[[], Tensor]:
        dtype = convolution_dtype(precision, device)  # type: ignore[arg-type]
        form = network if dtype is None else inference_form(network, dtype, compiled)
        return lambda: predict(form, image, whole)

    def theirs(
        network: nn.Module | Callable[[Tensor], Tensor], dtype: torch.dtype = torch.float32, last: bool = False
    ) -> Callable[[], Tensor]:
        memory_format = torch.channels_last if last else torch.contiguous_format
        if isinstance(network, nn.Module):
            network.to(device, dtype, memory_format=memory_format)  # type: ignore[call-overload]
        x = image.to(dtype, memory_format=memory_format)
        return torch.inference_mode()(lambda: network(x).argmax(1))

    deep, mmseg = DeepLabV3, MMSegDeepLabV3
    themselves = {"mmsegmentation, by default": lambda: theirs(mmseg_network(CLASSES))} if has_mmseg() else {}
    yield Table(
        f"One image of {CROP} x {CROP} to labels, DeepLabV3, ResNeSt-50, {CLASSES} classes",
        {
            "segkit, by default": lambda: ours(trained(deep("resnest50", CLASSES), device), "auto"),
            "segkit, float32": lambda: ours(trained(deep("resnest50", CLASSES), device), "float32"),
            "segkit, exact": lambda: ours(trained(deep("resnest50", CLASSES), device), "exact"),
            "segkit, default, compiled": lambda: ours(trained(deep("resnest50", CLASSES), device), "auto", True),
            "smp, by default": lambda: theirs(smp_network(CLASSES)),
            "smp, channels-last": lambda: theirs(smp_network(CLASSES), last=True),
            "smp, bfloat16, channels-last": lambda: theirs(smp_network(CLASSES), torch.bfloat16, last=True),
            "torchvision's ResNet-50, by default": lambda: theirs(torchvision_network(CLASSES)),
            **themselves,
            "mmsegmentation's network, segkit exact": lambda: ours(
                trained(mmseg("resnest50", CLASSES), device), "exact"
            ),
            "mmsegmentation's network, segkit by default": lambda: ours(
                trained(mmseg("resnest50", CLASSES), device), "auto"
            ),
        },
        memory=True,
        notes=[f"The first network is {GFLOP} GFLOP as counted, padding included; oneDNN does not multiply padding."],
    )


def decoders(options: argparse.Namespace) -> Iterator[Table]:
    """One normalised image of 512 x 512 to labels, by smp's decoders in smp and in segkit, float32."""
    device = torch.device(options.device)
    image = torch.randn(1, 3, 512, 512, generator=torch.Generator().manual_seed(0)).to(device)

    def both(decoder: str) -> tuple[nn.Module, SegmentationModel]:
        torch.manual_seed(0)  # the same weights for all
        network = EncoderDecoder("resnest50", CLASSES, decoder, dilation_convention="timm")  # type: ignore[arg-type]
        ours, theirs = trained(network, device), smp_decoder(decoder, CLASSES).to(device)
        encoder = {f"encoder.model.{name}": value for name, value in ours.encoder.state_dict().items()}
        theirs.load_state_dict({**encoder, **ours.head.state_dict()})
        return theirs, ours

    def segkit(decoder: str) -> Callable[[], Tensor]:
        form = inference_form(both(decoder)[1])
        return lambda: predict(form, image, get("whole"))

    def smp(decoder: str, memory_format: torch.memory_format) -> Callable[[], Tensor]:
        network = both(decoder)[0].to(memory_format=memory_format)  # type: ignore[call-overload]
        x = image.to(memory_format=memory_format)
        return torch.inference_mode()(lambda: network(x).argmax(1))

    for decoder in ("fpn", "upernet", "deeplabv3plus"):
        yield Table(
            f"One image of 512 x 512 to labels, {decoder}, ResNeSt-50, {CLASSES} classes, float32",
            {
                "segkit's inference form": lambda decoder=decoder: segkit(decoder),
                "smp, contiguous": lambda decoder=decoder: smp(decoder, torch.contiguous_format),
                "smp, channels-last": lambda decoder=decoder: smp(decoder, torch.channels_last),
            },
            agree=True,
            reference="smp, contiguous",
        )


def views(options: argparse.Namespace) -> Iterator[Table]:
    """A whole image by the authors' protocol."""
    device = torch.device(options.device)
    image = normalize(_images(options)[0][1][None].to(device))
    protocol = get("encoding-ms")

    def exact() -> nn.Module:
        if options.checkpoint:
            return load(options.checkpoint, device, precision="exact").network
        torch.manual_seed(0)  # the same weights for all
        return trained(DeepLabV3("resnest50", CLASSES), device)

    def ours(precision: str) -> Callable[[], Tensor]:
        dtype = convolution_dtype(precision, device)  # type: ignore[arg-type]
        form = exact() if dtype is None else inference_form(exact(), dtype)
        return lambda: predict(form, image, protocol)

    def theirs() -> Callable[[], Tensor]:
        network = exact()
        return torch.no_grad()(lambda: multi_eval(lambda x: network(x)["out"], image).argmax(1))

    yield Table(
        f"One image of {image.shape[3]} x {image.shape[2]} by encoding-ms",
        {
            "PyTorch-Encoding's evaluation, float32": theirs,
            "segkit, float32": lambda: ours("float32"),
            "segkit, by default": lambda: ours("auto"),
        },
        agree=True,
        reference="PyTorch-Encoding's evaluation, float32",
        memory=True,
        rounds=options.views_rounds,
    )


def ops(options: argparse.Namespace) -> Iterator[Table]:
    """Each fused operation against the PyTorch that it replaces."""
    device = options.device
    for classes, cells, size in ((150, (60, 60), (480, 480)), (150, (375, 500), (3000, 4000))):
        logits = blobs(classes, *cells).to(device)
        yield Table(
            f"upsample_argmax, {classes} classes, {cells[0]} x {cells[1]} to {size[0]} x {size[1]}",
            {
                "interpolate, argmax": lambda logits=logits, size=size: (
                    lambda: F.interpolate(logits, size, mode="bilinear", align_corners=True).argmax(1)
                ),
                "segkit": lambda logits=logits, size=size: lambda: upsample_argmax(logits, size, align_corners=True),
            },
            agree=True,
            reference="interpolate, argmax",
            memory=True,
            rounds=3 if size[0] > CROP else None,
        )
    batch = torch.randn(16, CLASSES, 60, 60, device=device)
    mask = torch.randint(0, CLASSES, (16, CROP, CROP), device=device)
    fused = {"PyTorch": False, "segkit": True}
    for name, threshold in (("cross entropy", 0.0), ("cross entropy of hard pixels (OHEM)", 0.7)):
        config = {key: LossConfig(ohem_threshold=threshold, fused=value) for key, value in fused.items()}
        yield Table(
            f"upsampled {name}, forward and backward, batch 16, {CLASSES} classes, {CROP} x {CROP}",
            {key: lambda config=value: lambda: _step(batch, mask, config) for key, value in config.items()},
            memory=True,
        )
    splits = torch.randn(2, 1024, 60, 60, device=device).to(memory_format=torch.channels_last)
    attention = torch.randn(2, 1024, 1, 1, device=device)
    yield Table(
        "split attention, radix 2, 2 x 512 channels of 60 x 60, forward and backward",
        {
            "PyTorch": lambda: lambda: _split(splits, attention, True),
            "segkit": lambda: lambda: _split(splits, attention, False),
        },
        memory=True,
    )


def _step(logits: Tensor, mask: Tensor, config: LossConfig) -> None:
    leaf = logits.detach().requires_grad_()
    segmentation_loss({"out": leaf}, mask, config).backward()


def _split(splits: Tensor, attention: Tensor, plain: bool) -> None:
    leaves = splits.detach().requires_grad_(), attention.detach().requires_grad_()
    with _maybe_plain(plain):
        split_attention(*leaves, radix=2, cardinality=1).sum().backward()


@contextmanager
def _maybe_plain(plain: bool) -> Iterator[None]:
    if plain:
        with plain_ops():
            yield
    else:
        yield


def matrix(options: argparse.Namespace) -> Iterator[Table]:
    """Confusion matrices of label maps, all threads."""
    for height, width, classes in ((1024, 2048, 19), (512, 683, CLASSES)):
        sizes, rng = argparse.Namespace(height=height, width=width, classes=classes), np.random.default_rng(0)
        mask = draw(rng, sizes)
        narrow = tuple(torch.from_numpy(ids).to(options.device) for ids in (mask, disturbed(rng, mask, classes)))
        yield Table(
            f"Confusion matrix of one image of {width} x {height}, {classes} classes",
            _counting(*narrow, classes),
        )


def _counting(mask: Tensor, labels: Tensor, classes: int) -> dict[str, Callable[[], Callable[[], object]]]:
    wide = mask.long(), labels.long()  # as the others' argmax gives them
    checked, unchecked = (
        MulticlassJaccardIndex(classes, ignore_index=255, validate_args=check).to(mask.device)
        for check in (True, False)
    )
    themselves = {"mmsegmentation": lambda: lambda: mmseg_areas(classes)(wide[1], wide[0])} if has_mmseg() else {}
    return {
        "segkit": lambda: lambda: confusion_counts(mask, labels, classes),
        **themselves,
        "torchmetrics": lambda: lambda: checked.update(wide[1], wide[0]),
        "torchmetrics, validate_args=False": lambda: lambda: unchecked.update(wide[1], wide[0]),
    }


def training(options: argparse.Namespace) -> Iterator[Table]:
    """One optimisation step, bfloat16 on a GPU."""
    cuda = options.device == "cuda"
    batch, crop = (16, CROP) if cuda else (2, 240)

    def step(network: nn.Module, ours: bool) -> Callable[[], object]:
        network.train().to(options.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimizer = torch.optim.SGD(network.parameters(), 1e-3, momentum=0.9)
        image = torch.randn(batch, 3, crop, crop, device=options.device).to(memory_format=torch.channels_last)
        mask = torch.randint(0, CLASSES, (batch, crop, crop), device=options.device)

        def run() -> None:
            with torch.autocast(options.device, torch.bfloat16):
                outputs = network(image)
            loss = segmentation_loss(outputs, mask, LossConfig()) if ours else F.cross_entropy(outputs.float(), mask)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        return run

    yield Table(
        f"One training step, DeepLabV3, ResNeSt-50, batch {batch}, {crop} x {crop}, bfloat16, channels-last",
        {
            "segkit": lambda: step(DeepLabV3("resnest50", CLASSES, aux=False), True),
            "segkit, with its auxiliary head": lambda: step(DeepLabV3("resnest50", CLASSES), True),
            "smp, cross entropy": lambda: step(smp_network(CLASSES), False),
        },
        memory=True,
        notes=["smp has no auxiliary head."],
    )


def export(options: argparse.Namespace) -> Iterator[Table]:
    """One stored image of 480 x 480 to labels, by the formats of `segkit export`."""
    if options.device != "cpu":
        return
    cpu, whole = torch.device("cpu"), get("whole")
    torch.manual_seed(0)  # the same weights for all
    network = trained(DeepLabV3("resnest50", CLASSES), cpu)
    image = torch.from_numpy(smooth(0))
    folder = tempfile.TemporaryDirectory()

    def ours(precision: str) -> Callable[[], Tensor]:
        dtype = convolution_dtype(precision, cpu)  # type: ignore[arg-type]
        form = network if dtype is None else inference_form(network, dtype)
        return torch.inference_mode()(lambda: predict(form, normalize(image), whole)[0])

    def theirs(suffix: str, precision: str) -> Callable[[], Tensor]:
        path = Path(folder.name) / f"{precision}{suffix}"
        parts = {"network": network.config, "normalization": IMAGENET.to_dict(), "label_space": None}
        calibration = Calibration(8, lambda i: smooth(i).astype(np.float32), lambda path: 0.0, 1.0, lambda line: None)
        deploy(path, Checkpoint(parts, network.state_dict()), network, Form(precision=precision), calibration)  # type: ignore[arg-type]
        file, values = open_network(path, None, "labels"), smooth(0).astype(np.float32)
        return lambda: torch.from_numpy(file.run(values, "labels")[0])

    yield Table(
        f"One stored image of {CROP} x {CROP} to labels, DeepLabV3, ResNeSt-50, {CLASSES} classes",
        {
            "segkit, exact": lambda: ours("exact"),
            "segkit, float32": lambda: ours("float32"),
            "segkit, by default": lambda: ours("auto"),
            "ONNX, float32": lambda: theirs(".onnx", "fp32"),
            "ONNX, int8": lambda: theirs(".onnx", "int8"),
            "OpenVINO, float32": lambda: theirs(".xml", "fp32"),
            "OpenVINO, bfloat16": lambda: theirs(".xml", "bf16"),
            "OpenVINO, int8": lambda: theirs(".xml", "int8"),
        },
        agree=True,
        reference="segkit, exact",
        notes=["int8 is calibrated on eight drawn images, and the weights are random: its agreement says nothing."],
    )


def smooth(seed: int) -> np.ndarray:
    """A drawn image, uint8 (1, 3, 480, 480)."""
    coarse = torch.randn(1, 3, 30, 30, generator=torch.Generator().manual_seed(seed))
    image = 120 + 60 * F.interpolate(coarse, (CROP, CROP), mode="bilinear")
    return image.clamp(0, 255).to(torch.uint8).numpy()


def precision(options: argparse.Namespace) -> str:
    """Labels and mIoU of a trained network, by precision."""
    assert options.images and options.masks, "--images and --masks say what the trained network is scored on"
    segmenters = {name: load(options.checkpoint, options.device, precision=name) for name in ("exact", "float32")}  # type: ignore[arg-type]
    segmenters["bfloat16"] = load(options.checkpoint, options.device, precision="bfloat16")
    classes = segmenters["exact"].label_space.num_classes
    counts = {name: torch.zeros(0) for name in segmenters}
    same, pixels = dict.fromkeys(segmenters, 0), 0
    for path, image in _images(options):
        mask = torch.from_numpy(np.array(read_label(options.masks / f"{path.stem}.png")))
        found = {name: segmenter.predict(image.permute(1, 2, 0).numpy()) for name, segmenter in segmenters.items()}
        pixels += mask.numel()
        for name, labels in found.items():
            new = confusion_counts(mask, torch.from_numpy(labels), classes)
            counts[name] = new if not counts[name].numel() else counts[name] + new
            same[name] += int((labels == found["exact"]).sum())
    lines = [[f"{options.checkpoint.name}, whole", "same label as exact, %", "mIoU, %"]]
    for name in segmenters:
        score = convention_scores(counts[name], "segkit").miou
        lines.append([name, percent(same[name] / pixels, 4), percent(score, 3)])
    return f"\n{markdown(lines)}"


# --- what they share


@torch.no_grad()
def trained(network: SegmentationModel, device: torch.device) -> SegmentationModel:
    """Eval mode, norms that are not the identity, and logits as a trained network's, in which classes alternate."""
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_var is not None:
            module.running_var.uniform_(0.5, 1.5, generator=generator)
    network.eval()
    logits = network(torch.randn(1, 3, 128, 128, generator=generator))["out"]
    classifier = [module for module in network.head.modules() if isinstance(module, nn.Conv2d)][-1]
    mean = logits.mean((0, 2, 3))  # (K,)
    scale = 3 / (logits - mean[:, None, None]).std()
    classifier.weight.mul_(scale)
    assert classifier.bias is not None
    classifier.bias.sub_(mean).mul_(scale)  # no class is everywhere
    return network.to(device)


def blobs(classes: int, height: int, width: int) -> Tensor:
    """Logits as a trained network's: large smooth areas of one class each, (1, K, h, w)."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(1, classes, max(height // 12, 2), max(width // 12, 2), generator=generator)
    fine = torch.randn(1, classes, height, width, generator=generator)
    return 8 * F.interpolate(coarse, (height, width), mode="bicubic", align_corners=False) + 0.3 * fine


def _images(options: argparse.Namespace) -> list[tuple[Path, Tensor]]:
    """uint8 (3, H, W) with their paths."""
    if options.images is None:
        noise = np.random.default_rng(0).integers(0, 256, (3, 512, 683), np.uint8)
        return [(Path("noise"), torch.from_numpy(noise))]
    found = sorted(path for path in options.images.iterdir() if path.suffix in (".png", ".jpg"))
    return [(path, torch.from_numpy(np.array(read_image(path))).permute(2, 0, 1)) for path in found]


def _synchronised(run: Callable[[], object], device: str) -> Callable[[], object]:
    if device == "cpu":
        return run

    def finished() -> object:
        result = run()
        torch.cuda.synchronize()
        return result

    return finished


class _Kept:
    """Keeps what the last run returned, so that labels are compared without another run."""

    def __init__(self, run: Callable[[], object]) -> None:
        self._run = run
        self.result: object = None

    def __call__(self) -> object:
        self.result = self._run()
        return self.result


def show(table: Table, options: argparse.Namespace) -> str:
    """Measure a table and lay it out."""
    runs = {name: _Kept(_synchronised(make(), options.device)) for name, make in table.make.items()}
    seconds = measure(runs, table.rounds or options.rounds)
    more: dict[str, dict[str, str]] = {}
    if table.agree:
        reference = runs[table.reference].result
        more["agrees, %"] = {name: _agreement(run.result, reference) for name, run in runs.items()}
    if table.memory:
        more["peak memory, MB"] = {name: _peak_elsewhere(table.title, name, options) for name in runs}
    shown = times_table(table.title, "ms", seconds, lambda s: 1e3 * s, 1, more)
    del runs
    gc.collect()
    return "\n".join([shown, *([""] if table.notes else []), *table.notes])


def _agreement(labels: object, expected: object) -> str:
    assert isinstance(labels, Tensor) and isinstance(expected, Tensor)
    return f"{100 * (labels == expected).float().mean().item():.4f}"


def _peak_elsewhere(title: str, name: str, options: argparse.Namespace) -> str:
    """Peak memory of one run in a process of its own, MB."""
    command = [sys.executable, __file__, "--device", options.device, "--peak-of", title, name]
    for key in ("checkpoint", "images"):
        if getattr(options, key):
            command += [f"--{key}", str(getattr(options, key))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return f"{float(done.stdout.split()[-1]) / 1e6:.0f}" if done.returncode == 0 else "failed"


if __name__ == "__main__":
    main()
