"""configs/imagenet: the authors' commands, headers that tell the truth, networks of the published size."""

import re
from functools import cache
from typing import Any

import pytest
import torch
from parsed import stopped_before_building

from segkit.benchmark.cost import flops, parameters
from segkit.benchmark.plan import read_experiment
from segkit.cli.classification import ClassificationCLI
from segkit.cli.restore import is_of_classification
from segkit.data.imagenet.crops import CentreCrop
from segkit.recipes import CONFIGS, read_recipe

RECIPES = sorted(CONFIGS.glob("imagenet/*.yaml"))
A_STEP = 2048  # images
PUBLISHED = {  # zhanghang1989/ResNeSt, README.md and ablation.md
    "resnest50": (81.03, 224), "resnest101": (82.83, 256), "resnest200": (83.84, 320), "resnest269": (84.54, 416),
    "resnest50_fast_1s1x64d": (80.33, 224), "resnest50_fast_2s1x64d": (80.53, 224),
    "resnest50_fast_4s1x64d": (80.76, 224), "resnest50_fast_1s2x40d": (80.59, 224),
    "resnest50_fast_2s2x40d": (80.61, 224), "resnest50_fast_4s2x40d": (81.14, 224),
    "resnest50_fast_1s4x24d": (80.99, 224),
}  # fmt: skip
# Millions of parameters and multiplications (GMAC at 224) of ablation.md, and the paper's for the first.
COSTS = {
    "resnest50": (27.5, 5.39), "resnest50_fast_1s1x64d": (26.3, 4.34), "resnest50_fast_2s1x64d": (27.5, 4.34),
    "resnest50_fast_4s1x64d": (31.9, 4.35), "resnest50_fast_1s2x40d": (25.9, 4.38),
    "resnest50_fast_2s2x40d": (26.9, 4.38), "resnest50_fast_4s2x40d": (30.4, 4.41),
    "resnest50_fast_1s4x24d": (25.7, 4.42),
}  # fmt: skip

parse = cache(stopped_before_building)
QUICK = ("resnest50", "resnest200", "resnest50_fast_2s1x64d")  # one of each kind


def each(names: list[str]) -> list[Any]:
    return [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in names]


each_recipe = pytest.mark.parametrize("name", each([path.stem for path in RECIPES]))


def test_all_published_networks_are_there() -> None:
    assert {path.stem for path in RECIPES} == PUBLISHED.keys()


@pytest.mark.slow
@each_recipe
def test_a_recipe_is_the_authors_command(name: str) -> None:
    path = CONFIGS / f"imagenet/{name}.yaml"
    assert is_of_classification(["fit", "--config", str(path)])
    config: Any = parse(ClassificationCLI, "--config", str(path))
    network, optim, data = config.model.network.init_args, config.model.optim, config.data.init_args
    assert network.encoder == path.stem and network.encoder_args == {"zero_init_last_gamma": True}
    deep = path.stem in ("resnest200", "resnest269")
    assert network.final_drop == (0.2 if deep else 0.0)
    assert (optim.lr, optim.reference_batch, data.batch_size) == ((0.0125, 32, 32) if deep else (0.025, 64, 64))
    assert data.crop_size == {"resnest200": 256, "resnest269": 320}.get(path.stem, 224)
    assert (optim.name, optim.momentum, optim.weight_decay, optim.schedule) == ("sgd", 0.9, 1e-4, "cosine")
    assert (optim.decay_norm_bias, optim.head_lr_mult) == ("not_by_name", 1)
    assert (data.rand_augment, data.color_jitter) == ((2, 12), 0.4)
    assert (config.model.mixup, config.model.label_smoothing, config.model.lighting) == (0.2, 0.1, 0.1)
    steps = 1_281_167 // A_STEP
    assert (config.trainer.max_epochs, optim.warmup_steps) == (270, 5 * steps)


@pytest.mark.slow
@each_recipe
def test_a_header_tells_the_truth(name: str) -> None:
    path = CONFIGS / f"imagenet/{name}.yaml"
    header = re.split(r"\n(?!#)", path.read_text(), maxsplit=1)[0]
    top1, size = PUBLISHED[path.stem]
    (published,) = read_recipe(path).published
    config: Any = parse(ClassificationCLI, "--config", str(path))
    assert published.top1 == pytest.approx(top1 / 100) and published.images == 50_000
    assert published.protocol == config.protocol == f"resnest@{size}"
    assert CentreCrop.of(config.protocol).to_dict()["size"] == size
    assert f"# Published: {top1:.2f} top-1" in header and f"# Protocol:  resnest@{size} (" in header
    assert f"# Run:       segkit fit --config imagenet/{path.stem} " in header
    steps = 270 * (1_281_167 // A_STEP)
    assert f"270 epochs ({steps} steps), validation every {config.trainer.check_val_every_n_epoch} epochs" in header
    gpus, machines, batch = map(int, re.search(r"(\d+) GPUs \((\d+) machines of 8\) x (\d+) images", header).groups())
    assert gpus == 8 * machines and gpus * batch == A_STEP and batch == config.data.init_args.batch_size
    assert f"--trainer.devices 8 --trainer.num_nodes {machines}" in header


@pytest.mark.slow
@pytest.mark.parametrize("name", each([*COSTS]))
def test_parameters_and_multiplications_are_the_published(name: str) -> None:
    with torch.device("meta"):
        network = read_experiment(f"imagenet/{name}").build(1000)
    millions, billions = COSTS[name]
    assert parameters(network) / 1e6 == pytest.approx(millions, abs=0.09)  # 26.22 is published as 26.3
    assert flops(network, (224, 224)) / 2e9 == pytest.approx(billions, rel=0.01)  # theirs count more than products
