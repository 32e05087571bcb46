import numpy as np
import pytest

from segkit.data.sets.synthetic import STREET, SyntheticDataModule
from segkit.data.street.scene import draw_scene
from segkit.errors import InputError
from segkit.metadata.cityscapes import CITYSCAPES


def build(root, **options):
    sizes = {"num_train": 4, "num_val": 2, "num_test": 1, "batch_size": 2, "num_workers": 0}
    return SyntheticDataModule(root, **{**sizes, **options})


def test_scenes_repeat_and_hold_every_class():
    image, labels = draw_scene(np.random.default_rng(3), 64, 128)
    again = draw_scene(np.random.default_rng(3), 64, 128)
    assert np.array_equal(image, again[0]) and np.array_equal(labels, again[1])
    assert image.shape == (64, 128, 3) and labels.shape == (64, 128) and image.dtype == labels.dtype == np.uint8
    counts = np.zeros(STREET.num_classes, int)
    for index in range(12):
        ids = STREET.map_labels(draw_scene(np.random.default_rng(index), 64, 128)[1], "scene")
        counts += [(ids == label).any() for label in range(STREET.num_classes)]
    assert counts.min() >= 10


def test_classes_are_cityscapes():
    for name, colour in zip(STREET.class_names, STREET.palette, strict=True):
        assert CITYSCAPES.palette[CITYSCAPES.class_names.index(name)] == colour
    assert STREET.table[19] == STREET.table[20] == STREET.class_names.index("traffic sign")
    assert STREET.table[1] == 255 and STREET.table[34] == -1


@pytest.mark.slow
def test_written_once_read_like_cityscapes(tmp_path):
    data = build(tmp_path / "street")
    data.prepare_data()
    stamp = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png")}
    assert len(stamp) == 14 and [path.name for path in tmp_path.iterdir()] == ["street"]
    data.prepare_data()
    for stage in ("fit", "test", "predict"):
        data.setup(stage)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png")} == stamp
    batch = next(iter(data.train_dataloader()))
    assert batch["image"].shape == (2, 3, 128, 128) and batch["mask"].shape == (2, 128, 128)
    assert next(iter(data.test_dataloader()))["image"].shape == (1, 3, 128, 256)
    assert len(data.val_dataloader()) == 2
    other = build(tmp_path / "again")
    other.prepare_data()
    for path in (tmp_path / "street").rglob("*.png"):
        assert path.read_bytes() == (tmp_path / "again" / path.relative_to(tmp_path / "street")).read_bytes()


@pytest.mark.slow
def test_nothing_is_overwritten(tmp_path):
    build(tmp_path / "a").prepare_data()
    with pytest.raises(InputError, match="other synthetic scenes"):
        build(tmp_path / "a", seed=1).prepare_data()
    (tmp_path / "b").mkdir()
    (tmp_path / "b/thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="holds files other than synthetic scenes"):
        build(tmp_path / "b").prepare_data()
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["thesis.txt"]
    (tmp_path / "c").mkdir()
    build(tmp_path / "c").prepare_data()
    assert (tmp_path / "c/synthetic.json").is_file()


@pytest.mark.parametrize("wrong", [{"num_val": 0}, {"height": 16}, {"height": 128, "width": 64}])
def test_impossible_scenes(tmp_path, wrong):
    with pytest.raises(InputError):
        build(tmp_path, **wrong)
