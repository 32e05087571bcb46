"""`segkit fit | validate | test | predict`: LightningCLI over SegmentationModule and the data modules.

What the user typed beats the checkpoint, which beats the default: a checkpoint's hyper-parameters become the parser's
defaults before the command line and the config files are read. How one tests is never taken from a checkpoint.
"""

import logging
import sys
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.callbacks import ModelCheckpoint, ProgressBar
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from pytorch_lightning.utilities import rank_zero_info

from segkit.cli.arguments import SegmentationParser, explain, flatten
from segkit.cli.restore import differences, parser_defaults, read_named_checkpoint
from segkit.data.datamodule import SegmentationDataModule
from segkit.data.datamodules import (
    ADE20KDataModule,
    CamVidDataModule,
    CityscapesDataModule,
    CocoStuffDataModule,
    FolderDataModule,
    MapillaryDataModule,
    PascalContextDataModule,
    VOCDataModule,
)
from segkit.data.synthetic import SyntheticDataModule
from segkit.errors import InputError
from segkit.evaluation.conventions import CONVENTIONS, DEFAULT
from segkit.inference.protocols import Protocol
from segkit.metadata.label_space import check_same_classes, numbered_space
from segkit.models.checkpoint import Checkpoint, load_strict
from segkit.models.segmentation import NETWORKS
from segkit.training.calibration import CalibrationReport
from segkit.training.callbacks import ALL_METRICS, CurvePlotter, ResultWriter
from segkit.training.module import SegmentationModule
from segkit.training.prediction_writer import PredictionWriter
from segkit.training.progress import EvaluationProgress
from segkit.training.throughput import DataWait, Throughput

# Classes that a config or the command line may name without their module.
SHORT_NAMES: tuple[type, ...] = (
    *(ADE20KDataModule, CityscapesDataModule, CamVidDataModule, VOCDataModule, PascalContextDataModule),
    *(CocoStuffDataModule, MapillaryDataModule, FolderDataModule, SyntheticDataModule),
    *NETWORKS.values(),
)

METRICS = ", ".join([*CONVENTIONS, ALL_METRICS])


def main(args: Sequence[str]) -> int:
    """Run one of Lightning's subcommands; `args[0]` is its name."""
    _quiet()
    checkpoint = read_named_checkpoint(args)
    try:
        # Lightning's launcher looks at the real command line; only a caller from Python hands over another.
        SegmentationCLI(checkpoint, args=None if list(args) == sys.argv[1:] else list(args))
    except (MisconfigurationException, ValueError) as error:
        raise _input_error(error) or error from error
    return 0


class SegmentationCLI(LightningCLI):
    """LightningCLI with segkit's module, data modules, loggers and callbacks."""

    def __init__(self, checkpoint: Checkpoint | None, args: list[str] | None = None) -> None:
        self.checkpoint: dict[str, Any] = {} if checkpoint is None else checkpoint.hyper_parameters
        self.weights = {} if checkpoint is None else checkpoint.state_dict  # empty where Lightning restores them
        self.known_keys: list[str] = []
        super().__init__(
            SegmentationModule,
            SegmentationDataModule,
            subclass_mode_data=True,
            args=args,
            parser_class=SegmentationParser,
            save_config_callback=FitConfig,
            save_config_kwargs={"overwrite": True},
            seed_everything_default=0,
            auto_configure_optimizers=False,
            # The module stores its own, plain hyper-parameters.
            load_from_checkpoint_support=False,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add segkit's options, link the data to the model, and put the checkpoint's values below what is typed."""
        parser.add_argument(
            "--protocol", type=str | Protocol, default="whole", help="how to test and predict: whole, ms-flip, ..."
        )
        parser.add_argument("--metric", type=str, default=DEFAULT, help=f"`test`, `validate`: {METRICS}")
        parser.add_argument("--run_dir", type=str | None, default=None, help="where the run writes; default: runs/<n>")
        parser.add_argument("--output", type=str | None, default=None, help="folder of `predict`'s PNGs")
        parser.add_argument("--overwrite", type=bool, default=False, help="`predict`: again what `--output` holds")
        parser.add_argument("--official", type=bool, default=False, help="`test`: cityscapesScripts' scores, too")
        parser.add_argument("--calibration", type=bool, default=False, help="`test`: calibration error, with a plot")
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
        parser.set_defaults(
            {
                "checkpoint.monitor": "val/mIoU",
                "checkpoint.mode": "max",
                "checkpoint.filename": "epoch{epoch:03d}-mIoU{val/mIoU:.4f}",
                "checkpoint.auto_insert_metric_name": False,
            }
        )
        self.known_keys = list(flatten(parser.get_defaults().as_dict()))
        parser.link_arguments("protocol", "model.protocol")
        parser.link_arguments("data.label_space", "model.label_space", apply_on="instantiate")
        parser.link_arguments("data.num_classes", "model.network.init_args.num_classes", apply_on="instantiate")
        parser.set_defaults(parser_defaults(self.checkpoint))

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse; what is wrong is said in one line."""
        try:
            super().parse_arguments(parser, args)
        except InputError as error:
            raise InputError(explain(str(error), [*self.known_keys, "ckpt_path", "config"], SHORT_NAMES)) from error

    def _parse_ckpt_path(self) -> None:
        """Do nothing: Lightning 2.6 lets a checkpoint win over the user here (Lightning pull request 21455)."""

    def before_instantiate_classes(self) -> None:
        """Refuse an unknown metric, and print what differs from the checkpoint."""
        self.result_writer = ResultWriter(self._get(self.config, "metric"))
        model = self.config[self.subcommand].model.as_dict()
        for key, (stored, typed) in differences(self.checkpoint, model).items():
            self._check_restorable(key, stored, typed)
            rank_zero_info(f"model.{key}: {stored} (checkpoint) -> {typed} (given)")

    def _check_restorable(self, key: str, stored: Any, typed: Any) -> None:
        if key.startswith("network.") or (key == "optim.name" and self.subcommand == "fit"):
            raise InputError(
                f"model.{key}: the checkpoint has {stored}, {typed} was given, which its weights or optimiser state "
                "do not fit; leave it out to take the checkpoint's, or start without --ckpt_path"
            )

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """Add segkit's loggers and callbacks to what the config has."""
        config = self._get(self.config_init, "trainer")
        run = Path(self._get(self.config, "run_dir") or _next_run())
        kwargs["default_root_dir"] = run
        if config.get("logger") in (None, True):
            # Only training has something to log; a test leaves its result file, and the logs of a run alone.
            kwargs["logger"] = _loggers(run) if self.subcommand == "fit" else False
        wait = DataWait(self.datamodule.faster_loading)
        callbacks = [Throughput(), wait, CurvePlotter(), self.result_writer, _last_checkpoint()]
        if self.subcommand == "predict":
            callbacks.append(self._prediction_writer())
        if self._get(self.config, "official"):
            from segkit.training.official import OfficialCityscapes  # and with it, cityscapesScripts

            callbacks.append(OfficialCityscapes())
        if self._get(self.config, "calibration"):
            callbacks.append(CalibrationReport())
        given = config.get("callbacks") or []
        a_bar = config.get("enable_progress_bar") is not False and not any(isinstance(c, ProgressBar) for c in given)
        if a_bar and self.subcommand != "fit":
            callbacks.append(EvaluationProgress())
        kwargs["callbacks"] = [*given, *callbacks]
        return super().instantiate_trainer(**kwargs)

    def _prediction_writer(self) -> PredictionWriter:
        """The writer; it tells the data which pictures are done, and the data tells it which there are."""
        data, checkpoint = self.datamodule, self._get(self.config, "ckpt_path")
        writer = PredictionWriter(
            self._get(self.config, "output") or "predictions",
            data.predict_pictures,
            {"name": type(data).__name__, "split": data.predict_split},
            Path(checkpoint).name if checkpoint else None,
            self._get(self.config, "overwrite"),
        )
        data.is_predicted = writer.is_written
        return writer

    def after_instantiate_classes(self) -> None:
        """Refuse weights of other classes than the data's before anything runs, and load what Lightning cannot."""
        if not self.checkpoint:
            return
        path, space = str(self._get(self.config, "ckpt_path")), self.checkpoint.get("label_space")
        stored = numbered_space(self.checkpoint["network"]["init_args"]["num_classes"]).class_names
        names = stored if space is None else space["class_names"]
        check_same_classes(names, self.datamodule.class_names, path, type(self.datamodule).__name__)
        if self.weights:
            load_strict(self.model.network, self.weights, path)
            self.config_init[self.subcommand]["ckpt_path"] = None

    def before_fit(self) -> None:
        """Put numbers in the place of a word for class weights; the checkpoint keeps the word."""
        kind = self.model.loss.class_weights
        if not isinstance(kind, str):
            return
        weights = self.datamodule.class_weights(kind)
        self.model.loss = replace(self.model.loss, class_weights=weights)
        by_weight = sorted(zip(weights, self.datamodule.class_names, strict=True))
        least, most = (f"{name} {weight:.3g}" for weight, name in (by_weight[0], by_weight[-1]))
        rank_zero_info(f"class weights {kind}: from {least} to {most}")

    def predict(self, **kwargs: Any) -> None:
        """Predict without keeping the predictions in memory: they are on the disk."""
        self.trainer.predict(**(kwargs | {"return_predictions": False}))


class FitConfig(SaveConfigCallback):
    """Writes the run's `config.yaml`, for `fit` only: a later test must not replace it."""

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Write it when fitting begins."""
        if stage == "fit":
            super().setup(trainer, pl_module, stage)


def _input_error(error: BaseException) -> InputError | None:
    """The `InputError` behind what jsonargparse wrapped, or Lightning's own complaint about the trainer's options."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, InputError):
            return cause
        cause = cause.__cause__
    return (
        InputError("trainer: " + " ".join(str(error).split())) if isinstance(error, MisconfigurationException) else None
    )


def _quiet() -> None:
    """Leave out what Lightning says that no user of segkit can act on."""
    for message in (
        ".*LightningCLI's args parameter.*",
        ".*isinstance.treespec.*",
        ".*does not have many workers.*",
        ".*The dirpath has changed.*",
    ):
        warnings.filterwarnings("ignore", message=message)
    for name in ("pytorch_lightning.utilities.rank_zero", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).addFilter(_is_no_advertisement)


def _is_no_advertisement(record: logging.LogRecord) -> bool:
    return "Tip:" not in record.getMessage()


def _last_checkpoint() -> ModelCheckpoint:
    """`last.ckpt` after every epoch; Lightning's `save_last` is written only when a better one is."""
    return ModelCheckpoint(filename="last", enable_version_counter=False, save_on_train_epoch_end=True)


def _next_run() -> Path:
    """`runs/<n>` with the first free number."""
    numbers = [int(p.name) for p in Path("runs").glob("*") if p.name.isdigit()]
    return Path("runs") / str(max(numbers, default=-1) + 1)


def _loggers(folder: Path) -> list[CSVLogger | TensorBoardLogger]:
    """CSV and TensorBoard logs, both in `folder` itself, which must not hold those of another run.

    Raises:
        InputError: It does; Lightning would delete them.
    """
    if (folder / "metrics.csv").exists():
        raise InputError(f"--run_dir {folder}: holds a training run already; give another folder, or none for runs/<n>")
    return [CSVLogger(folder, name="", version=""), TensorBoardLogger(folder, name="", version="")]
