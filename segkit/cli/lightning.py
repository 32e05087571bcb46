"""`segkit fit | validate | test | predict`: LightningCLI over SegmentationModule and the data modules.

What the user typed beats the checkpoint, which beats the default: a checkpoint's hyper-parameters become the parser's
defaults before the command line and the config files are read. How one tests is never taken from a checkpoint.
"""

import logging
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import yaml
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from pytorch_lightning.utilities import rank_zero_info

from segkit.cli.arguments import SegmentationParser, explain, flatten
from segkit.data.ade20k import ADE20KDataModule
from segkit.data.cityscapes import CityscapesDataModule
from segkit.data.datamodule import SegmentationDataModule
from segkit.data.folder import FolderDataModule
from segkit.data.synthetic import SyntheticDataModule
from segkit.errors import InputError
from segkit.inference.protocols import Protocol
from segkit.models.segmentation import FCN, DeepLabV3
from segkit.models.weights import read_checkpoint
from segkit.training.callbacks import CurvePlotter, PredictionWriter, ResultWriter, Throughput
from segkit.training.module import SegmentationModule

# Classes that a config or the command line may name without their module.
SHORT_NAMES = (ADE20KDataModule, CityscapesDataModule, FolderDataModule, SyntheticDataModule, FCN, DeepLabV3)

RESTORED = ("network", "optim", "loss", "normalization")  # of a checkpoint's hyper-parameters


def main(args: Sequence[str]) -> int:
    """Run one of Lightning's subcommands; `args[0]` is its name."""
    _quiet()
    checkpoint = _checkpoint_hyper_parameters(args)
    try:
        # Lightning's launcher looks at the real command line; only a caller from Python hands over another.
        SegmentationCLI(checkpoint, args=None if list(args) == sys.argv[1:] else list(args))
    except (MisconfigurationException, ValueError) as error:
        raise _input_error(error) or error from error
    return 0


class SegmentationCLI(LightningCLI):
    """LightningCLI with segkit's module, data modules, loggers and callbacks."""

    def __init__(self, checkpoint: dict[str, Any], args: list[str] | None = None) -> None:
        self.checkpoint = checkpoint
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
        parser.add_argument("--run_dir", type=str | None, default=None, help="where the run writes; default: runs/<n>")
        parser.add_argument("--output", type=str | None, default=None, help="folder of `predict`'s PNGs")
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
        parser.set_defaults(_parser_defaults(self.checkpoint))

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse; what is wrong is said in one line."""
        try:
            super().parse_arguments(parser, args)
        except InputError as error:
            raise InputError(explain(str(error), [*self.known_keys, "ckpt_path", "config"], SHORT_NAMES)) from error

    def _parse_ckpt_path(self) -> None:
        """Do nothing: Lightning 2.6 lets a checkpoint win over the user here (Lightning pull request 21455)."""

    def before_instantiate_classes(self) -> None:
        """Print what differs from the checkpoint."""
        if not self.checkpoint:
            return
        typed = flatten(self.config[self.subcommand].model.as_dict())
        stored = flatten({name: self.checkpoint[name] for name in RESTORED})
        for key in sorted(stored.keys() & typed.keys()):
            if not key.endswith("num_classes") and not _same(stored[key], typed[key]):
                self._check_restorable(key, stored[key], typed[key])
                rank_zero_info(f"model.{key}: {stored[key]} (checkpoint) -> {typed[key]} (given)")

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
        callbacks = [Throughput(), CurvePlotter(), ResultWriter(), _last_checkpoint()]
        if self.subcommand == "predict":
            callbacks.append(PredictionWriter(self._get(self.config, "output") or "predictions"))
        kwargs["callbacks"] = [*(config.get("callbacks") or []), *callbacks]
        return super().instantiate_trainer(**kwargs)

    def after_instantiate_classes(self) -> None:
        """Refuse weights of other classes than the data's before anything runs."""
        if not self.checkpoint:
            return
        stored = self.checkpoint["network"]["init_args"]["num_classes"]
        if stored != self.datamodule.num_classes:
            raise InputError(
                f"the checkpoint was trained on {stored} classes, {type(self.datamodule).__name__} has "
                f"{self.datamodule.num_classes}; give the data set that it was made for"
            )

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
    for message in (".*LightningCLI's args parameter.*", ".*isinstance.treespec.*", ".*does not have many workers.*"):
        warnings.filterwarnings("ignore", message=message)
    for name in ("pytorch_lightning.utilities.rank_zero", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).addFilter(_is_no_advertisement)


def _is_no_advertisement(record: logging.LogRecord) -> bool:
    return "Tip:" not in record.getMessage()


def _checkpoint_hyper_parameters(args: Sequence[str]) -> dict[str, Any]:
    """Hyper-parameters in the checkpoint that the command line or its config files name; empty without one."""
    path = _ckpt_path(args)
    if path is None or path in ("best", "last", "hpc", "registry"):
        return {}
    return read_checkpoint(path).hyper_parameters


def _ckpt_path(args: Sequence[str]) -> str | None:
    path = None
    options = list(zip(args, [*args[1:], ""], strict=True))
    for option, value in options:
        name, equals, rest = option.partition("=")
        value = rest if equals else value
        if name == "--ckpt_path":
            path = value
        elif name in ("-c", "--config") and Path(value).is_file():
            content = _read_yaml(Path(value))
            path = (content.get("ckpt_path") if isinstance(content, dict) else None) or path
    return None if path in (None, "null") else path


def _read_yaml(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise InputError(f"{path}{where}: not valid YAML: {getattr(error, 'problem', error)}") from error


def _parser_defaults(checkpoint: dict[str, Any]) -> dict[str, Any]:
    defaults = {}
    for name in RESTORED:
        if name in checkpoint:
            value = checkpoint[name]
            nested = {"": value} if name == "network" else {f".{key}": v for key, v in value.items()}
            defaults.update({f"model.{name}{key}": v for key, v in nested.items()})
    return defaults


def _same(stored: Any, typed: Any) -> bool:
    sequences = isinstance(stored, (list, tuple)) and isinstance(typed, (list, tuple))
    return list(stored) == list(typed) if sequences else bool(stored == typed)


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
