"""Every file under configs/ is parsed as `segkit fit` parses it, and its header tells what a reader needs."""

import re
from functools import cache
from pathlib import Path
from typing import Any

import parsed
import pytest
import torch
import yaml

from segkit.benchmark.plan import read_experiment, read_protocol
from segkit.cli.lightning import main
from segkit.inference.protocols import get
from segkit.recipes import read_recipe

parse = cache(parsed.parse)  # building the parser takes most of the time, and many tests look at one recipe

CONFIGS = Path(__file__).parents[1] / "configs"
RECIPES = sorted(
    p for p in CONFIGS.rglob("*.yaml") if p.parent.name not in ("data", "overlays", "protocols", "imagenet", "studies")
)
MMSEG = {  # mmsegmentation 1.2.2, configs/resnest/metafile.yaml: mIoU, mIoU(ms+flip), Memory (GB)
    "cityscapes/mmseg_fcn_resnest101_80k": (77.56, 78.98, 11.4),
    "cityscapes/mmseg_deeplabv3_resnest101_80k": (79.67, 80.51, 11.9),
    "ade20k/mmseg_fcn_resnest101_160k": (45.62, 46.16, 14.2),
    "ade20k/mmseg_deeplabv3_resnest101_160k": (45.71, 46.59, 14.6),
}
MODERN = CONFIGS / "overlays" / "modern.yaml"
TRAIN_IMAGES = {
    "ADE20KDataModule": 20210,
    "CityscapesDataModule": 2975,
    "CamVidDataModule": 367,
    "PascalContextDataModule": 4998,
    "SyntheticDataModule": 160,
}
PARTS = sorted(p for p in CONFIGS.rglob("*.yaml") if p.parent.name in ("data", "overlays") and p.stem != "imagenet")


def test_the_published_networks_are_there() -> None:
    names = {p.relative_to(CONFIGS).as_posix() for p in RECIPES}
    for data in ("ade20k", "cityscapes"):
        for name in ("fcn_resnest50", "fcn_resnest101", *(f"deeplabv3_resnest{n}" for n in (50, 101, 200, 269))):
            assert f"{data}/{name}.yaml" in names
    assert any(name.startswith("camvid/") for name in names)


def name_of(path: Path) -> str:
    return path.relative_to(CONFIGS).with_suffix("").as_posix()


def header_of(path: Path) -> str:
    return re.split(r"\n(?!#)", path.read_text(), maxsplit=1)[0]


# Every day, one of each folder: the others differ in their encoder, or in the head that another folder's has.
QUICK = {path.parent: path for path in reversed(RECIPES)}.values()
each_recipe = pytest.mark.parametrize(
    "path", [pytest.param(p, marks=() if p in QUICK else pytest.mark.slow) for p in RECIPES], ids=name_of
)
each_of_mmseg = pytest.mark.parametrize("path", [p for p in RECIPES if p.stem.startswith("mmseg_")], ids=name_of)


@pytest.mark.slow
@each_recipe
def test_recipe_parses_and_says_what_it_is(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(CONFIGS.parent)  # where a reader runs it: data roots and protocol files are relative to it
    config = parse("--config", str(path))
    name = r"((?:mmseg_)?[a-z]+[0-9]?(?:plus)?)_((?:res|se|sk)ne(?:s?t)\d+(?:_tiny)?|efficientnet_lite0)"
    head, encoder = re.match(name, path.stem).groups()
    network = config.model.network
    kind = network.class_path.rsplit(".", 1)[1].lower()
    assert (network.init_args.decoder if kind == "encoderdecoder" else kind) == head.replace("_", "")
    assert network.init_args.encoder.removeprefix("tf_") == encoder
    header = header_of(path)
    assert all(line.startswith("#") for line in header.splitlines())
    assert header.splitlines()[1].startswith(f"# Run:       segkit fit --config {name_of(path)}")
    assert ("--trainer.devices 1" in header.splitlines()[1]) == ("GPU" in re.search("# Hardware:.*", header)[0])
    for word in ("# Hardware:", "# Here:"):
        assert word in header
    assert re.search(r"^# Protocol:  (\S+) \(", header, re.MULTILINE)[1] == read_protocol(config.protocol, "").name
    published = read_recipe(path).published
    assert bool(published) != ("# Published: none" in header)
    assert not published or published[0].protocol == config.protocol


@pytest.mark.slow
@each_recipe
def test_header_has_the_files_own_schedule(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if path.parent.name == "own":
        return  # nobody knows the number of its images
    monkeypatch.chdir(CONFIGS.parent)
    config, header = parse("--config", str(path)), header_of(path)
    data, trainer = config.data.init_args, config.trainer
    devices = trainer.devices if isinstance(trainer.devices, int) else 1
    steps_an_epoch = TRAIN_IMAGES[config.data.class_path.rsplit(".", 1)[1]] // (devices * data.batch_size)
    if trainer.max_epochs is None:
        epochs = f"{trainer.max_steps / steps_an_epoch:.1f}"
        line = f"{trainer.max_steps} steps ({epochs} epochs), validation every {trainer.val_check_interval}."
        assert f"# Schedule:  {line}\n" in header and trainer.check_val_every_n_epoch is None
    else:
        line = f"{trainer.max_epochs} epochs ({trainer.max_epochs * steps_an_epoch} steps)"
        assert f"# Schedule:  {line}" in header and trainer.max_steps == -1
    if devices > 1:
        assert f"# Hardware:  {devices} GPUs x {data.batch_size} images, " in header
        assert devices * data.batch_size == config.model.optim.reference_batch and trainer.sync_batchnorm
        assert re.search(
            r"^#            GPU memory(?:: [\d.]+ GB on each V100;)? (?:and )?time: not published\.$", header, re.M
        )


def test_published_numbers() -> None:
    """Those of the authors' documentation; the two for Cityscapes are quoted from the paper and say so."""
    found = {name_of(path): read_recipe(path).published for path in RECIPES}
    numbers = {
        name: (round(100 * p.miou, 2), p.pixel_accuracy and round(100 * p.pixel_accuracy, 2), p.images)
        for name, (p, *_) in ((name, published) for name, published in found.items() if published)
    }
    assert numbers == {
        "ade20k/fcn_resnest50": (42.94, 80.18, 2000),
        "ade20k/deeplabv3_resnest50": (45.12, 81.17, 2000),
        "ade20k/deeplabv3_resnest101": (46.91, 82.07, 2000),
        "ade20k/deeplabv3_resnest200": (48.36, 82.45, 2000),
        "ade20k/deeplabv3_resnest269": (47.60, 82.62, 2000),
        "pascal_context/fcn_resnest50": (51.98, 79.19, 5105),
        "pascal_context/deeplabv3_resnest50": (53.19, 80.41, 5105),
        "pascal_context/deeplabv3_resnest101": (56.49, 81.91, 5105),
        "pascal_context/deeplabv3_resnest200": (58.37, 82.50, 5105),
        "pascal_context/deeplabv3_resnest269": (58.92, 83.06, 5105),
        "cityscapes/deeplabv3_resnest50": (79.87, None, 500),
        "cityscapes/deeplabv3_resnest101": (80.42, None, 500),
        **{n: (single, None, 500 if n.startswith("city") else 2000) for n, (single, _, _) in MMSEG.items()},
    }
    authors = [p for name, published in found.items() if name.startswith("cityscapes/deeplab") for p in published]
    assert len(authors) == 2 and all("paper; not re-read" in p.source for p in authors)


@pytest.mark.slow
@each_of_mmseg
def test_mmsegs_recipe_is_what_the_configs_say(path: Path) -> None:
    """configs/_base_/{schedules,datasets,models} of mmsegmentation 1.2.2 and its resnest/metafile.yaml."""
    header, config = header_of(path), parse("--config", str(path))
    city = path.parent.name == "cityscapes"
    single, multi, memory = MMSEG[name_of(path)]
    protocols = ("mmseg-ss-cityscapes", "mmseg-0x-ms-cityscapes") if city else ("mmseg-ss", "mmseg-0x-ms")
    published = read_recipe(path).published
    assert [(round(100 * p.miou, 2), p.protocol) for p in published] == [(single, protocols[0]), (multi, protocols[1])]
    assert all(get(protocol) for protocol in protocols) and f": {memory} GB on each V100" in header
    optim, loss, data = config.model.optim, config.model.loss, config.data.init_args
    assert (optim.name, optim.lr, optim.momentum, optim.weight_decay) == ("sgd", 0.01, 0.9, 5e-4)
    assert (optim.schedule, optim.power, optim.min_lr, optim.head_lr_mult) == ("poly", 0.9, 1e-4, 1)
    assert (optim.warmup_steps, optim.layer_decay, optim.decay_norm_bias) == (0, 1, True)
    assert (loss.aux_weight, loss.average, loss.label_smoothing, loss.class_weights) == (0.4, "all", 0, None)
    assert (config.trainer.max_steps, config.trainer.val_check_interval) == ((80000, 8000) if city else (160000, 16000))
    assert (config.trainer.devices, data.batch_size) == (4, 2 if city else 4)
    assert (data.base_size, data.crop_size) == (((2048, 1024), (512, 1024)) if city else ((2048, 512), 512))
    assert (data.scale_range, data.flip, data.cat_max_ratio, data.antialias) == ((0.5, 2.0), 0.5, 0.75, False)
    assert [a.class_path for a in data.augmentations] == ["segkit.data.photometric.PhotoMetricDistortion"]
    network = read_experiment(path).build(config.model.network.init_args.num_classes)
    assert (network.output_stride, network.align_corners, network.aux_head is None) == (8, False, False)
    assert network.config["init_args"]["dilation_convention"] == "mmseg"


@pytest.mark.slow
@pytest.mark.parametrize("path", PARTS, ids=lambda p: p.relative_to(CONFIGS).as_posix())
def test_data_recipes_and_overlays_parse(path: Path) -> None:
    recipe = str(CONFIGS / "ade20k" / "deeplabv3_resnest50.yaml")
    option = "--data" if path.parent.name == "data" else "--config"
    config = parse("--config", recipe, option, str(path))
    given = yaml.safe_load(path.read_text())
    if path.parent.name == "data":
        assert config.data.class_path.endswith(given["class_path"])
        assert str(config.data.init_args.root) == given["init_args"]["root"]
    else:
        assert config.model.network.init_args.encoder == "resnest50"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("protocols/*.yaml")), ids=lambda p: p.name)
def test_protocol_files_are_protocols(path: Path) -> None:
    assert get(str(path)).name == path.stem


@pytest.mark.slow
def test_the_authors_recipe_is_what_the_configs_say() -> None:
    ade = parse("--config", str(CONFIGS / "ade20k" / "deeplabv3_resnest50.yaml"))
    optim = ade.model.optim
    assert (optim.name, optim.lr, optim.momentum, optim.weight_decay, optim.head_lr_mult) == (
        "sgd",
        0.01,
        0.9,
        1e-4,
        10,
    )
    assert (optim.schedule, optim.power, ade.model.loss.aux_weight) == ("poly", 0.9, 0.2)
    assert (ade.data.init_args.base_size, ade.data.init_args.crop_size) == (520, 480)
    assert ade.data.init_args.batch_size * ade.trainer.devices == 16
    assert ade.trainer.max_epochs == 120 and ade.trainer.sync_batchnorm
    context = parse("--config", str(CONFIGS / "pascal_context" / "deeplabv3_resnest269.yaml"))
    assert (context.model.optim.lr, context.trainer.max_epochs, context.model.optim.warmup_steps) == (0.001, 80, 0)
    images, of_ade = context.data.init_args, ade.data.init_args  # one transform for both
    assert images.augmentations == of_ade.augmentations and images.cat_max_ratio == of_ade.cat_max_ratio
    assert (images.base_size, images.crop_size, images.antialias) == (520, 480, of_ade.antialias)
    city = parse("--config", str(CONFIGS / "cityscapes" / "deeplabv3_resnest101.yaml"))
    assert (city.data.init_args.base_size, city.data.init_args.crop_size, city.trainer.max_epochs) == (2048, 768, 240)


@pytest.mark.slow
@pytest.mark.parametrize("data", ["ade20k", "cityscapes"])
def test_only_the_deep_networks_warm_up(data: str) -> None:
    for path in sorted(CONFIGS.glob(f"{data}/*.yaml")):
        epochs = 5 if path.stem in ("deeplabv3_resnest200", "deeplabv3_resnest269") else 0
        steps_an_epoch = 1263 if data == "ade20k" else 185
        assert parse("--config", str(path)).model.optim.warmup_steps == epochs * steps_an_epoch


@pytest.mark.slow
@each_recipe
def test_modern_overlay_goes_on_top_of_every_recipe(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(CONFIGS.parent)
    below, config = parse("--config", str(path)), parse("--config", str(path), "--config", str(MODERN))
    assert (config.model.optim.name, config.model.optim.schedule, config.model.optim.min_lr) == ("adamw", "cosine", 0)
    assert config.model.network == below.model.network and config.protocol == below.protocol
    assert config.data.class_path == below.data.class_path
    assert config.data.init_args.crop_size == below.data.init_args.crop_size
    assert config.trainer.max_epochs == below.trainer.max_epochs and config.trainer.max_steps == below.trainer.max_steps


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "overlays"),
    [
        ("cityscapes/fcn_resnest50", []),
        ("cityscapes/mmseg_fcn_resnest101_80k", []),
        ("ade20k/deeplabv3_resnest50", ["modern"]),
    ],
)
def test_smoke_overlay_runs_a_recipe(
    recipe: str, overlays: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The whole of `fit`, two steps, with a recipe of configs/ and the drawn data set in place of its own."""
    files = [f"{recipe}.yaml", *(f"overlays/{name}.yaml" for name in [*overlays, "smoke"])]
    arguments = [argument for name in files for argument in ("--config", str(CONFIGS / name))]
    arguments += ["--data", "SyntheticDataModule", "--data.root", str(tmp_path / "data"), "--data.crop_size", "64"]
    arguments += ["--data.base_size", "64", "--data.num_train", "4", "--data.num_val", "2", "--data.num_test", "1"]
    arguments += ["--data.batch_size", "2", "--model.network.encoder", "resnest14_tiny"]
    assert main(["fit", *arguments, "--run_dir", str(tmp_path / "run")]) == 0
    said = capfd.readouterr()
    assert "FLOPs" not in said.out + said.err and "Total Flops" not in said.out + said.err  # Lightning's are 0
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    checkpoint: dict[str, Any] = torch.load(last, weights_only=True)
    assert checkpoint["global_step"] == 2
    averaged, current = checkpoint["state_dict"], checkpoint.get("current_model_state")
    assert (current is not None) == ("modern" in overlays)  # what the averaging of weights keeps beside the average
    assert current is None or any(not torch.equal(averaged[name], current[name]) for name in averaged)
    assert (
        main(["test", *arguments, "--protocol", "whole", "--ckpt_path", str(last), "--run_dir", str(tmp_path / "t")])
        == 0
    )
