"""`segkit fit | validate | test | predict`: LightningCLI over SegmentationModule and the data modules.

What the user typed beats the checkpoint, which beats the default: a checkpoint's hyper-parameters become the parser's
defaults before the command line and the config files are read. The test protocol is never taken from a checkpoint.
"""

import json
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytorch_lightning as pl
from pytorch_lightning import LightningDataModule
from pytorch_lightning.callbacks import ModelCheckpoint, ModelSummary, ProgressBar
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
from pytorch_lightning.plugins import CheckpointIO
from pytorch_lightning.plugins.environments import SLURMEnvironment  # type: ignore[attr-defined]
from pytorch_lightning.utilities import rank_zero_info

from segkit.cli.given import named, with_recipes, with_run
from segkit.cli.jsonargparse_border import SegmentationParser, explain
from segkit.cli.lightning_messages import input_error, quiet
from segkit.cli.options import add_options, check_typed
from segkit.cli.restore import differences, is_of_classification, parser_defaults, read_named_checkpoint
from segkit.cli.words import say
from segkit.data.band_statistics import band_statistics, band_table
from segkit.data.datamodule import SegmentationDataModule
from segkit.data.names import data_sets
from segkit.errors import InputError
from segkit.files import check_writable, free_path, write_refusal
from segkit.inference import protocols
from segkit.inference.exported.network import identified
from segkit.metadata.label_space import check_same_classes, numbered_space
from segkit.metadata.regroup import left_out_ids
from segkit.metadata.temperature import temperature_of
from segkit.models.checkpoint import Checkpoint, load_strict
from segkit.models.own import CLASS_COUNTS, own_network
from segkit.models.segmentation import NETWORKS, SegmentationModel
from segkit.ops.normalize import IMAGENET, Normalization
from segkit.ops.processor import is_out_of_memory
from segkit.paths import is_exported
from segkit.plain_data import flatten
from segkit.training.base import NetworkModule
from segkit.training.fit import FitConfig, as_list, fit_callbacks, fit_loggers
from segkit.training.guards.checkpoints import AtomicCheckpointIO, LastCheckpoint
from segkit.training.guards.preemption import Preempted
from segkit.training.guards.watchdog import OtherProcessError, Watchdog
from segkit.training.lightning_border import UserFirstCLI
from segkit.training.module import SegmentationModule
from segkit.training.network import EvaluationForm, SyncBatchNormPlugin
from segkit.training.prediction_writer import PredictionWriter, TestedImages
from segkit.training.preflight import smaller_batch
from segkit.training.probe import probe
from segkit.training.results import CalibrationReport, ResultWriter
from segkit.training.run_folder import CHECKPOINTS, PREDICTIONS, next_run, run_lock
from segkit.training.views.progress import RunProgress

# Classes that a config or the command line may name without giving their module.
SHORT_NAMES: tuple[type, ...] = (
    *data_sets().values(),
    *(network for network in NETWORKS.values() if SegmentationModel in network.__mro__),
)


def main(args: Sequence[str]) -> int:
    """Run one of Lightning's subcommands; `args[0]` is its name."""
    quiet()
    given, args = list(args), with_run(with_recipes(args))
    classifies = is_of_classification(args)
    checkpoint = read_named_checkpoint(args, foreign=classifies)
    if given == sys.argv[1:]:
        sys.argv[1:] = args  # Lightning's launcher starts the other processes with the real command line
    try:
        of_args = None if args == sys.argv[1:] else args
        (_classification() if classifies else SegmentationCLI)(checkpoint, args=of_args, typed=given)
    except Preempted as stopped:
        if stopped.signum == signal.SIGINT:
            raise KeyboardInterrupt from stopped
        return 128 + stopped.signum
    except OtherProcessError as failed:
        say(f"segkit {args[0]}: {failed}", to=sys.stderr)
        return 1
    except Exception as error:
        full = write_refusal(error, error.filename or named(args, "run_dir")) if isinstance(error, OSError) else None
        wrong_input = input_error(error) or full
        if wrong_input is None:
            raise
        raise wrong_input from error
    return 0


def _classification() -> "type[SegmentationCLI]":
    from segkit.cli.classification import ClassificationCLI  # which imports torchvision and timm

    return ClassificationCLI


class SegmentationCLI(UserFirstCLI):
    """LightningCLI with segkit's module, data modules, loggers and callbacks."""

    module_class: ClassVar[type[NetworkModule]] = SegmentationModule
    data_class: ClassVar[type[LightningDataModule]] = SegmentationDataModule
    short_names: ClassVar[tuple[type, ...]] = SHORT_NAMES

    def __init__(self, checkpoint: Checkpoint | None, args: list[str] | None = None, typed: Sequence[str] = ()) -> None:
        self.typed, self.command = typed, next(iter(typed), "fit")
        self.checkpoint: dict[str, Any] = {} if checkpoint is None else checkpoint.hyper_parameters
        self.weights = {} if checkpoint is None else checkpoint.state_dict  # empty if Lightning restores them
        self.temperature = 1.0 if checkpoint is None else temperature_of(checkpoint.card)
        self.known_keys: list[str] = []
        super().__init__(
            self.module_class,
            self.data_class,
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

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """The command that was typed and no other, since each parser takes time to build."""
        every = LightningCLI.subcommands()
        return {name: every[name] for name in self.typed[:1] or every}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add segkit's options, link the data to the model, and put the checkpoint's values below what is typed."""
        add_options(parser, self.command)
        self.known_keys = list(flatten(parser.get_defaults().as_dict()))
        self.link_data(parser)
        for name in CLASS_COUNTS:
            parser.link_arguments("data.num_classes", f"model.network.init_args.{name}", apply_on="instantiate")
        parser.set_defaults(parser_defaults(self.checkpoint))

    def link_data(self, parser: LightningArgumentParser) -> None:
        """Link the data's classes and channels to the model."""
        parser.link_arguments("data.label_space", "model.label_space", apply_on="instantiate")
        parser.link_arguments("data.num_channels", "model.network.init_args.in_channels", apply_on="instantiate")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse the command line; errors become one line."""
        try:
            super().parse_arguments(parser, args)
        except InputError as error:
            raise InputError(
                explain(str(error), [*self.known_keys, "ckpt_path", "config"], self._nameable())
            ) from error

    def _nameable(self) -> Sequence[type]:
        """The classes that a config may name, with the user's own network if the config names one."""
        name = named(self.typed[1:], "model.network.class_path") or named(self.typed[1:], "model.network") or ""
        with suppress(InputError):  # a later error reports it
            own = getattr(own_network(name), "own_class", None) if "." in name else None
            return self.short_names if own is None else (*data_sets().values(), own)
        return self.short_names

    def before_instantiate_classes(self) -> None:
        """Refuse an unknown metric and options without effect, and print every difference from the checkpoint."""
        check_typed(str(self.subcommand), self.typed, self.config[self.subcommand].as_dict())
        self.result_writer = ResultWriter(self.value(self.config, "metric"))
        self.protocol = self.read_protocol(self.value(self.config, "protocol"))
        model = self.config[self.subcommand].model.as_dict()
        for key, (stored, typed) in differences(self.checkpoint, model).items():
            self._check_restorable(key, stored, typed)
            rank_zero_info(f"model.{key}: {stored} (checkpoint) -> {typed} (given)")

    def read_protocol(self, given: Any) -> Any:
        """The protocol, given by its name, a file, or its fields."""
        return protocols.get(given) if isinstance(given, str) else protocols.from_fields(given)

    def _check_restorable(self, key: str, stored: Any, typed: Any) -> None:
        if key.startswith("network.") or (key == "optim.name" and self.subcommand == "fit"):
            raise InputError(
                f"model.{key}: the checkpoint has {stored}, {typed} was given, which its weights or optimiser state "
                "do not fit; leave it out to take the checkpoint's, or start without --ckpt_path"
            )

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """Add segkit's loggers, plugins and callbacks to those of the config."""
        config = self.value(self.config_init, "trainer")
        run = Path(self.value(self.config, "run_dir") or next_run())
        check_writable(*self._output(run))
        kwargs["default_root_dir"] = run
        kwargs["logger"] = self._loggers(config.get("logger"), run)
        best = self.value(self.config_init, "checkpoint")
        best.dirpath = best.dirpath or str(run / CHECKPOINTS)  # whatever folder a third-party logger would choose
        kwargs["plugins"] = as_list(config.get("plugins"))
        if not any(isinstance(plugin, CheckpointIO) for plugin in kwargs["plugins"]):
            kwargs["plugins"].append(AtomicCheckpointIO())
        if config.get("sync_batchnorm"):
            kwargs["plugins"].append(SyncBatchNormPlugin())
        kwargs["callbacks"] = self._callbacks(config, run)
        if config.get("enable_model_summary") is None:  # the optimiser's table has the parameters; FLOPs would read 0
            kwargs["enable_model_summary"] = any(isinstance(c, ModelSummary) for c in kwargs["callbacks"])
        trainer = super().instantiate_trainer(**kwargs)
        cluster = getattr(trainer.strategy, "cluster_environment", None)
        if isinstance(cluster, SLURMEnvironment):
            cluster.auto_requeue = False  # it requeues inside a signal handler; `Preemption` does so between steps
        # Best checkpoint first, because `last.ckpt` refers to it.
        trainer.callbacks.sort(  # type: ignore[attr-defined]
            key=lambda c: 2 if isinstance(c, LastCheckpoint) else int(isinstance(c, ModelCheckpoint))
        )
        return trainer

    def _callbacks(self, config: Any, run: Path) -> list[pl.Callback]:
        """The config's callbacks, and segkit's in the order in which they must run."""
        given = config.get("callbacks") or []
        callbacks = [*given, self.result_writer, EvaluationForm(self.value(self.config, "test_precision"))]
        if self.subcommand == "fit":
            callbacks += fit_callbacks(
                self.config[self.subcommand].as_dict(), run, self.datamodule.faster_loading, self.module_class
            )
        callbacks.append(Watchdog(self.value(self.config, "rank_timeout")))
        if self.subcommand == "predict":
            callbacks.append(self._prediction_writer())
        if self.value(self.config, "official"):
            from segkit.training.official import OfficialCityscapes  # and with it, cityscapesScripts

            callbacks.append(OfficialCityscapes())
        if self.value(self.config, "calibration") or self.value(self.config, "report"):
            callbacks.append(CalibrationReport())
        if self.value(self.config, "report"):
            callbacks.append(self._writer(free_path(run / PREDICTIONS), "test", TestedImages))
        a_bar = config.get("enable_progress_bar") is not False and not any(isinstance(c, ProgressBar) for c in given)
        if a_bar and (self.subcommand != "fit" or not sys.stdout.isatty()):  # Lightning's bar is redrawn each step
            callbacks.append(RunProgress())
        return callbacks

    def _output(self, run: Path) -> tuple[Path, str]:
        """The folder that the command writes to, and the option that sets it."""
        if self.subcommand == "predict":
            return Path(self.value(self.config, "output") or "predictions"), "--output"
        return run, "--run_dir"

    def _loggers(self, given: Any, run: Path) -> Any:
        """Loggers for training only; a test writes its result file and does not touch the run's logs."""
        if self.subcommand == "fit":
            return fit_loggers(given, run, self.value(self.config, "ckpt_path"))
        return False if given in (None, True) else given

    def _prediction_writer(self) -> PredictionWriter:
        """The callback that writes predictions; it reports finished images to the data, which list all images."""
        writer = self._writer(self._output(Path())[0], "predict", PredictionWriter)
        self.datamodule.is_predicted = writer.is_written
        return writer

    def _writer(self, output: Path, stage: str, kind: type[PredictionWriter]) -> PredictionWriter:
        """A callback that writes the label maps of a stage."""
        data, checkpoint = self.datamodule, self.value(self.config, "ckpt_path")
        return kind(
            output,
            partial(data.predict_images, stage),
            {"name": type(data).__name__, "split": data.predict_split if stage == "predict" else stage},
            Path(checkpoint).name if checkpoint else None,
            self.value(self.config, "overwrite"),
            self.value(self.config, "confidence") or stage == "test",
            self._data_config(),
        )

    def _data_config(self) -> dict[str, Any]:
        """Class path and arguments of the data module as plain data, its folder absolute."""
        config: dict[str, Any] = json.loads(json.dumps(self.value(self.config, "data").as_dict(), default=str))
        arguments = config.get("init_args", {})
        if arguments.get("root"):  # a data module of the user's own may have another name for it
            arguments["root"] = str(Path(arguments["root"]).absolute())
        return config

    def after_instantiate_classes(self) -> None:
        """Refuse weights of other classes than the data's before anything runs; load files that Lightning cannot."""
        without = self.value(self.config, "without") or []
        names = [without] if isinstance(without, str) else without
        if isinstance(self.model, SegmentationModule):
            self.model.without = left_out_ids(names, self.model.classes.class_names)
            self.model.temperature = self.temperature
        elif names:
            raise InputError("--without: is for a mean over classes, which images of one class each have none of")
        self.set_protocol()
        self.set_normalization()
        if not self.checkpoint:
            return
        path = str(self.value(self.config, "ckpt_path"))
        check_same_classes(self.stored_names(), self.datamodule.class_names, path, type(self.datamodule).__name__)
        if is_exported(path):
            if self.value(self.config, "test_precision") != "exact":
                raise InputError(f"--test_precision: {path} runs as it was exported; leave it out")
            self.model.network = identified(Path(path), self.model.normalization)
            self.config_init[self.subcommand]["ckpt_path"] = None
        if self.weights:
            load_strict(self.model.network, self.weights, path)
            self.config_init[self.subcommand]["ckpt_path"] = None

    def set_normalization(self) -> None:
        """Give the model the data's range and, if it asks for them, the data's mean and std.

        Raises:
            InputError: The checkpoint's bands are not those of the data.
        """
        data, stored = self.datamodule, self.checkpoint.get("normalization")
        if stored is not None:
            data.take_bands(Normalization.from_dict(stored).bands, str(self.value(self.config, "ckpt_path")))
        found = self.model.normalization
        if self.value(self.config, "model.normalization") == "data":
            if stored is None:
                counted = band_statistics(data, data.bands, data.bands, say=rank_zero_info)
                rank_zero_info(f"normalization of the data\n{band_table(counted)}")
                stored = {"mean": counted[1], "std": counted[2]}
            found = Normalization.from_dict(stored)
        elif found.mean != IMAGENET.adapted(len(found.mean)).mean and stored is None:
            whose = "of the encoder" if self.value(self.config, "model.normalization") == "encoder" else "as given"
            rank_zero_info(f"normalization {whose}: mean {list(found.mean)}, std {list(found.std)}")
        self.model.normalize_by(replace(found, bands=data.bands))

    def set_protocol(self) -> None:
        """Give the model the protocol by which images are scored."""
        self.model.protocol = self.protocol
        scale = self.value(self.config, "validation_scale")
        self.model.validation_protocol = replace(self.model.validation_protocol, scales=(scale,))

    def stored_names(self) -> Sequence[str]:
        """The checkpoint's class names."""
        space = self.checkpoint.get("label_space")
        if space is not None:
            return [str(name) for name in space["class_names"]]
        return numbered_space(self.checkpoint["network"]["init_args"]["num_classes"]).class_names

    def before_fit(self) -> None:
        """Replace the name of a rule for class weights by its numbers; the checkpoint keeps the name."""
        kind = self.model.loss.class_weights
        if not isinstance(kind, str):
            return
        weights = self.datamodule.class_weights(kind)
        self.model.loss = replace(self.model.loss, class_weights=weights)
        by_weight = sorted(zip(weights, self.datamodule.class_names, strict=True))
        least, most = (f"{name} {weight:.3g}" for weight, name in (by_weight[0], by_weight[-1]))
        rank_zero_info(f"class weights {kind}: from {least} to {most}")

    def fit(self, **kwargs: Any) -> None:
        """Train; if memory runs out, say what would fit.

        Raises:
            InputError: Memory ran out.
        """
        if self.value(self.config, "probe"):
            for line in probe(self.trainer, self.model, self.datamodule):
                say(line)
            return
        try:
            with run_lock(Path(self.trainer.default_root_dir)):
                self.trainer.fit(**(kwargs | {"weights_only": True}))  # nothing in a checkpoint is unpickled
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise InputError(self.out_of_memory()) from error

    def out_of_memory(self) -> str:
        """The message for a training that ran out of memory, with settings that would fit."""
        accumulated = self.trainer.accumulate_grad_batches
        return smaller_batch(self.datamodule.batch_size, accumulated, self.datamodule.crop_size)

    def after_test(self) -> None:
        """Make the page of `--report`, of the files that all processes have written."""
        if not (self.value(self.config, "report") and self.trainer.is_global_zero):
            return
        from segkit.cli.report.sources import Wanted  # and with it, jinja2
        from segkit.cli.report.subjects import make_report

        run, checkpoints = Path(self.trainer.default_root_dir), Path(self.value(self.config, "ckpt_path") or "").parent
        trained_in = checkpoints.parent if checkpoints.name == CHECKPOINTS else None
        wanted = Wanted(data=self.datamodule, split="test", trained_in=trained_in)
        make_report([run], None, run / "report.html", None, wanted)

    def predict(self, **kwargs: Any) -> None:
        """Predict without keeping the predictions in memory, as they are written to disk."""
        self.trainer.predict(**(kwargs | {"return_predictions": False}))
