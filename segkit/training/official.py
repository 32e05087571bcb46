"""`segkit test --official`: cityscapesScripts' own evaluation beside segkit's, on label-id PNGs of the same run."""

from pathlib import Path
from typing import Any

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor

from segkit.errors import InputError
from segkit.evaluation.results import versions
from segkit.files import free_path, write_json
from segkit.io import write_png
from segkit.predictions.cityscapes import (
    TRUTH_ENDING,
    check_instances,
    differences,
    format_official,
    official_scores,
)
from segkit.predictions.label_files import SERVERS
from segkit.predictions.pairs import LabelPair
from segkit.training.module import Batch, SegmentationModule
from segkit.training.preflight import is_whole

_SERVER = SERVERS["cityscapes"]


class OfficialCityscapes(Callback):
    """Writes each label map as a PNG of label ids into `<run>/official/`, and scores them all after the test.

    The official table is printed beside segkit's and written to `<run>/official.json`. Each process writes its own
    images; the first one scores them.

    Raises:
        InputError: Before anything runs, if this is not a test, not on Cityscapes, or on only part of the split, or if
            instance files are missing.
        RuntimeError: At the end, if a class score differs from segkit's in any digit.
    """

    def __init__(self) -> None:
        self.folder = Path("official")

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse to fit, validate or predict."""
        if stage != "test":
            raise InputError("--official: official scores are those of `segkit test`; leave it out here")

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse what cannot be scored, and choose a new folder."""
        truths = _truths(trainer)
        limit = trainer.limit_test_batches
        if not is_whole(limit):
            raise InputError(
                f"--official: official scores are of a whole split; leave out limit_test_batches ({limit})"
            )
        check_instances(list(truths.values()))
        run = Path(trainer.log_dir or ".")  # read on every rank, because it is broadcast
        self.folder = trainer.strategy.broadcast(free_path(run / "official"))

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int, *_: int
    ) -> None:
        """Write one file per image; `outputs` are train ids (B, H, W)."""
        assert isinstance(outputs, Tensor)
        for name, labels in zip(batch["name"], outputs.cpu().numpy(), strict=True):
            write_png(self._path(name), _SERVER.space.unmap_labels(labels))

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Score the PNGs once all processes have written them; print, compare and write the scores."""
        trainer.strategy.barrier("official")
        if not trainer.is_global_zero:
            return
        assert isinstance(pl_module, SegmentationModule) and pl_module.scores is not None
        class_iou = pl_module.scores.class_iou
        pairs = [LabelPair(name, truth, self._path(name)) for name, truth in _truths(trainer).items()]
        found = official_scores(pairs)
        wrong = differences(found, class_iou)
        path = free_path(self.folder.with_name("official.json"))
        rank_zero_info(f"\n{format_official(found, class_iou)}\n{len(pairs)} images")  # first: writing may fail
        write_json(path, found | {"equals_segkit": not wrong, "differences": wrong, "versions": versions()})
        rank_zero_info(f"{path}, {self.folder}")
        if wrong:
            raise RuntimeError(f"official scores differ from segkit's: {'; '.join(wrong)}; report this with {path}")
        rank_zero_info("all class scores and their mean equal segkit's to the last digit")

    def _path(self, name: str) -> Path:
        key = _SERVER.key(name)
        if key is None:
            raise InputError(f"{name}: no Cityscapes image; names begin with CITY_SEQUENCE_FRAME, 6 digits each")
        return self.folder / f"{key}{_SERVER.ending}"


def _truths(trainer: Trainer) -> dict[str, Path]:
    """Name of each test image and its `*_gtFine_labelIds.png`."""
    loader: Any = trainer.test_dataloaders
    truths: dict[str, Path] = {s.name: s.mask for s in loader.dataset.samples if s.mask is not None}
    other = next((path for path in truths.values() if not path.name.endswith(TRUTH_ENDING)), None)
    if other is not None:
        raise InputError(f"--official: cityscapesScripts scores CityscapesDataModule only, not {other}; leave it out")
    return truths
