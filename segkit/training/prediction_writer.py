"""The label maps of `segkit predict`: each image is predicted once, with any number of processes and interruptions.

A file that exists is complete (`segkit.io` renames finished files), so a resumed run skips the images whose file
exists. Each process checks only its own images, so that none depends on how far another one is.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import BasePredictionWriter
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor

from segkit.errors import InputError
from segkit.evaluation.results import command_line, now, versions
from segkit.files import remove_left_behind
from segkit.inference.engine import resolve
from segkit.io import write_png
from segkit.io.confidence import ENDING, write_confidence
from segkit.models.checkpoint import weights_sha256
from segkit.predictions.manifest import NAME, Manifest, images_identity, read_manifest
from segkit.training.module import SegmentationModule


class PredictionWriter(BasePredictionWriter):
    """Writes each predicted label map as an 8-bit PNG of train ids, `OUTPUT/<name>.png`, as soon as it is known.

    `OUTPUT/predictions.json` says what made them (`segkit.predictions.manifest`). A folder made by something else is
    refused before anything is written.

    Args:
        output: The folder.
        images: Returns name and bytes of every image; called after the data's setup.
        dataset: Name and split, for the manifest.
        weights_file: Name of the checkpoint, for the manifest.
        overwrite: Replace label maps that exist already, whatever made them.
        confidence: Also write each image's confidence map, `OUTPUT/<name>_confidence.png`.
        data: Class path and arguments of the data module, for the manifest: where images and truth are.
    """

    def __init__(
        self,
        output: str | Path,
        images: Callable[[], Mapping[str, int]],
        dataset: Mapping[str, str],
        weights_file: str | None = None,
        overwrite: bool = False,
        confidence: bool = False,
        data: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(write_interval="batch")
        self.output, self.images, self.dataset = Path(output), images, dict(dataset)
        self.weights_file, self.overwrite, self.confidence, self.data = weights_file, overwrite, confidence, data
        self._identity: dict[str, Any] = {}
        self._earlier: Manifest | None = None
        self._manifest: Manifest | None = None
        self._nothing_left = False

    def is_written(self, name: str) -> bool:
        """Whether the label map of an image exists, and its confidence map, if one is wanted."""
        return self._path(name).is_file() and (not self.confidence or self._path(name, ENDING).is_file())

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check the folder before any process writes; Lightning waits for all of them afterwards.

        Raises:
            InputError: The folder has label maps of these names but no manifest, or, if they are to be replaced, a
                manifest of other images.
        """
        assert isinstance(pl_module, SegmentationModule)
        pl_module.predicts_confidence = self.confidence
        images = self.images()
        self._check_names(images)
        self._identity = images_identity(images)
        self._earlier = read_manifest(self.output)
        done = [name for name in images if self._path(name).is_file()]
        if self.overwrite:
            self._check_same_images()
        elif done and self._earlier is None:
            raise InputError(
                f"{self._path(done[0])}: exists without a {NAME} that says what made it; "
                "give another --output, or --overwrite to replace it"
            )
        if trainer.is_global_zero:
            self._clean(done)
        if done and not self.overwrite:
            left = sum(not self.is_written(name) for name in images)
            self._nothing_left = left == 0
            exist = len(images) - left
            rank_zero_info(f"{self.output}: {exist} of {len(images)} images already exist; {left} to do")

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the manifest, which records what makes the label maps.

        Raises:
            InputError: The folder was begun with other weights, protocol, precision, images or classes.
        """
        manifest = self._check(trainer, pl_module)
        if trainer.is_global_zero:
            manifest.write(self.output)

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Tensor | tuple[Tensor, Tensor],
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Write the files of each image."""
        found = [part.cpu().numpy() for part in (prediction if isinstance(prediction, tuple) else (prediction,))]
        for name, labels, *confidence in zip(batch["name"], *found, strict=True):
            if labels.dtype.itemsize > 1:
                raise InputError(f"predict: more than 256 classes do not fit an 8-bit PNG ({name})")
            for sure in confidence:
                write_confidence(self._path(name, ENDING), sure)
            write_png(self._path(name), labels)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Mark the manifest as complete if all images are written, as the last process to end always finds them.

        Raises:
            InputError: The folder was begun with something else, and `on_predict_start`, which would have refused it,
                was not called because nothing was left to do.
        """
        manifest = self._check(trainer, pl_module) if self._manifest is None else self._manifest
        names = self.images()
        written = sum(self.is_written(name) for name in names)
        said_before = self._nothing_left and self._earlier is not None and self._earlier.complete
        if written == len(names) and not said_before:
            replace(manifest, complete=True).write(self.output)
        rank_zero_info(f"predictions: {self.output}, {written} of {len(names)} images")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Say that the label maps are kept, and how to resume."""
        if self._manifest is not None:
            rank_zero_info(f"label maps in {self.output} are kept; the same command continues from there")

    def _path(self, name: str, ending: str = ".png") -> Path:
        return self.output / f"{name}{ending}"

    def _check_names(self, images: Mapping[str, int]) -> None:
        ending = ENDING.removesuffix(".png")
        clash = next((name for name in images if self.confidence and name + ending in images), None)
        if clash is not None:
            raise InputError(f"--confidence: there are images {clash} and {clash}{ending}; rename the second")

    def _check_same_images(self) -> None:
        if self._earlier is not None and self._earlier.images != self._identity:
            raise InputError(
                f"{self.output}: holds label maps of other images ({self._earlier.dataset['name']}, "
                f"{self._earlier.dataset['split']}), which would stay among the new ones; give another --output"
            )

    def _clean(self, done: Sequence[str]) -> None:
        """Remove half-written files of a killed run, and files to be replaced, the manifest last."""
        for folder in {path.parent for path in self.output.rglob(".*.tmp")}:
            remove_left_behind(folder)
        if self.overwrite:
            for name in done:
                self._path(name).unlink()
                self._path(name, ENDING).unlink(missing_ok=True)
            (self.output / NAME).unlink(missing_ok=True)

    def _check(self, trainer: Trainer, module: LightningModule) -> Manifest:
        """Make this run's manifest once the weights are loaded, and compare it with the folder's."""
        assert isinstance(module, SegmentationModule)
        manifest = Manifest(
            weights={"file": self.weights_file, "sha256": weights_sha256(module.network.state_dict())},
            protocol=resolve(module.protocol, module.network).to_dict(),
            precision=str(trainer.precision),
            dataset=self.dataset,
            images=self._identity,
            label_space=module.classes.to_dict(),
            complete=False,
            run={
                "command": command_line(),
                "date": now(),
                "processes": trainer.world_size,
                "versions": versions(),
                "data": self.data,
                **({"temperature": module.temperature} if self.confidence else {}),
            },
        )
        if self._earlier is not None and not self.overwrite:
            difference = self._earlier.difference(manifest)
            before = self._earlier.run.get("temperature", module.temperature)
            if difference is None and self.confidence and before != module.temperature:
                difference = f"temperature: {before}, not {module.temperature}"
            if difference is not None:
                raise InputError(
                    f"{self.output}: holds label maps made by something else ({difference}); "
                    "give another --output, or --overwrite to make them again"
                )
        self._manifest = manifest
        return manifest


class TestedImages(PredictionWriter):
    """`segkit test --report`: writes label map and confidence of every image that is tested, into a folder of its own.

    The module measures calibration, too, as it then knows the confidence.
    """

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the manifest."""
        self.on_predict_start(trainer, pl_module)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Write the files of each image."""
        assert isinstance(pl_module, SegmentationModule) and pl_module.confidence is not None
        found = outputs, pl_module.confidence
        self.write_on_batch_end(trainer, pl_module, found, None, batch, batch_idx, dataloader_idx)
