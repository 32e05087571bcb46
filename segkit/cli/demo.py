"""`segkit demo`: draws a street-scene data set, trains on it, tests it multi-scale, and leaves a folder to look at.

Everything goes through the commands that a user would type, with a recipe that is written beside the results.
"""

import argparse
import json
import shlex
import time
from pathlib import Path

import yaml

from segkit.cli.parser import Parser
from segkit.cli.words import say
from segkit.errors import InputError
from segkit.files import check_writable, free_path, write_text
from segkit.text import percent

DESCRIPTION = "Draw a data set of street scenes, train a small ResNeSt + DeepLabV3 on it, test it, draw the results."

RECIPE = """\
# The recipe of `segkit demo`, to be changed and run again:
#   segkit fit --config {recipe} --run_dir {output}/another_run
data:
  class_path: SyntheticDataModule
  init_args:
    root: {output}/data
    seed: {seed}
    num_train: 160
    batch_size: 8
    base_size: 256
    crop_size: 128
    scale_range: [0.7, 1.5]
    num_workers: 0 # the images are tiny: reading them is faster than handing them over
model:
  network:
    class_path: DeepLabV3
    init_args:
      encoder: resnest14_tiny
      output_stride: 8
  optim:
    name: adamw
    lr: 4.0e-3
    reference_batch: 0
    head_lr_mult: 1
    weight_decay: 0.01
    schedule: cosine
    warmup_steps: 20
protocol: {{name: demo-ms-flip, scales: [0.75, 1.0, 1.25, 1.5], flip: true}}
trainer:
  devices: 1
  max_epochs: {epochs}
  check_val_every_n_epoch: 5
  num_sanity_val_steps: 0
  log_every_n_steps: 10
  enable_model_summary: false
"""


def main(args: list[str] | None = None) -> int:
    """Run `segkit demo`; see `--help`."""
    options = _parse(args)
    output = Path(options.output)
    check_writable(output)
    run = _new_run(output)
    start = time.perf_counter()
    recipe = output / "demo.yaml"
    write_text(recipe, RECIPE.format(recipe=recipe, output=output, seed=options.seed, epochs=options.epochs))
    # Lightning takes seconds to import; `segkit demo --help` does not need it.
    from segkit.cli import lightning

    checkpoint = run / "checkpoints" / "last.ckpt"
    fit = ["fit", "--config", str(recipe), "--run_dir", str(run)]
    test = ["test", "--config", str(recipe), "--ckpt_path", str(checkpoint), "--run_dir", str(run)]
    for step, command in (("1/3  training:", fit), ("2/3  testing: ", test)):
        say(f"{step} segkit {shlex.join(command)}")
        code = lightning.main(command)
        if code:  # stopped by a signal, which has been said
            return code
    say(f"3/3  drawing:  {run / 'images'}")
    _draw_panels(output / "data", recipe, checkpoint, run / "images", options.images)
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


def _draw_panels(data: Path, recipe: Path, checkpoint: Path, folder: Path, count: int) -> None:
    """Input | truth | prediction with a legend, for the first test images."""
    from segkit.data.sets.synthetic import SyntheticDataModule
    from segkit.inference.protocols import Protocol
    from segkit.inference.segmenter import load
    from segkit.io import write_png
    from segkit.visualization import panel

    protocol = Protocol(**yaml.safe_load(recipe.read_text(encoding="utf-8"))["protocol"])
    segmenter = load(checkpoint, protocol=protocol)
    street = SyntheticDataModule(data)
    for sample in street.find_samples("test")[:count]:
        image, truth = street.read(sample)
        drawn = panel(image, segmenter.predict(image), segmenter.class_names, segmenter.palette, truth=truth)
        write_png(folder / f"{Path(sample.name).name}.png", drawn)


def _summary(output: Path, run: Path, checkpoint: Path, seconds: float) -> str:
    miou = json.loads((run / "result.json").read_text(encoding="utf-8"))["scores"]["mIoU"]
    return f"""
test mIoU {percent(miou)}, {seconds:.0f} s in all. Look at
  {run / "images"}     input | truth | prediction
  {run / "curves.png"}   loss, learning rate, validation mIoU
  {run / "result.json"}  protocol, every class, versions
and go on with
  segkit infer {output / "data" / "leftImg8bit" / "test"} --checkpoint {checkpoint} --output {output / "labels"}"""
