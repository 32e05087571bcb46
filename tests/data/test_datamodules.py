import shutil

import numpy as np
import pytest
import real_data
import torch
from PIL import Image
from pytorch_lightning import LightningModule, Trainer

from segkit.data.samplers import EvalSampler
from segkit.data.sets.ade20k import ADE20KDataModule
from segkit.data.sets.cityscapes import CityscapesDataModule
from segkit.data.sets.folder import FolderDataModule, is_validation
from segkit.errors import InputError
from segkit.io import write_png

RNG = np.random.default_rng(0)


def make_image(path, size=(24, 32)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RNG.integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)


def mask(path, values, size=(24, 32)):
    write_png(path, RNG.choice(np.array(values, np.uint8), size))


def camvid_like(root):
    for split, count in (("train", 4), ("val", 3), ("test", 2)):
        names = [f"{split}_{index}" for index in range(count)]
        for name in names:
            make_image(root / "images" / split / f"{name}.jpg")
            mask(root / "labels" / split / f"{name}.png", [0, 1, 2, 255])
        (root / "splits").mkdir(exist_ok=True)
        (root / "splits" / f"{split}.txt").write_text("\n".join(reversed(names)) + "\n")
    (root / "classes.txt").write_text("sky\nroad\ncar\n")
    (root / "palette.csv").write_text("id,name,r,g,b\n0,sky,1,2,3\n1,road,4,5,6\n2,car,7,8,9\n255,void,0,0,0\n")
    return root


def flat(root, count=30):
    for index in range(count):
        make_image(root / "images" / f"town{index % 2}/p{index}.png")
        mask(root / "labels" / f"town{index % 2}/p{index}.png", [0, 1])
    (root / "classes.txt").write_text("a\nb\n\n")
    return root


def ade(root):
    for split in ("training", "validation"):
        for index in range(3):
            make_image(root / "images" / split / f"ADE_{index}.jpg")
            mask(root / "annotations" / split / f"ADE_{index}.png", [0, 1, 150])
    return root


def cityscapes(root):
    for split in ("train", "val", "test"):
        for index in range(2):
            make_image(root / f"leftImg8bit/{split}/bonn/bonn_{index}_leftImg8bit.png")
            if split != "test":
                mask(root / f"gtFine/{split}/bonn/bonn_{index}_gtFine_labelIds.png", [0, 7, 33])
    return root


def build(kind, root, **options):
    return kind(root, batch_size=2, base_size=32, crop_size=16, num_workers=0, **options)


def names(loader):
    return [name for batch in loader for name in batch["name"]]


def fails(call, *words):
    with pytest.raises(InputError) as caught:
        call()
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value), str(caught.value)


@pytest.mark.parametrize(
    ("kind", "make"), [(FolderDataModule, camvid_like), (ADE20KDataModule, ade), (CityscapesDataModule, cityscapes)]
)
def test_every_data_set_gives_the_same_batches(tmp_path, kind, make):
    data = build(kind, make(tmp_path))
    for stage in ("fit", "validate", "test", "predict"):
        data.setup(stage)
    batch = next(iter(data.train_dataloader()))
    assert batch["image"].shape == (2, 3, 16, 16) and batch["mask"].shape == (2, 16, 16)
    for loader in (data.val_dataloader(), data.test_dataloader()):
        batch = next(iter(loader))
        assert batch["image"].shape == (1, 3, 24, 32) and batch["mask"].shape == (1, 24, 32)
        assert batch["image"].dtype == batch["mask"].dtype == torch.uint8
    assert "mask" not in next(iter(data.predict_dataloader()))
    assert len(data.class_names) == data.num_classes


def test_folder_of_splits(tmp_path):
    data = build(FolderDataModule, camvid_like(tmp_path))
    assert data.class_names == ("sky", "road", "car") and data.label_space.palette[1] == (4, 5, 6)
    data.setup("fit")
    data.setup("test")
    assert names(data.val_dataloader()) == ["val_2", "val_1", "val_0"]  # the list's order
    assert names(data.test_dataloader()) == ["test_1", "test_0"]
    shutil.rmtree(tmp_path / "splits")
    data.setup("test")
    assert names(data.test_dataloader()) == ["test_0", "test_1"]
    shutil.rmtree(tmp_path / "images/test")
    data.setup("test")
    assert names(data.test_dataloader()) == ["val_0", "val_1", "val_2"]


def test_flat_folder(tmp_path):
    data = build(FolderDataModule, flat(tmp_path))
    data.setup("fit")
    val = names(data.val_dataloader())
    train = [sample.name for sample in data.datasets["train"].samples]
    assert val and all(map(is_validation, val)) and not any(map(is_validation, train))
    assert len(val) + len(train) == 30 and "/" in val[0]
    (tmp_path / "splits").mkdir()
    (tmp_path / "splits/train.txt").write_text("town0/p0.png\n\ntown1/p1\n")
    fails(lambda: data.setup("fit"), "no val split")
    (tmp_path / "splits/val.txt").write_text("town0/p2\n")
    data.setup("fit")
    assert names(data.val_dataloader()) == ["town0/p2"]
    (tmp_path / "splits/val.txt").write_text("town0/p2\ntown0/nothing\n")
    fails(lambda: data.setup("validate"), "town0/nothing", "val.txt")
    (tmp_path / "splits/val.txt").write_text("town0/p2\ntown0/p2\n")
    fails(lambda: data.setup("validate"), "twice")


@pytest.mark.parametrize(
    ("file", "text", "words"),
    [
        ("classes.txt", "sky\n\ncar\n", ("line 2", "empty")),
        ("classes.txt", "sky\nroad\nsky\n", ("line 3", "repeats")),
        ("palette.csv", "id,name,r,g,b\n0,sky,1,2,3\n", ("1 rows", "3 classes")),
        ("palette.csv", "id,name,r,g\n", ("columns",)),
        ("palette.csv", "id,name,r,g,b\n0,sky,1,2,x\n", ("line 2",)),
        ("palette.csv", "id,name,r,g,b\n0,sky,1,2,300\n", ("0..255",)),
        ("palette.csv", "id,name,r,g,b\n0,road,1,2,3\n", ("'road'", "'sky'")),
        ("palette.csv", "id,name,r,g,b\n0,sky,1,2,3\n0,sky,1,2,3\n", ("second colour",)),
    ],
)
def test_wrong_class_files(tmp_path, file, text, words):
    data = build(FolderDataModule, camvid_like(tmp_path))
    (tmp_path / file).write_text(text)
    fails(lambda: data.num_classes, str(tmp_path / file), *words)


def test_class_file_absent_or_not_text(tmp_path):
    data = build(FolderDataModule, tmp_path)
    fails(lambda: data.label_space, "classes.txt", "no such file")
    (tmp_path / "classes.txt").write_bytes(b"stra\xdfe\n")
    fails(lambda: data.label_space, "UTF-8")


def test_absent_things_are_named(tmp_path):
    fails(lambda: build(FolderDataModule, tmp_path / "nowhere").setup("fit"), "nowhere", "--data.root")
    root = camvid_like(tmp_path)
    for name in ("train_0", "train_2"):
        (root / f"labels/train/{name}.png").unlink()
    fails(lambda: build(FolderDataModule, root).setup("fit"), "train_2.png", "2 of 4")
    shutil.rmtree(root / "images/val")
    (root / "images/val").mkdir()
    fails(lambda: build(FolderDataModule, root).setup("validate"), "no images")
    make_image(root / "images/test/test_0.png")
    fails(lambda: build(FolderDataModule, root).setup("test"), "same name")
    fails(lambda: build(CityscapesDataModule, root).setup("fit"), "leftImg8bit")


def test_set_smaller_than_a_batch(tmp_path):
    data = FolderDataModule(camvid_like(tmp_path), batch_size=5, crop_size=16, base_size=32, num_workers=0)
    data.setup("fit")
    fails(data.train_dataloader, "4 training images", "batch_size 5")


def test_wrong_numbers_are_refused_at_once(tmp_path):
    fails(lambda: FolderDataModule(tmp_path, batch_size=0), "batch_size is 0")
    fails(lambda: FolderDataModule(tmp_path, crop_size=-1), "crop_size")
    fails(lambda: FolderDataModule(tmp_path, seed=-1), "seed")


def test_ade20k_root_may_be_the_parent_and_the_wrong_archive_is_known(tmp_path):
    ade(tmp_path / "a/ADEChallengeData2016")
    data = build(ADE20KDataModule, tmp_path / "a")
    data.setup("test")
    assert names(data.test_dataloader()) == ["ADE_0", "ADE_1", "ADE_2"]
    make_image(tmp_path / "full/images/ADE/training/urban/street/ADE_train_1.jpg")
    make_image(tmp_path / "full/images/ADE/training/urban/street/ADE_train_1_seg.png")
    make_image(tmp_path / "old/images/training/a/abbey/ADE_train_1_seg.png")
    (tmp_path / "parent/ADE20K_2021_17_01").mkdir(parents=True)
    for wrong in ("full", "old", "parent"):
        fails(lambda wrong=wrong: build(ADE20KDataModule, tmp_path / wrong).setup("fit"), "ADEChallengeData2016")


def test_cityscapes_scores_val_and_predicts_test(tmp_path):
    data = build(CityscapesDataModule, cityscapes(tmp_path))
    data.setup("test")
    data.setup("predict")
    assert names(data.test_dataloader()) == ["bonn/bonn_0_leftImg8bit", "bonn/bonn_1_leftImg8bit"]
    assert "val" in str(data.datasets["test"].samples[0].mask)
    assert "/test/" in data.datasets["predict"].samples[0].image.as_posix()
    (tmp_path / "gtFine/val/bonn/bonn_1_gtFine_labelIds.png").unlink()
    fails(lambda: data.setup("validate"), "bonn_1_gtFine_labelIds.png", "1 of 2")


@pytest.mark.parametrize("world", [1, 2, 3, 5, 9])
@pytest.mark.parametrize("done", [set(), {0}, {1, 3, 5}, set(range(7))])
def test_what_is_skipped_moves_nothing_to_another_process(world, done):
    data = range(7)
    every = [set(EvalSampler(data, world, rank)) for rank in range(world)]
    left = [EvalSampler(data, world, rank, done.__contains__) for rank in range(world)]
    assert [set(sampler) for sampler in left] == [own - done for own in every]
    assert sum(map(len, left)) == 7 - len(done) and sorted(i for own in every for i in own) == list(data)


def test_predicted_images_are_left_out(tmp_path):
    data = build(FolderDataModule, camvid_like(tmp_path), predict_split="val")
    data.is_predicted = {"val_1"}.__contains__
    data.setup("predict")
    assert names(data.predict_dataloader()) == ["val_2", "val_0"]
    assert list(data.predict_images()) == ["val_2", "val_1", "val_0"]
    data.setup("test")
    assert names(data.test_dataloader()) == ["test_1", "test_0"]


class _Collect(LightningModule):
    def predict_step(self, batch, batch_idx):
        return batch["name"][0]


def test_a_trainer_predicts_in_order(tmp_path):
    data = build(FolderDataModule, camvid_like(tmp_path), predict_split="val")
    trainer = Trainer(accelerator="cpu", devices=1, logger=False, enable_progress_bar=False, enable_checkpointing=False)
    assert trainer.predict(_Collect(), datamodule=data) == ["val_2", "val_1", "val_0"]


@real_data.needs("camvid")
def test_camvid_as_it_is():
    data = FolderDataModule(real_data.FOLDER / "camvid", batch_size=4, num_workers=0, base_size=480, crop_size=320)
    for stage in ("fit", "test"):
        data.setup(stage)
    assert [len(data.datasets[key]) for key in ("train", "val", "test")] == [367, 101, 233]
    assert data.num_classes == 11 and data.label_space.palette[3] == (128, 64, 128)
    assert next(iter(data.train_dataloader()))["image"].shape == (4, 3, 320, 320)
    assert data.datasets["test"][0]["mask"].shape == (360, 480)


@real_data.needs("ade20k_samples")
def test_ade20k_samples_as_they_are():
    data = ADE20KDataModule(real_data.FOLDER / "ade20k_samples/sceneparsing", batch_size=2, num_workers=0)
    data.setup("fit")
    assert names(data.val_dataloader()) == [f"ADE_val_0000000{index}" for index in (1, 2, 3)]
    assert next(iter(data.train_dataloader()))["image"].shape == (2, 3, 480, 480)


def test_scale_range(tmp_path):
    with pytest.raises(InputError, match=r"scale_range is \[2.0, 0.5\]"):
        FolderDataModule(tmp_path, scale_range=(2.0, 0.5))
    module = FolderDataModule(
        flat(tmp_path), batch_size=2, base_size=32, crop_size=64, num_workers=0, scale_range=(1, 1)
    )
    module.setup("fit")
    batch = next(iter(module.train_dataloader()))
    assert all((m[24:] == 255).all() and (m[:, 32:] == 255).all() for m in batch["mask"])  # 24x32 images, as they are
