"""How time and memory of inference grow with pixels, classes, views and batch: prints Markdown tables, draws a PNG.

    python scripts/benchmark_growth.py                          up to 48 megapixels; on 2 cores half an hour
    python scripts/benchmark_growth.py --device cuda --most 12
    python scripts/benchmark_growth.py --only pixels --memory 2GB      large images are seen in tiles

Each row is a fresh process that labels noise with a network of random weights, after an image of 64 x 64 that makes
the libraries load what they need. Time is the median of 3 runs, above 5 megapixels on the CPU of one. Peak memory is
that of the first run above what was held before it: resident memory, on CUDA the allocator's. The bound beside it is
the formula of `segkit.inference.tiling.budget` without the parameters, which were there before.

The formula counts tensors. Resident memory has besides what glibc keeps of freed ones of less than 32 MB: 100 MB and
more, which shows most at one megapixel. With MALLOC_MMAP_THRESHOLD_=131072 in the environment it keeps none of them,
and a run takes longer.

  pixels   whole images of 0.25 megapixels to --most
  classes  2 to 1000
  views    the whole image, mirrored too, and so at up to six scales (`ms-flip`)
  batch    images of one size in one call
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmark_common import header, peak_memory
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator
from torch import Tensor, nn

from segkit.bars import Bar
from segkit.evaluation.plots import BLUE, GREY, VERMILION, save_figure
from segkit.inference.engine import Task, default_strip, predict, resolve
from segkit.inference.protocols import Protocol, get
from segkit.inference.tiling.budget import Budget, default_budget, held_bytes
from segkit.inference.tiling.footprint import footprint
from segkit.inference.views import view_size
from segkit.machine import format_bytes, parse_bytes
from segkit.models.inference_form import convolution_dtype, inference_form
from segkit.models.segmentation import DeepLabV3
from segkit.ops.normalize import normalize
from segkit.ops.upsample_argmax import argmax_bytes
from segkit.text import markdown

PACKAGES = ("segkit", "python", "torch", "timm", "numpy")
NETWORKS = {"resnest50": "ResNeSt-50", "resnest14_tiny": "the tiny ResNeSt"}
CLASSES = 150

PIXELS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)  # megapixels, and --most itself
CLASS_COUNTS = (2, 5, 19, 50, 150, 400, 1000)
SCALES = (1.0, 0.75, 1.25, 0.5, 1.5, 1.75)  # those of ms-flip; the first n of them are a protocol of n scales
BATCHES = (1, 2, 4, 8, 16)
OF_OTHER_AXES = 0.5  # megapixels of an image; less where --most is small

MANY_PIXELS = 5e6  # that the network sees; from here on one run on a CPU is long enough to be measured alone
AXES = {
    "pixels": "size of the image, megapixels",
    "classes": "classes",
    "views": "views: scales x flip",
    "batch": "images in one call",
}


@dataclass(frozen=True)
class Point:
    """What one row measures.

    Attributes:
        axis: of `AXES`.
        x: its place along the axis.
        size: (height, width) of the images.
        scales: of the protocol, whose views are whole images.
        flip: whether it has mirrored ones too.
    """

    axis: str
    x: float
    size: tuple[int, int]
    classes: int = CLASSES
    batch: int = 1
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False

    @property
    def protocol(self) -> Protocol:
        """`whole`, or `ms-flip` with other scales."""
        return Protocol("ms-flip", self.scales, flip=True) if self.flip else get("whole")

    @property
    def views(self) -> list[tuple[int, int]]:
        """(height, width) of each scale."""
        return [view_size(self.protocol, scale, self.size) for scale in self.scales]

    @property
    def seen(self) -> int:
        """Pixels that the network sees, without those that tiles overlap by."""
        return self.batch * (1 + self.flip) * sum(height * width for height, width in self.views)


@dataclass(frozen=True)
class Row:
    """What was measured.

    Attributes:
        seconds: of one call, the median.
        peak: bytes.
        bound: bytes that the formula allows.
        tiled: whether the network saw parts of an image.
        precision: that the network ran in.
    """

    point: Point
    seconds: float
    peak: float
    bound: float
    tiled: bool
    precision: str


def main() -> None:
    """Measure, print and draw."""
    options = parse()
    if options.point:
        print(json.dumps(measured(read_point(options.point), options)))
        return
    print(header(PACKAGES), flush=True)
    rows: list[Row] = []
    wanted = list(points(options))
    with Bar(total=len(wanted), unit="row", file=sys.stderr) as bar:
        for axis in (name for name in AXES if name in options.only):
            failures = []
            for point in (one for one in wanted if one.axis == axis):
                bar.set_postfix_str(f"{axis} {point.x:g}")
                found = in_fresh_process(point)
                if isinstance(found, Row):
                    rows.append(found)
                else:
                    failures.append(f"{axis} {point.x:g}: failed: {found}")
                bar.update()
            print(table(axis, [row for row in rows if row.point.axis == axis]), *failures, sep="\n", flush=True)
            if rows:  # after each axis: whoever has no time for the others keeps these
                save_figure(draw(rows, options), options.output)
    if not rows:
        sys.exit("nothing could be measured")
    print(f"\n{verdict(rows)}")


def parse() -> argparse.Namespace:
    """What is measured, on what."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=tuple(AXES), default=list(AXES))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--network", choices=tuple(NETWORKS), default="resnest50", help="the encoder of a DeepLabV3")
    parser.add_argument("--precision", choices=("auto", "exact", "float32", "bfloat16"), default="auto")
    parser.add_argument("--most", type=float, default=48.0, metavar="MEGAPIXELS", help="of one call; 48 by default")
    parser.add_argument("--memory", type=parse_bytes, metavar="SIZE", help="as 2GB; by default 0.7 of what is free")
    parser.add_argument("--repeats", type=int, help="runs of each row")
    parser.add_argument("--output", type=Path, default=Path("growth.png"))
    parser.add_argument("--point", help=argparse.SUPPRESS)
    return parser.parse_args()


def points(options: argparse.Namespace) -> Iterator[Point]:
    """All rows that are wanted, the axes in their order."""
    base = min(OF_OTHER_AXES, options.most / 4)
    size = image_size(base)
    sizes = [megapixels for megapixels in PIXELS if megapixels < options.most] + [options.most]
    made = [Point("pixels", megapixels, image_size(megapixels)) for megapixels in sizes]
    made += [Point("classes", count, size, count) for count in CLASS_COUNTS]
    made += [Point("views", 1, size)]
    made += [Point("views", 2 * n, size, scales=SCALES[:n], flip=True) for n in range(1, len(SCALES) + 1)]
    made += [Point("batch", count, size, batch=count) for count in BATCHES if count * base <= options.most]
    return (point for point in made if point.axis in options.only)


def image_size(megapixels: float) -> tuple[int, int]:
    """(height, width), 3 to 4."""
    height = round((megapixels * 1e6 * 3 / 4) ** 0.5)
    return height, round(height * 4 / 3)


def in_fresh_process(point: Point) -> Row | str:
    """The row, or the last line of the process that failed."""
    command = [sys.executable, __file__, *sys.argv[1:], "--point", json.dumps(asdict(point))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return (done.stderr.strip() or f"exit status {done.returncode}").splitlines()[-1]
    return Row(point, **json.loads(done.stdout.splitlines()[-1]))


def read_point(text: str) -> Point:
    """What `in_fresh_process` wrote."""
    fields = json.loads(text)
    return Point(**(fields | {"size": tuple(fields["size"]), "scales": tuple(fields["scales"])}))


# --- in a process of its own


def measured(point: Point, options: argparse.Namespace) -> dict[str, Any]:
    """The fields of `Row` but its point."""
    device = torch.device(options.device)
    network: nn.Module = DeepLabV3(options.network, point.classes).eval().to(device)
    dtype = convolution_dtype(options.precision, device)
    network = network if dtype is None else inference_form(network, dtype)
    budget = options.memory or default_budget(device)
    noise = torch.randint(0, 256, (point.batch, 3, *point.size), dtype=torch.uint8).to(device)
    seconds: list[float] = []

    def run(image: Tensor = noise) -> None:
        start = time.perf_counter()
        predict(network, normalize(image), point.protocol, limits=Budget(memory=budget)).cpu()
        seconds.append(time.perf_counter() - start)

    run(noise[:, :, :64, :64])
    footprint(network)  # measured by a forward, which `inputs` is not to have
    inputs = watched(network)
    peak = peak_memory(run, options.device)
    for _ in range((options.repeats or (1 if device.type == "cpu" and point.seen > MANY_PIXELS else 3)) - 1):
        run()
    return {
        "seconds": statistics.median(seconds[1:]),
        "peak": peak,
        "bound": bound(network, point, max(batch * height * width for batch, height, width in inputs), budget),
        "tiled": any((height, width) not in point.views for _, height, width in inputs),
        "precision": "exact" if dtype is None else str(dtype).removeprefix("torch."),
    }


def watched(network: nn.Module) -> set[tuple[int, int, int]]:
    """Filled, as forwards run, with the (batch, height, width) of their inputs."""
    inputs: set[tuple[int, int, int]] = set()

    def note(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        image = arguments[0]
        if not image.is_meta:  # on which tiles are planned
            inputs.add((image.shape[0], image.shape[2], image.shape[3]))

    network.register_forward_pre_hook(note)
    return inputs


def bound(network: nn.Module, point: Point, largest: int, budget: int) -> float:
    """Bytes that one call may take above the parameters, by the formula of `segkit.inference.tiling.budget`.

    Args:
        network: what runs.
        point: what it is given.
        largest: pixels of its largest forward.
        budget: what all of it is kept below.
    """
    of_network, device = footprint(network), next(network.parameters()).device
    task = Task(torch.Size((point.batch, 3, *point.size)), device, resolve(point.protocol, network), point.size)
    strip, held = default_strip(device), held_bytes(of_network, task) - of_network.parameters
    fusion = 8 * strip if point.flip else argmax_bytes(point.classes, point.batch, point.size)
    return held + max(of_network.per_pixel * largest, min(fusion, budget - of_network.parameters - held))


# --- what is shown


def table(axis: str, rows: Sequence[Row]) -> str:
    """The rows of one axis."""
    names = [AXES[axis], "image", "network sees, MP", "seconds", "seconds per MP seen"]
    names += ["peak memory, MB", "bound by the formula, MB", "in tiles"]
    lines = [names]
    for row in rows:
        seen = row.point.seen / 1e6
        cells = [f"{row.point.x:g}", "{} x {}".format(*row.point.size), f"{seen:.2f}", f"{row.seconds:.3f}"]
        cells += [f"{row.seconds / seen:.3f}", f"{row.peak / 1e6:.0f}", f"{row.bound / 1e6:.0f}"]
        cells += ["yes" if row.tiled else "no"]
        lines.append(cells)
    return f"\n{markdown(lines, left=())}"


def verdict(rows: Sequence[Row]) -> str:
    """How time and memory grow with the pixels, and whether the formula holds."""
    of_pixels = [row for row in rows if row.point.axis == "pixels"]
    sentences = []
    if len(of_pixels) > 2:
        pixels = np.log([row.point.seen for row in of_pixels])
        time_power = np.polyfit(pixels, np.log([row.seconds for row in of_pixels]), 1)[0]
        sentences.append(f"Fitted over all sizes, time grows as pixels^{time_power:.2f}.")
    above = {f"{row.point.axis} {row.point.x:g}": row.peak - row.bound for row in rows if row.peak > row.bound}
    most = f"Above the bound, by at most {format_bytes(max(above.values()))}: {', '.join(above)}." if above else ""
    sentences.append(most or "No peak is above its bound.")
    return " ".join(sentences)


def draw(rows: Sequence[Row], options: argparse.Namespace) -> Figure:
    """A panel for each axis, time above memory; all panels share their scales of time and of memory."""
    drawn = [axis for axis in AXES if any(row.point.axis == axis for row in rows)]
    figure = Figure(figsize=(1.2 + 3.7 * max(len(drawn), 2), 7), layout="constrained")
    grid = figure.subplots(2, len(drawn), sharex="col", sharey="row", squeeze=False)
    names: dict[str, Any] = {}  # to be explained, each once
    for (upper, lower), axis in zip(grid.T, drawn, strict=True):
        of_axis = [row for row in rows if row.point.axis == axis]
        draw_axis(upper, lower, of_axis)
        lower.set_xlabel(AXES[axis])
        upper.set_title(about(of_axis[0].point), size=9)
        for axes in (upper, lower):
            axes.grid(alpha=0.3)
            axes.spines[["top", "right"]].set_visible(False)
            handles, labels = axes.get_legend_handles_labels()
            names |= dict(zip(labels, handles, strict=True))
    grid[0, 0].set_ylabel("seconds")
    grid[1, 0].set_ylabel("peak memory beside the parameters")
    scale(grid[0, 0], [row.seconds for row in rows], "{:g}".format)
    scale(grid[1, 0], [value for row in rows for value in (row.peak, row.bound)], format_bytes)
    figure.suptitle(heading(rows[0].precision, options), size=12)
    figure.legend(names.values(), names, frameon=False, loc="outside lower center", ncols=6 if len(drawn) > 2 else 2)
    return figure


def heading(precision: str, options: argparse.Namespace) -> str:
    """Of the whole image."""
    threads = torch.get_num_threads()
    where = f"a CPU with {threads} thread{'s' * (threads > 1)}"
    if options.device == "cuda":
        where = torch.cuda.get_device_name()
    text = f"DeepLabV3, {NETWORKS[options.network]}, output stride 8, {precision}, on {where}"
    return text + (f", within {format_bytes(options.memory)}" if options.memory else "")


def about(point: Point) -> str:
    """What all points of a panel have in common."""
    parts = [] if point.axis == "classes" else [f"{CLASSES} classes"]
    if point.axis != "pixels":
        parts.append("{} x {} pixels".format(*point.size))
    return ", ".join([*parts, "whole, then ms-flip" if point.axis == "views" else "whole"])


def draw_axis(upper: Axes, lower: Axes, rows: Sequence[Row]) -> None:
    """Time with the straight line, memory with its bound."""
    x = [row.point.x for row in rows]
    seen = [row.point.seen for row in rows]
    rate = statistics.median(row.seconds / pixels for row, pixels in zip(rows, seen, strict=True))
    line = [rate * pixels for pixels in seen]
    upper.plot(x, line, color=GREY, linestyle="--", label="in proportion to the pixels that the network sees")
    lower.plot(x, [row.bound for row in rows], color=GREY, linestyle=":", label="bound by the formula")
    for axes, colour, name in ((upper, BLUE, "time"), (lower, VERMILION, "memory")):
        y = [row.seconds if axes is upper else row.peak for row in rows]
        axes.plot(x, y, color=colour, marker="o", markersize=5, label=f"measured {name}")
        tiled = [(x_, y_) for x_, y_, row in zip(x, y, rows, strict=True) if row.tiled]
        if tiled:
            style: dict[str, Any] = {"linestyle": "none", "markeredgecolor": colour, "markerfacecolor": "white"}
            axes.plot(*zip(*tiled, strict=True), marker="o", markersize=5, label=f"{name}, seen in tiles", **style)
        axes.set_xscale("log")
        axes.set_xticks(x, [f"{value:g}" for value in x], size=8)
        axes.xaxis.set_minor_locator(NullLocator())


def scale(axes: Axes, values: Sequence[float], text: Any) -> None:
    """A logarithmic axis with enough ticks, whatever its span."""
    axes.set_yscale("log")
    few = max(values) < 200 * min(values)
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if few else (1.0,)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: text(value)))
    axes.yaxis.set_minor_formatter(NullFormatter())


if __name__ == "__main__":
    main()
