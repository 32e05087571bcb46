"""`segkit fit | validate | test` for a classifier: the same command line with another module and other data."""

from collections.abc import Sequence
from typing import Any, ClassVar

from pytorch_lightning import LightningDataModule
from pytorch_lightning.cli import LightningArgumentParser

from segkit.cli.lightning import SegmentationCLI
from segkit.cli.parser import option_names
from segkit.data.imagenet.crops import CentreCrop
from segkit.data.imagenet.datamodule import ImageNetDataModule
from segkit.errors import InputError
from segkit.models.classifier import Classifier
from segkit.models.pretrained import timm_name
from segkit.models.weights import load_classifier_weights
from segkit.training.base import NetworkModule
from segkit.training.classification import ClassificationModule

# Options that have no effect on a classifier.
_OF_PIXELS = ("metric", "test_precision", "official", "confidence", "calibration", "report", "probe",
              "init_from", "validation_scale", "overlays")  # fmt: skip


class ClassificationCLI(SegmentationCLI):
    """The command line of a classifier, whose test protocol is a centre crop."""

    module_class: ClassVar[type[NetworkModule]] = ClassificationModule
    data_class: ClassVar[type[LightningDataModule]] = ImageNetDataModule
    short_names: ClassVar[tuple[type, ...]] = (ImageNetDataModule, Classifier)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Take a centre crop as the protocol, and top-1 as the score that decides on the best checkpoint."""
        super().add_arguments_to_parser(parser)
        best = {"monitor": ClassificationModule.score, "filename": "epoch{epoch:03d}-top1{val/top1:.4f}"}
        parser.set_defaults({"protocol": "resnest"} | {f"checkpoint.{name}": value for name, value in best.items()})

    def link_data(self, parser: LightningArgumentParser) -> None:
        """Link the data's number of classes and class names to the model."""
        parser.link_arguments("data.class_names", "model.class_names", apply_on="instantiate")

    def before_instantiate_classes(self) -> None:
        """Refuse options that have no effect on a classifier."""
        if self.subcommand == "predict":
            raise InputError("predict writes label maps, and a classifier makes none; use `segkit test`")
        typed = {name.removeprefix("--") for name in option_names(self.typed)}
        if self.value(self.config, "test_precision") != "exact":  # typed or not: classifiers have no inference form
            typed.add("test_precision")
        for name in _OF_PIXELS:
            if name in typed:
                raise InputError(f"--{name}: has no effect on a classifier, only on segmentation; leave it out")
        super().before_instantiate_classes()

    def read_protocol(self, given: Any) -> CentreCrop:
        """The centre crop, given by its name or its fields."""
        return CentreCrop.of(given)

    def set_protocol(self) -> None:
        """Give the crop to the data, which apply it, and to the model, whose result file states it."""
        encoder = self.model.network.config["init_args"]["encoder"]
        crop = self.protocol.resolved(self.datamodule.crop_size[0], timm_name(encoder))
        self.datamodule.protocol, self.model.protocol = crop, crop.to_dict()
        path = self.value(self.config, "ckpt_path")
        if path and not self.checkpoint and self.subcommand != "fit":
            load_classifier_weights(self.model.network, path)
            self.config_init[self.subcommand]["ckpt_path"] = None

    def set_normalization(self) -> None:
        """Do nothing: the images are uint8 RGB, so the data declare no normalization."""

    def stored_names(self) -> Sequence[str]:
        """The checkpoint's class names, or the data's if the checkpoint has none."""
        return [str(name) for name in self.checkpoint.get("class_names") or self.datamodule.class_names]

    def before_fit(self) -> None:
        """Do nothing: a classifier needs no class weights."""

    def out_of_memory(self) -> str:
        """The message for a training that ran out of memory, with settings that would fit."""
        batch, accumulated = self.datamodule.batch_size, self.trainer.accumulate_grad_batches
        return (
            f"out of memory with data.batch_size {batch}: take --data.batch_size {max(1, batch // 2)} "
            f"--trainer.accumulate_grad_batches {2 * accumulated} (as many images a step), or --trainer.precision "
            "bf16-mixed"
        )
