"""`segkit demo`: draws a data set of street scenes, trains on it, tests multi-scale, and draws the results.

It runs the commands that a user would type, with a recipe that comes with segkit.
"""

import argparse
import json
import shlex
import time
from pathlib import Path

from segkit.cli.parser import Parser
from segkit.cli.words import say
from segkit.errors import InputError
from segkit.files import check_writable, free_path
from segkit.text import percent

DESCRIPTION = "Draw a data set of street scenes, train a small ResNeSt + DeepLabV3 on it, test it, draw the results."

RECIPE = "demo/deeplabv3_resnest14_tiny"


def main(args: list[str] | None = None) -> int:
    """Run `segkit demo`; see `--help`."""
    options = _parse(args)
    output = Path(options.output)
    check_writable(output)
    run = _new_run(output)
    start = time.perf_counter()
    # Lightning takes seconds to import; `segkit demo --help` does not need it.
    from segkit.cli import lightning

    checkpoint = run / "checkpoints" / "last.ckpt"
    data = ["--data.root", str(output / "data"), "--data.seed", str(options.seed)]
    shared = ["--config", RECIPE, *data, "--run_dir", str(run)]
    fit = ["fit", *shared, "--trainer.max_epochs", str(options.epochs)]
    test = ["test", *shared, "--ckpt_path", str(checkpoint), "--report"]
    for step, command in (("1/3  training:", fit), ("2/3  testing: ", test)):
        say(f"{step} segkit {shlex.join(command)}")
        code = lightning.main(command)
        if code:  # stopped by a signal; the command has said so
            return code
    say(f"3/3  drawing:  {run / 'images'}")
    _draw_examples(output / "data", checkpoint, run / "images", options.images)
    say(_summary(output, run, checkpoint, time.perf_counter() - start))
    return 0


def _parse(args: list[str] | None) -> argparse.Namespace:
    parser = Parser("segkit demo", description=DESCRIPTION)
    parser.add_argument("--output", default="demo", help="folder for data and results (default: demo)")
    parser.add_argument("--seed", type=int, default=0, help="of the data set (default: 0)")
    parser.add_argument("--epochs", type=int, default=56, help="of training (default: 56, minutes on a CPU)")
    parser.add_argument("--images", type=int, default=6, help="test images to draw (default: 6)")
    options = parser.parse_args(args)
    if min(options.epochs, options.images) < 1 or options.seed < 0:
        raise InputError("--epochs and --images must be 1 or more, --seed 0 or more")
    return options


def _new_run(output: Path) -> Path:
    """`OUTPUT/run`, or `run-2`, `run-3`, ...: an earlier run is never touched."""
    return free_path(output / "run")


def _draw_examples(data: Path, checkpoint: Path, folder: Path, count: int) -> None:
    """Image | ground truth | prediction with a legend, for the first test images."""
    from segkit.data.sets.synthetic import SyntheticDataModule
    from segkit.inference.protocols import from_fields
    from segkit.inference.segmenter import load
    from segkit.io import write_png
    from segkit.recipes import read_recipe
    from segkit.training.views.overlays import Example, draw_examples
    from segkit.visualization import magnified

    segmenter = load(checkpoint, protocol=from_fields(read_recipe(RECIPE).content["protocol"]))
    street = SyntheticDataModule(data)
    for sample in street.find_samples("test")[:count]:
        image, truth = street.read(sample)
        assert truth is not None
        drawn = (magnified(array, 2) for array in (image, truth, segmenter.predict(image)))
        write_png(folder / f"{Path(sample.name).name}.png", draw_examples([Example("", *drawn)], segmenter.label_space))


def _summary(output: Path, run: Path, checkpoint: Path, seconds: float) -> str:
    miou = json.loads((run / "result.json").read_text(encoding="utf-8"))["scores"]["mIoU"]
    return f"""
test mIoU {percent(miou)}, {seconds:.0f} s in all. Look at
  {run / "images"}     image | ground truth | prediction
  {run / "report.html"}  all of it on one page: every class, the worst images, how sure, to look at in a browser
  {run / "curves.png"}   loss, learning rate, validation mIoU
  {run / "result.json"}  protocol, every class, versions
and continue with
  segkit infer {output / "data" / "leftImg8bit" / "test"} --checkpoint {checkpoint} --output {output / "labels"}"""
