"""`segkit benchmark`: several checkpoints under several protocols on one data set, in one table.

The table is written after every row, and rows that are already in it are not computed again.
"""

import csv
import io
import json
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from segkit.cli.arguments import SegmentationParser, explain, flatten
from segkit.cli.lightning import SHORT_NAMES
from segkit.data.datamodule import SegmentationDataModule
from segkit.errors import InputError
from segkit.evaluation.confusion import ConfusionMatrix
from segkit.evaluation.results import number_or_null, versions
from segkit.inference.engine import predict
from segkit.inference.segmenter import Segmenter, load
from segkit.io import write_json, write_text
from segkit.ops.normalize import normalize

COLUMNS = ("checkpoint", "protocol", "mIoU", "pixel accuracy", "mean accuracy", "M params", "pictures", "pictures/s")


def main(args: Sequence[str]) -> int:
    """Run `segkit benchmark`; see `--help`."""
    options = _parse(args)
    output = Path(options["output"])
    data: SegmentationDataModule = options["data"]
    data.setup("test")
    rows = _earlier_rows(output / "benchmark.json")
    for path, protocol in product(options["checkpoints"], options["protocol"]):
        segmenter = load(path, options["device"], protocol)
        key = _key(path, segmenter, data, options["limit"])
        if any(row["key"] == key for row in rows):
            tqdm.write(f"{path}, {protocol}: already in {output / 'benchmark.json'}")
            continue
        rows.append({"key": key, **_row(path, segmenter, data, options["limit"])})
        _write(output, rows)
    tqdm.write(f"\n{_markdown(rows)}\n{output / 'benchmark'}.md, .csv, .json")
    return 0


def _parse(args: Sequence[str]) -> Any:
    parser = SegmentationParser("segkit benchmark", description=" ".join((__doc__ or "").split("\n\n")[0].split()))
    parser.add_argument("checkpoints", nargs="+", help="checkpoints that `segkit fit` wrote")
    parser.add_argument("--protocol", nargs="+", default=["whole"], help="one or more: whole, ms-flip, ...")
    parser.add_argument("--output", default="benchmark", help="folder of the table")
    parser.add_argument("--device", type=str | None, default=None, help="cpu, cuda, ...; the GPU where there is one")
    parser.add_argument("--limit", type=int | None, default=None, help="pictures; the row is then marked partial")
    parser.add_lightning_class_args(SegmentationDataModule, "data", subclass_mode=True)
    try:
        config = parser.parse_args(list(args))
    except InputError as error:
        raise InputError(explain(str(error), flatten(parser.get_defaults().as_dict()), SHORT_NAMES)) from error
    if config["limit"] is not None and config["limit"] < 1:
        raise InputError("--limit must be 1 or more")
    return parser.instantiate_classes(config)


def _key(path: str, segmenter: Segmenter, data: SegmentationDataModule, limit: int | None) -> dict[str, Any]:
    """What a row is a property of: another file, protocol, data set or number of pictures is another row."""
    stat = Path(path).stat()
    return {
        "checkpoint": [str(path), stat.st_size, stat.st_mtime_ns],
        "protocol": segmenter.protocol.to_dict(),
        "data": [type(data).__name__, str(data.root), len(data.datasets["test"])],
        "limit": limit,
    }


@torch.inference_mode()
def _row(path: str, segmenter: Segmenter, data: SegmentationDataModule, limit: int | None) -> dict[str, Any]:
    if data.num_classes != len(segmenter.class_names):
        raise InputError(f"{path}: {len(segmenter.class_names)} classes, but the data has {data.num_classes}")
    confusion = ConfusionMatrix(data.num_classes, segmenter.device)
    count = min(limit or len(data.datasets["test"]), len(data.datasets["test"]))
    start = time.perf_counter()
    with tqdm(total=count, unit="picture", desc=f"{Path(path).name} {segmenter.protocol.name}") as bar:
        for batch in data.test_dataloader():
            image = normalize(batch["image"].to(segmenter.device), segmenter.normalization)
            labels = predict(segmenter.network, image, segmenter.protocol, normalization=segmenter.normalization)
            confusion.update(batch["mask"].to(segmenter.device), labels)
            bar.update()
            if bar.n == count:
                break
    scores = confusion.scores()
    parameters = sum(p.numel() for p in segmenter.network.parameters())
    return {
        "checkpoint": str(path),
        "protocol": segmenter.protocol.name,
        "mIoU": scores.miou,
        "pixel accuracy": scores.pixel_accuracy,
        "mean accuracy": scores.mean_accuracy,
        "M params": parameters / 1e6,
        "pictures": count,
        "partial": count < len(data.datasets["test"]),
        "pictures/s": count / (time.perf_counter() - start),
        "class IoU": dict(zip(data.class_names, map(number_or_null, scores.class_iou), strict=True)),
        "device": str(segmenter.device),
        "versions": versions(),
    }


def _earlier_rows(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    try:
        return list(json.loads(path.read_text(encoding="utf-8"))["rows"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not a table of `segkit benchmark`; give another --output") from error


def _write(output: Path, rows: list[dict[str, Any]]) -> None:
    write_json(output / "benchmark.json", {"rows": rows})
    write_text(output / "benchmark.md", _markdown(rows) + "\n")
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    writer.writerows([row[c] for c in COLUMNS] for row in rows)
    write_text(output / "benchmark.csv", text.getvalue())


def _markdown(rows: list[dict[str, Any]]) -> str:
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    lines += ["| " + " | ".join(_cell(row, column) for column in COLUMNS) + " |" for row in rows]
    return "\n".join(lines)


def _cell(row: dict[str, Any], column: str) -> str:
    value = row[column]
    if column in ("mIoU", "pixel accuracy", "mean accuracy"):
        return f"{100 * value:.2f}"
    if column == "pictures" and row["partial"]:
        return f"{value} (partial)"
    return f"{value:.2f}" if isinstance(value, float) else str(value)
