"""`segkit benchmark explain`: why a measured mIoU is not the claimed one."""

from collections.abc import Sequence
from pathlib import Path

import torch

from segkit.bars import Bar
from segkit.benchmark.explain.judge import Judge
from segkit.benchmark.explain.search import Explanation, explain, report
from segkit.benchmark.explain.setting import Setting
from segkit.benchmark.models.opening import open_model
from segkit.benchmark.models.options import ModelOptions
from segkit.benchmark.plan import PlannedRow
from segkit.benchmark.rows import matched
from segkit.cli.benchmark.command import explain_parser
from segkit.cli.data.source import open_any
from segkit.cli.parser import split_options
from segkit.cli.words import say, say_above_bar
from segkit.data.datamodule import SegmentationDataModule
from segkit.data.samplers import only
from segkit.errors import InputError
from segkit.evaluation.conventions import convention
from segkit.evaluation.plots import save_figure, waterfall_figure
from segkit.evaluation.results import versions
from segkit.files import check_writable, write_json, write_text
from segkit.inference import protocols


def main(args: Sequence[str]) -> int:
    """Run `segkit benchmark explain`; see `--help`."""
    own, of_data = split_options(args)
    options = explain_parser().parse_args(own)
    if not of_data:
        raise InputError("no data to score on; give --data (see `segkit benchmark explain --help`)")
    check_writable(options.output)
    convention(options.metric)
    data = open_any(of_data, "segkit benchmark explain")
    if not isinstance(data, SegmentationDataModule):
        raise InputError(f"{type(data).__name__}: has no masks; explain is for segmentation")
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    data.setup("test")
    protocol, known = protocols.get(options.protocol), ModelOptions.read(vars(options), "")
    model = open_model(options.model, device, protocol, known)
    images = [
        (batch["name"][0], batch["image"][0].permute(1, 2, 0).numpy(), batch["mask"][0])
        for batch in only(data.test_dataloader(), range(min(options.limit, len(data.datasets["test"]))))
    ]
    if len(images) < 2:
        raise InputError(f"{len(images)} image: what is chance needs 2 or more to be told")
    model.expect([name for name, _, _ in images])
    if model.segmenter is None:  # its first logits tell how many classes there are
        model.labels(images[0][1], images[0][0])
    match = matched(PlannedRow(options.model, options.model, None, data, protocol, options.metric, known), model)
    setting = Setting(model.segmenter.protocol if model.segmenter else None, metric=options.metric)
    with Bar(unit="forward", desc="changes") as bar:
        claimed = None if options.claimed is None else options.claimed / 100
        found = explain(Judge(model, match, images, data.num_classes, bar.update), setting, claimed)
    _write(options.output, found, options.model, len(images))
    for note in (match.note, f"{len(images)} images of {data.root}"):
        if note:
            say_above_bar(f"segkit benchmark explain: note: {note}")
    say(f"{report(found)}\n\n{options.output / 'explain'}.md, .json, .png")
    return 0


def _write(folder: Path, found: Explanation, model: str, images: int) -> None:
    write_text(folder / "explain.md", report(found) + "\n")
    plain = {
        "model": model,
        "images": images,
        "measured": found.measured,
        "claimed": found.claimed,
        "steps": [step.to_dict() for step in found.steps],
        "alone": [step.to_dict() for step in found.alone],
        "versions": versions(),
    }
    write_json(folder / "explain.json", plain)
    bars = [(step.what, step.miou) for step in found.steps]
    save_figure(waterfall_figure(found.measured, bars, found.claimed), folder / "explain.png")
