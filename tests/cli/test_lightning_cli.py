"""The Lightning commands through the front door, on a folder data set built in a temporary directory."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml

import segkit.training.module
from segkit.cli import main
from segkit.cli.given import named
from segkit.inference.engine import predict
from segkit.inference.segmenter import load
from segkit.models.weights import read_checkpoint
from segkit.training.module import SegmentationModule

CLASSES = ("left", "right", "square")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six training, three validation and three test images of 40x56 in the folder layout."""
    root = tmp_path_factory.mktemp("folder")
    generator = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 3), ("test", 3)):
        for i in range(count):
            mask = np.zeros((40, 56), np.uint8)
            mask[:, 28:] = 1
            top, left = generator.integers(0, 20, 2)
            mask[top : top + 16, left : left + 16] = 2
            mask[:2] = 255
            image = np.array([[200, 40, 40], [40, 200, 40], [40, 40, 200], *[[0, 0, 0]] * 253], np.uint8)[mask]
            for kind, array in (("images", image[..., ::-1]), ("labels", mask)):
                (root / kind / split).mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(root / kind / split / f"{i}.png"), array)
    (root / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    return root


@pytest.fixture(scope="module")
def recipe(root: Path) -> Path:
    config = {
        "data": {
            "class_path": "FolderDataModule",
            "init_args": {"root": str(root), "batch_size": 2, "base_size": 56, "crop_size": 32, "num_workers": 0},
        },
        "model": {
            "network": {"class_path": "FCN", "init_args": {"encoder": "resnest14_tiny", "output_stride": 16}},
            "optim": {"lr": 0.02},
        },
        "trainer": {"accelerator": "cpu", "max_epochs": 2, "log_every_n_steps": 1, "enable_progress_bar": False},
    }
    path = root / "recipe.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.fixture(scope="module")
def run(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished `segkit fit`."""
    run = tmp_path_factory.mktemp("runs") / "fit"
    assert main(["fit", "--config", str(recipe), "--run_dir", str(run)]) == 0
    return run


def data_of(recipe: Path) -> list[str]:
    """The data of the recipe on the command line, without its model."""
    arguments = yaml.safe_load(recipe.read_text())["data"]["init_args"]
    return ["--data", "FolderDataModule", *(x for k, v in arguments.items() for x in (f"--data.{k}", str(v)))]


@pytest.mark.slow
def test_fit_leaves_checkpoints_curves_logs_and_its_config(run: Path) -> None:
    assert {"config.yaml", "metrics.csv", "curves.png", "checkpoints"} <= {p.name for p in run.iterdir()}
    assert any(p.name.startswith("events.out.tfevents") for p in run.iterdir())
    checkpoints = {p.name for p in (run / "checkpoints").iterdir()}
    assert "last.ckpt" in checkpoints and any("mIoU0." in name for name in checkpoints)
    header = (run / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {"train/loss", "lr", "samples/s", "val/mIoU", "val/pixel_accuracy"} <= set(header)


def test_checkpoint_is_plain_data_and_rebuilds_everything(run: Path) -> None:
    path = run / "checkpoints" / "last.ckpt"
    checkpoint = read_checkpoint(path)
    assert checkpoint.label_space["class_names"] == list(CLASSES)
    assert checkpoint.network["init_args"]["num_classes"] == 3
    assert "protocol" not in checkpoint.hyper_parameters and "root" not in json.dumps(checkpoint.hyper_parameters)
    module = SegmentationModule.load_from_checkpoint(path)
    assert module.optim.lr == 0.02 and module.label_space.class_names == CLASSES
    state = torch.load(path, weights_only=True)["state_dict"]
    assert all(torch.equal(state[name], value) for name, value in module.state_dict().items())
    assert load(path).predict(np.zeros((97, 65, 3), np.uint8)).shape == (97, 65)


@pytest.mark.slow
def test_test_needs_no_model_arguments_and_writes_the_result(run: Path, recipe: Path, tmp_path: Path) -> None:
    checkpoint = str(run / "checkpoints" / "last.ckpt")
    before = (run / "config.yaml").read_bytes()
    arguments = ["test", *data_of(recipe), "--ckpt_path", checkpoint, "--protocol", "ms-flip", "--run_dir", str(run)]
    assert main([*arguments, "--trainer.accelerator", "cpu"]) == 0
    result = json.loads((run / "result.json").read_text())
    assert result["num_images"] == 3 and not result["partial"]
    assert (
        result["protocol"]["name"] == "ms-flip"
        and result["protocol"]["flip"]
        and len(result["protocol"]["scales"]) == 6
    )
    assert [c["name"] for c in result["classes"]] == list(CLASSES)
    assert result["num_pixels"] == 3 * 38 * 56
    assert {"torch", "numpy"} <= result["versions"].keys() and result["command"]
    assert (run / "config.yaml").read_bytes() == before  # fit's config is fit's
    assert "val/mIoU" in (run / "metrics.csv").read_text()  # and so are its logs
    assert main([*arguments, "--trainer.accelerator", "cpu", "--trainer.limit_test_batches", "2"]) == 0
    assert (
        json.loads((run / "result-2.json").read_text())["partial"]
        and json.loads((run / "result.json").read_text()) == result
    )


@pytest.mark.slow
def test_test_runs_in_the_precision_that_is_asked_for(run: Path, recipe: Path, tmp_path: Path) -> None:
    arguments = ["test", *data_of(recipe), "--ckpt_path", str(run / "checkpoints" / "last.ckpt")]
    results = {}
    for precision in ("exact", "float32", "bfloat16"):
        options = ["--run_dir", str(tmp_path / precision), "--test_precision", precision]
        assert main([*arguments, *options, "--trainer.accelerator", "cpu"]) == 0
        results[precision] = json.loads((tmp_path / precision / "result.json").read_text())
        assert results[precision]["precision"] == precision
    exact, float32 = (np.array(results[name]["confusion_matrix"]) for name in ("exact", "float32"))
    assert np.abs(exact - float32).sum() < 0.001 * exact.sum()
    assert results["bfloat16"]["scores"]["mIoU"] == pytest.approx(results["exact"]["scores"]["mIoU"], abs=0.05)


def test_a_second_fit_does_not_write_over_the_first(run: Path, recipe: Path, capsys) -> None:
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    assert main(["fit", "--config", str(recipe), "--run_dir", str(run)]) == 2
    assert "holds a training run already" in capsys.readouterr().err
    assert before == {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}


def test_validate_is_the_number_that_fit_logged(run: Path, recipe: Path, tmp_path: Path) -> None:
    import csv

    checkpoint = str(run / "checkpoints" / "last.ckpt")
    main(["validate", *data_of(recipe), "--ckpt_path", checkpoint, "--run_dir", str(tmp_path)])
    result = json.loads((tmp_path / "result.json").read_text())
    with (run / "metrics.csv").open() as file:
        logged = [float(row["val/mIoU"]) for row in csv.DictReader(file) if row["val/mIoU"]]
    assert result["scores"]["mIoU"] == pytest.approx(logged[-1], abs=1e-6)
    assert result["protocol"]["name"] == "whole"


@pytest.mark.slow
def test_fit_validates_at_the_scale_of_its_crops(recipe: Path, tmp_path: Path, monkeypatch) -> None:
    """`validation_scale` is the single scale of validation inside fit; the label's size stays the label's."""
    protocols = set()

    def watched(network, image, protocol, **options):
        protocols.add((protocol.scales, protocol.flip))
        return predict(network, image, protocol, **options)

    monkeypatch.setattr(segkit.training.module, "predict", watched)
    arguments = ["fit", "--config", str(recipe), "--run_dir", str(tmp_path), "--trainer.max_epochs", "1"]
    assert main([*arguments, "--validation_scale", "0.5"]) == 0
    assert protocols == {((0.5,), False)}
    assert "val/mIoU" in (tmp_path / "metrics.csv").read_text()


@pytest.mark.slow
def test_predict_writes_the_labels_that_the_segmenter_gives(
    run: Path, recipe: Path, root: Path, tmp_path: Path
) -> None:
    checkpoint = run / "checkpoints" / "last.ckpt"
    arguments = ["predict", *data_of(recipe), "--ckpt_path", str(checkpoint), "--run_dir", str(tmp_path / "run")]
    assert main([*arguments, "--output", str(tmp_path / "labels")]) == 0
    written = sorted((tmp_path / "labels").rglob("*.png"))
    assert [p.name for p in written] == ["0.png", "1.png", "2.png"]
    for path in written:
        labels = load(checkpoint, precision="exact").predict(root / "images" / "test" / path.name)
        assert np.array_equal(cv2.imread(str(path), cv2.IMREAD_UNCHANGED), labels)


@pytest.mark.slow
def test_typed_beats_checkpoint_beats_default(run: Path, recipe: Path, tmp_path: Path, caplog, capsys) -> None:
    """Resuming with another lr trains with it; what was not typed comes from the checkpoint; the difference is said."""
    checkpoint = str(run / "checkpoints" / "last.ckpt")
    arguments = ["fit", *data_of(recipe), "--ckpt_path", checkpoint, "--trainer.max_epochs", "3", "--reschedule"]
    arguments += [
        "--trainer.accelerator",
        "cpu",
        "--trainer.enable_progress_bar",
        "false",
        "--trainer.log_every_n_steps",
        "1",
    ]
    with caplog.at_level("INFO"):
        assert main([*arguments, "--model.optim.lr", "0.5", "--run_dir", str(tmp_path / "typed")]) == 0
    said = caplog.text + capsys.readouterr().err
    assert "model.optim.lr: 0.02 (checkpoint) -> 0.5 (given)" in said
    assert first_lr(tmp_path / "typed") == pytest.approx(0.5 * 2 / 16 * (1 - 6 / 9) ** 0.9, rel=1e-4)

    assert main([*arguments, "--run_dir", str(tmp_path / "untyped")]) == 0
    assert first_lr(tmp_path / "untyped") == pytest.approx(0.02 * 2 / 16 * (1 - 6 / 9) ** 0.9, rel=1e-4)


def first_lr(run: Path) -> float:
    import csv

    with (run / "metrics.csv").open() as file:
        return next(float(row["lr"]) for row in csv.DictReader(file) if row["lr"])


@pytest.mark.slow
def test_another_network_than_the_checkpoints_is_refused(run: Path, recipe: Path, capsys) -> None:
    checkpoint = str(run / "checkpoints" / "last.ckpt")
    common = ["--ckpt_path", checkpoint, *data_of(recipe)]
    assert main(["test", *common, "--model.network.output_stride", "8"]) == 2
    assert "model.network.init_args.output_stride: the checkpoint has 16, 8 was given" in capsys.readouterr().err
    assert main(["fit", *common, "--model.optim.name", "adamw"]) == 2
    assert "model.optim.name: the checkpoint has sgd, adamw was given" in capsys.readouterr().err


@pytest.mark.slow
def test_data_of_other_classes_is_refused(run: Path, recipe: Path, root: Path, tmp_path: Path, capsys) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for name in ("images", "labels"):
        (other / name).symlink_to(root / name)
    (other / "classes.txt").write_text("a\nb\nc\nd\n")
    checkpoint = str(run / "checkpoints" / "last.ckpt")
    test = ["test", "--ckpt_path", checkpoint, "--data", "FolderDataModule", "--data.root", str(other)]
    assert main(test) == 2
    said = capsys.readouterr().err
    assert f"{checkpoint}: trained on 3 classes (left, " in said and "FolderDataModule has 4" in said
    reordered = reversed((root / "classes.txt").read_text().split())
    (other / "classes.txt").write_text("\n".join(reordered))
    assert main(test) == 2
    assert f"{checkpoint}: has the classes of FolderDataModule in another order" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    "change, words",
    [
        (["--model.network.encodr", "x"], "'encodr' is no argument of model.network; did you mean encoder?"),
        (
            ["--model.network", "DeepLabv3"],
            "no such class 'DeepLabv3'; did you mean DeepLabV3? allowed: DeepLabV3, ",
        ),
        (["--data", "FoldrDataModule"], "no such data set 'FoldrDataModule'; did you mean FolderDataModule?"),
        (["--data", "camvit"], "no such data set 'camvit'; did you mean camvid?"),
        (["--data.rot", "x"], "'rot' is no argument of data; did you mean root?"),
        (
            ["--trainer.max_epoch", "1"],
            "no such option 'trainer.max_epoch'; did you mean max_epochs? allowed in trainer",
        ),
        (
            ["--model.optim.l", "1"],
            "no such option 'model.optim.l'; did you mean lr? allowed in model.optim: decay_norm_bias",
        ),
        (["--model.optim.lr", "fast"], "model.optim.lr: 'fast' is not float"),
        (["--model.optim.name", "adam"], "model.optim.name: 'adam' is not one of 'sgd', 'adamw'"),
        (["--model.optim.lr", "-1"], "model.optim.lr=-1.0 must be positive"),
        (["--foo", "1"], "no such option 'foo'"),
        (["--protocol", "ms-filp"], "'ms-filp' is not known; use one of whole, ms-flip"),
        (["--model.network.encoder", "resnet5"], "did you mean resnet50"),
        (["--ckpt_path", "/no/such.ckpt"], "/no/such.ckpt: no such file"),
        (["--config", "/no/such.yaml"], "/no/such.yaml: no such file"),
        (["--data.root", "/no/such/folder"], "/no/such/folder"),
        (["--model.network", "no_such.Head"], "no_such.Head: there is no module 'no_such', neither"),
        (["--data", "no_such.Data"], "data: no_such.Data: there is no module 'no_such', neither"),
        (["--model.network", "collections.Counter"], "collections.Counter is no subclass of SegmentationModel"),
        (
            ["--model.loss.extra", "torch.nn.MSELoss", "--model.loss.extra.gamma", "1"],
            "'gamma' is no argument of model.loss.extra; see the arguments of its class",
        ),
        (["--trainer.accelerator", "gpu"], "trainer: No supported gpu backend found"),
    ],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="one of the cases needs a machine without a GPU")
def test_typing_errors_take_one_line(recipe: Path, capsys, change: list[str], words: str, tmp_path: Path) -> None:
    assert main(["fit", "--config", str(recipe), "--run_dir", str(tmp_path / "run"), *change]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("segkit fit: error: ") and words in last
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "text, words",
    [
        ("model: [", "line 2, column 1: not valid YAML"),
        ("data: ../no_such.yaml", "data: ../no_such.yaml: no such file; in a config, a path begins at the config's"),
        ("trainr: {max_epochs: 1}", "no such option 'trainr.max_epochs'; did you mean trainer?"),
        ("data: {class_path: FolderDataModule, init_args: {rot: x}}", "'rot' is no argument of FolderDataModule"),
        ("data: {class_path: FolderDataModule, init_args: {crop_sise: 4}}", "did you mean crop_size?"),
        ("data: {class_path: FolderDataModule, init_args: {crop_size: x}}", "data.crop_size: 'x' is not int or tuple"),
        (
            "data: {class_path: FolderDataModule, init_args: {masks: grey}}",
            "masks is 'grey'; allowed are ids, binary and colors",
        ),
        ("data: {init_args: {augmentations: [{class_path: albumentations.Rotat}]}}", "mean albumentations.Rotate?"),
        (
            "data: {init_args: {augmentations: [{class_path: albumentations.Rotate, init_args: {limitt: 3}}]}}",
            "'limitt' is no argument of Rotate; did you mean limit?",
        ),
    ],
)
def test_errors_in_a_config_take_one_line(recipe: Path, capsys, text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "wrong.yaml").write_text(text + "\n")
    assert main(["fit", "--config", str(recipe), "--config", str(tmp_path / "wrong.yaml")]) == 2
    assert words in capsys.readouterr().err.strip().splitlines()[-1]


def test_unknown_command(capsys) -> None:
    assert main(["fti"]) == 2
    assert "no such command; did you mean fit?" in capsys.readouterr().err


def test_checkpoint_named_in_a_config_or_by_equals_sign(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("ckpt_path: a.ckpt\n")
    assert named(["test", "--config", str(tmp_path / "c.yaml")], "ckpt_path") == "a.ckpt"
    assert named(["test", "--ckpt_path=b.ckpt"], "ckpt_path") == "b.ckpt"
    assert named(["test", "--config", str(tmp_path / "c.yaml"), "--ckpt_path", "null"], "ckpt_path") is None


@pytest.mark.slow
def test_accumulation_clipping_and_bf16_are_trainer_options(recipe: Path, tmp_path: Path) -> None:
    arguments = ["--trainer.accumulate_grad_batches", "3", "--trainer.gradient_clip_val", "0.1"]
    arguments += ["--trainer.precision", "bf16-mixed", "--trainer.max_epochs", "1", "--model.network", "DeepLabV3"]
    arguments += ["--model.network.encoder", "resnest14_tiny"]
    assert main(["fit", "--config", str(recipe), "--run_dir", str(tmp_path / "run"), *arguments]) == 0
    checkpoint = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 1  # three batches, one step
    assert first_lr(tmp_path / "run") == pytest.approx(0.02 * 6 / 16)


@pytest.mark.slow
def test_user_augmentations_extend_the_pipeline(recipe: Path, tmp_path: Path, capsys) -> None:
    config = {
        "data": {"init_args": {"augmentations": [{"class_path": "albumentations.ColorJitter", "init_args": {"p": 1}}]}}
    }
    (tmp_path / "jitter.yaml").write_text(yaml.safe_dump(config))
    arguments = [
        "fit",
        "--config",
        str(recipe),
        "--config",
        str(tmp_path / "jitter.yaml"),
        "--trainer.fast_dev_run",
        "1",
    ]
    assert main(arguments) == 0
    config["data"]["init_args"]["augmentations"] = [{"class_path": "albumentations.Affine", "init_args": {"rotate": 9}}]
    (tmp_path / "affine.yaml").write_text(yaml.safe_dump(config))
    assert main(["fit", "--config", str(recipe), "--config", str(tmp_path / "affine.yaml")]) == 2
    assert "fill_mask" in capsys.readouterr().err


@pytest.mark.slow
def test_a_logger_of_another_make_stands_beside_the_csv_file(recipe: Path, tmp_path: Path) -> None:
    """Curves, config and checkpoints are where they always are."""
    book = tmp_path / "logbook.txt"
    logger = {"class_path": "logbook.Logbook", "init_args": {"path": str(book)}}
    (tmp_path / "logger.yaml").write_text(yaml.safe_dump({"trainer": {"logger": logger}}))
    run = tmp_path / "run"
    assert main(["fit", "--config", str(recipe), "--config", str(tmp_path / "logger.yaml"), "--run_dir", str(run)]) == 0
    names = {line.split(" ", 1)[1] for line in book.read_text().splitlines()}
    assert {"train/loss", "lr", "val/mIoU", "val/IoU/left"} <= names
    written = {p.name for p in run.iterdir()}
    assert {"config.yaml", "metrics.csv", "checkpoints", "summary.json"} <= written
    assert not (tmp_path / "elsewhere").exists()


def test_a_run_shows_itself(run: Path) -> None:
    summary = json.loads((run / "summary.json").read_text())
    assert summary["steps"] == 6 and summary["files"]["last"] == "checkpoints/last.ckpt"
    assert len(list((run / "validation").glob("*.png"))) == 2
    assert {"curves.png", "class_iou.png"} <= {p.name for p in run.iterdir()}


def test_probe_trains_nothing(recipe: Path, tmp_path: Path, capsys) -> None:
    arguments = ["fit", "--config", str(recipe), "--run_dir", str(tmp_path / "run"), "--probe"]
    assert main([*arguments, "--data.batch_size", "2"]) == 0
    said = capsys.readouterr().out
    assert "batch  s/step  images/s  peak memory" in said and "largest batch within" in said
    assert "6 batches, 1 process(es)" in said and "2 times 3 images" in said
    assert not (tmp_path / "run").exists()


def test_out_of_memory_names_what_would_fit(recipe: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    def fails(self, batch, batch_idx) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(SegmentationModule, "training_step", fails)
    assert main(["fit", "--config", str(recipe), "--run_dir", str(tmp_path / "run")]) == 2
    assert (
        "out of memory with data.batch_size 2, crops of 32x32 and 1 accumulated: take --data.batch_size 1 "
        "--trainer.accumulate_grad_batches 2" in capsys.readouterr().err
    )


@pytest.mark.slow
def test_swa_and_checkpointed_stages_by_config(recipe: Path, tmp_path: Path) -> None:
    swa = {"class_path": "StochasticWeightAveraging", "init_args": {"swa_lrs": 0.01, "swa_epoch_start": 1}}
    (tmp_path / "swa.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": [swa]}}))
    arguments = ["fit", "--config", str(recipe), "--config", str(tmp_path / "swa.yaml")]
    assert main([*arguments, "--run_dir", str(tmp_path / "run"), "--model.checkpoint_stages", "[3, 4]"]) == 0
    assert load(tmp_path / "run" / "checkpoints" / "last.ckpt").predict(np.zeros((33, 65, 3), np.uint8)).shape == (
        33,
        65,
    )


@pytest.mark.slow
def test_configs_of_older_runs_have_options_below_model(
    run: Path, recipe: Path, tmp_path: Path, caplog, capsys
) -> None:
    source = run / "checkpoints" / "last.ckpt"
    old = tmp_path / "old.yaml"
    parts = yaml.safe_load(recipe.read_text())
    below = {"init_from": str(source), "encoder_weights": None, "validation_scale": 1.0, "test_precision": "exact"}
    parts.setdefault("model", {}).update(below)
    old.write_text(yaml.safe_dump(parts))
    with caplog.at_level("INFO"):
        assert main(["fit", "--config", str(old), "--run_dir", str(tmp_path / "run")]) == 0
    assert f"{source}: " in caplog.text and "tensors taken" in caplog.text
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["init_from"] == str(source)
    assert main(["fit", "--config", str(recipe), "--model.init_from", str(source)]) == 2
    assert "no such option 'model.init_from'; it is --init_from now" in capsys.readouterr().err


@pytest.mark.slow
def test_init_from_and_frozen_stages_by_config(run: Path, recipe: Path, tmp_path: Path, caplog) -> None:
    """The stem and stage 1 are the file's after training, statistics too; the rest has moved."""
    source = run / "checkpoints" / "last.ckpt"
    arguments = ["fit", "--config", str(recipe), "--run_dir", str(tmp_path / "run"), "--init_from", str(source)]
    with caplog.at_level("INFO"):
        assert main([*arguments, "--model.frozen_stages", "1", "--model.norm_eval", "true"]) == 0
    before = read_checkpoint(source).state_dict
    after = read_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt").state_dict
    frozen = [name for name in before if name.startswith(("encoder.conv1", "encoder.bn1", "encoder.layer1"))]
    assert frozen and all(torch.equal(before[name], after[name]) for name in frozen)
    assert not torch.equal(before["encoder.layer4.0.conv1.weight"], after["encoder.layer4.0.conv1.weight"])
    statistics = [name for name in before if name.startswith("encoder.") and "running" in name]
    assert all(torch.equal(before[name], after[name]) for name in statistics)
    assert "frozen" in caplog.text  # in the table of parameter groups
