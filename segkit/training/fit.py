"""What `segkit fit` adds to the config's trainer: loggers, and the callbacks that watch over a run."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.cli import SaveConfigCallback

from segkit.files import free_path
from segkit.models.weight_files import read_torch_file
from segkit.plain_data import flatten
from segkit.training.base import NetworkModule
from segkit.training.guards.checkpoints import LastCheckpoint, checked_training
from segkit.training.guards.nonfinite import NonFiniteGuard
from segkit.training.guards.preemption import Preemption
from segkit.training.guards.resume import ExactResume, StepSeeds
from segkit.training.module import SegmentationModule
from segkit.training.network import InitialWeights
from segkit.training.run_folder import CHECKPOINTS, csv_logger, goes_on, tensorboard_loggers
from segkit.training.views.curves import CurvePlotter
from segkit.training.views.data import SeenClasses, Throughput
from segkit.training.views.overlays import ValidationOverlays
from segkit.training.views.summary import RunSummary

# Settings that affect batches, loss and steps: a run is not resumed if one of these has changed.
_OF_THE_RUN = ("max_epochs", "max_steps", "accumulate_grad_batches", "precision", "gradient_clip_val",
               "gradient_clip_algorithm", "limit_train_batches", "sync_batchnorm")  # fmt: skip
_OF_THE_MODEL = ("optim", "loss", "frozen_stages", "norm_eval")
_OF_A_CLASSIFIER = ("mixup", "label_smoothing", "lighting")
_OF_THE_MACHINE = {"root", "cache_dir", "num_workers", "predict_split", "batch_size"}  # the total batch is compared


def fit_callbacks(
    config: Mapping[str, Any],
    run: Path,
    faster_loading: Callable[[], str],
    module: type[NetworkModule] = SegmentationModule,
) -> list[pl.Callback]:
    """The callbacks of a training, in the order in which they must run.

    Args:
        config: The parsed options of `fit`, as plain data.
        run: The run's folder.
        faster_loading: Returns advice on how to load the data faster.
        module: Class of the trained module.

    Raises:
        InputError: An option is out of range.
    """
    beginning = () if config["ckpt_path"] else (config["encoder_weights"], config["init_from"])
    seed, last = config["seed_everything"], LastCheckpoint(run / CHECKPOINTS, config["save_every"])
    of_pixels = issubclass(module, SegmentationModule)
    return [
        InitialWeights(*beginning),
        StepSeeds(seed if isinstance(seed, int) and not isinstance(seed, bool) else None),
        ExactResume(_record(config), config["reschedule"]),
        NonFiniteGuard(config["skip_nonfinite"]),
        *([SeenClasses()] if of_pixels else []),
        Throughput(faster_loading),
        *([ValidationOverlays(config["overlays"])] if of_pixels else []),
        CurvePlotter(),
        RunSummary(module.score),
        Preemption(last),
        last,
    ]


def fit_loggers(given: Any, run: Path, checkpoint: str | None) -> Any:
    """CSV, from which the curves are drawn, beside the loggers of the config or, where it names none, TensorBoard.

    Args:
        given: `trainer.logger`: None, a bool, or loggers.
        run: The run's folder.
        checkpoint: The checkpoint to resume from.

    Raises:
        InputError: The folder holds another run's logs, or the checkpoint is damaged.
    """
    if given is False:
        return False
    first = None
    if checkpoint and goes_on(run, checkpoint):  # the first step that has yet to be logged
        first = checked_training(read_torch_file(checkpoint), checkpoint)["global_step"]
    csv = csv_logger(run, first)
    return [csv, *(tensorboard_loggers(run, first) if given in (None, True) else as_list(given))]


class FitConfig(SaveConfigCallback):
    """Writes the run's `config.yaml`, for `fit` only: neither a later test nor a resumed run replaces it."""

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Write it when fitting begins; a resumed run writes beside the first one, if its settings may differ."""
        if stage != "fit":
            return
        run = Path(trainer.default_root_dir)
        if goes_on(run, self.config.ckpt_path):
            if not self.config.reschedule:
                return
            self.config_filename = trainer.strategy.broadcast(free_path(run / self.config_filename).name)
        super().setup(trainer, pl_module, stage)


def as_list(value: Any) -> list[Any]:
    """A list of one value, of several, or of none."""
    return [] if value is None else list(value) if isinstance(value, (list, tuple)) else [value]


def _record(config: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that affect batches, loss and steps, as plain values by dotted name; none depend on the machine."""
    model = {f"model.{name}": config["model"].get(name) for name in (*_OF_THE_MODEL, *_OF_A_CLASSIFIER)}
    data = config["data"].get("init_args", {})
    return flatten(
        {f"trainer.{name}": config["trainer"].get(name) for name in _OF_THE_RUN}
        | model
        | {f"data.{name}": value for name, value in data.items() if name not in _OF_THE_MACHINE}
        | {"seed_everything": config["seed_everything"]}
    )
