"""Images of validation: which are drawn, their pixels, where they go, and what draws none."""

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import DataLoader

from segkit.errors import InputError
from segkit.metadata.label_space import LabelSpace, identity_table
from segkit.models.segmentation import FCN
from segkit.training.module import SegmentationModule
from segkit.training.views.overlays import Example, ValidationOverlays, draw_examples

# The first class is black, as VOC's background is.
SPACE = LabelSpace(
    ("background", "road, street", "sky"), ((0, 0, 0), (128, 64, 128), (70, 130, 180)), identity_table(3)
)


class Module(SegmentationModule):
    """Predicts class 2, whatever the network says."""

    def validation_step(self, batch, batch_idx):
        super().validation_step(batch, batch_idx)
        return torch.full_like(batch["mask"], 2)


def batch(number: int, size: int = 1, shape: tuple[int, int] = (32, 48)) -> dict:
    mask = torch.ones(size, *shape, dtype=torch.uint8)
    mask[:, : shape[0] // 2] = 255
    image = torch.full((size, 3, *shape), 10 * number, dtype=torch.uint8)
    return {"image": image, "mask": mask, "name": [f"city/{number}{i}" for i in range(size)]}


def trainer(folder: Path, *loggers, fn="fit", sanity=False, rank=0) -> SimpleNamespace:
    return SimpleNamespace(
        state=SimpleNamespace(fn=fn),
        sanity_checking=sanity,
        is_global_zero=rank == 0,
        default_root_dir=str(folder),
        loggers=list(loggers),
        current_epoch=7,
        global_step=123,
        num_val_batches=[math.inf],
    )


def validate(overlays: ValidationOverlays, fake: SimpleNamespace, batches: list[dict], module=None) -> None:
    fake.num_val_batches = [len(batches)]
    overlays.on_validation_start(fake, module)
    for i, given in enumerate(batches):
        overlays.on_validation_batch_end(fake, module, torch.full_like(given["mask"], 2), given, i)
    overlays.on_validation_end(fake, module)


def test_a_fit_leaves_the_same_images_after_each_validation(tmp_path: Path) -> None:
    loggers = [CSVLogger(tmp_path, name="", version=""), TensorBoardLogger(tmp_path, name="", version="")]
    fit = pl.Trainer(
        accelerator="cpu",
        max_epochs=2,
        logger=loggers,
        default_root_dir=tmp_path,
        callbacks=[ValidationOverlays(3)],
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    train = DataLoader([batch(0, 2)] * 2, batch_size=None)
    fit.fit(
        Module(FCN("resnest14_tiny", 3), label_space=SPACE), train, DataLoader([batch(i, 2) for i in range(4)], None)
    )
    paths = sorted((tmp_path / "validation").iterdir())
    assert [path.name for path in paths] == ["epoch000-step000002.png", "epoch001-step000004.png"]  # and none of sanity
    first, second = (np.asarray(Image.open(path)) for path in paths)
    np.testing.assert_array_equal(first, second)
    events = EventAccumulator(str(tmp_path), size_guidance={"images": 0}).Reload()
    shown = events.Images("validation")
    assert [image.step for image in shown] == [2, 4]
    assert (shown[0].height, shown[0].width) == first.shape[:2]


def test_the_panels_are_image_truth_and_prediction_in_the_colours_of_the_classes(tmp_path: Path) -> None:
    module = Module(FCN("resnest14_tiny", 3), label_space=SPACE)
    overlays = ValidationOverlays(3)
    validate(overlays, trainer(tmp_path), [batch(1, 2), batch(2, 2)], module)
    assert not overlays._examples  # nothing is kept until the next validation
    sheet = np.asarray(Image.open(tmp_path / "validation" / "epoch007-step000123.png"))
    height, width = 5 * 32, 5 * 48  # as often as they fit into 240 pixels
    assert sheet.shape[1] == 3 * width + 2 * 6
    for i, grey in enumerate((10, 10, 20)):  # two of the first batch, one of the second
        top = 24 + i * (24 + height + 6)
        panels = [sheet[top : top + height, left : left + width] for left in (0, width + 6, 2 * (width + 6))]
        assert (panels[0] == grey).all()
        assert (panels[1][height // 2 :] == SPACE.palette[1]).all()
        assert {tuple(c) for c in panels[1][: height // 2].reshape(-1, 3)} == {(0, 0, 0), (130, 130, 130)}  # hatched
        assert (panels[2] == SPACE.palette[2]).all()
    below = {tuple(colour) for colour in sheet[top + height :].reshape(-1, 3)}
    assert {SPACE.palette[1], SPACE.palette[2], (130, 130, 130)} <= below  # the legend


def test_images_lie_evenly_over_the_split() -> None:
    """The first ones of a video would all be alike."""
    overlays, fake, given = ValidationOverlays(4), trainer(Path()), batch(1)
    fake.num_val_batches = [101]
    taken = []
    for i in range(101):
        before = len(overlays._examples)
        overlays.on_validation_batch_end(fake, None, given["mask"], given, i)
        taken += [i] * (len(overlays._examples) - before)
    assert taken == [0, 25, 50, 75]


def test_large_images_are_reduced_and_sizes_may_differ() -> None:
    module = Module(FCN("resnest14_tiny", 3), label_space=SPACE)
    overlays, fake = ValidationOverlays(), trainer(Path())
    for shape in ((600, 1200), (100, 50), (3, 2000)):
        given = batch(1, shape=shape)
        overlays.on_validation_batch_end(fake, module, given["mask"], given, 0)
    examples = overlays._examples
    assert [example.truth.shape for example in examples] == [(240, 480), (100, 50), (1, 480)]
    assert [example.image.shape[:2] for example in examples] == [(240, 480), (100, 50), (1, 480)]
    assert set(np.unique(examples[0].truth)) == {1, 255}  # labels are never mixed
    assert draw_examples(examples, SPACE).shape[1] == 3 * 480 + 2 * 6


def test_what_is_kept_is_no_view_of_a_batch() -> None:
    given, overlays = batch(1), ValidationOverlays()
    labels = given["mask"].clone()
    overlays.on_validation_batch_end(trainer(Path()), None, labels, given, 0)
    for tensor in (given["image"], given["mask"], labels):
        tensor.fill_(77)
    example = overlays._examples[0]
    assert not any((array == 77).any() for array in (example.image, example.truth, example.prediction))


@pytest.mark.parametrize(
    ("count", "changes"), [(0, {}), (4, {"fn": "validate"}), (4, {"sanity": True}), (4, {"rank": 1})]
)
def test_what_draws_nothing(tmp_path: Path, count: int, changes: dict) -> None:
    validate(ValidationOverlays(count), trainer(tmp_path, **changes), [batch(1)])
    assert not list(tmp_path.iterdir())


def test_a_validation_that_was_cut_off_leaves_nothing_to_the_next_one(tmp_path: Path) -> None:
    overlays, fake = ValidationOverlays(1), trainer(tmp_path)
    overlays.on_validation_batch_end(fake, None, batch(1)["mask"], batch(1), 0)
    overlays.on_validation_start(fake, None)
    overlays.on_validation_batch_end(fake, None, batch(2)["mask"], batch(2), 0)
    assert [example.name for example in overlays._examples] == ["city/20"]
    assert overlays.state_dict() == {}


def test_an_image_without_a_name_or_anything_ignored_has_a_plain_sheet() -> None:
    labels = np.ones((240, 240), np.uint8)
    sheet = draw_examples([Example("", np.zeros((240, 240, 3), np.uint8), labels, labels)], SPACE)
    assert (sheet[24 : 24 + 240, 246 : 246 + 240] == SPACE.palette[1]).all()
    assert not (sheet[24 + 240 :] == 130).all(axis=-1).any()


def test_a_negative_count_is_refused() -> None:
    with pytest.raises(InputError, match="count of validation images is -1; allowed is 0"):
        ValidationOverlays(-1)
