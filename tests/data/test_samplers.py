"""Rare class sampling, class-aware crops, and that a sample is a function of (seed, epoch, index, repetition) alone."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from segkit.data.albumentations import A
from segkit.data.crops import WANTED_SHARE, RandomLongSideCrop
from segkit.data.dataset import SegmentationDataset, collate
from segkit.data.layout.base import Sample
from segkit.data.samplers import Draw, RareClassSampler, TrainSampler
from segkit.data.transforms import TrainTransform

AREAS = np.array([[900, 100, 0], [1000, 0, 0], [950, 0, 50], [800, 200, 0], [1000, 0, 0], [990, 0, 10], [1000, 0, 0]])


def sampler(rank=0, world=1, seed=0, epoch=0, temperature=0.5, areas=AREAS):
    made = RareClassSampler(areas, temperature, seed, num_replicas=world, rank=rank)
    made.set_epoch(epoch)
    return made


@pytest.mark.parametrize("world", [1, 2, 3])
def test_ranks_deal_out_one_list_of_draws(world):
    every = sampler().draws()
    ranks = [list(sampler(rank, world)) for rank in range(world)]
    assert {len(draws) for draws in ranks} == {len(AREAS) // world} == {len(sampler(0, world))}
    for rank, draws in enumerate(ranks):
        assert draws == every[rank : len(AREAS) // world * world : world]
    assert len({(draw.index, draw.repeat) for draw in every}) == len(every)  # no crop twice in an epoch
    assert all(AREAS[draw.index, draw.wanted_class] > 0 for draw in every)


def test_draws_are_a_function_of_seed_and_epoch():
    assert sampler().draws() == sampler().draws()
    assert sampler().draws() != sampler(epoch=1).draws() != sampler(seed=1).draws()
    assert sampler(epoch=1, seed=0).draws() != sampler(epoch=0, seed=1).draws()


@pytest.mark.parametrize("temperature", [0.05, 0.5, 10.0])
def test_classes_are_drawn_as_daformer_draws_them(temperature):
    """P(c) = exp((1 - f_c) / T) / sum over classes (equation 5)."""
    shares = AREAS.sum(0) / AREAS.sum()
    odds = np.exp((1 - shares) / temperature)
    areas = np.tile(AREAS, (300, 1))
    drawn = np.bincount([d.wanted_class for d in sampler(areas=areas, temperature=temperature).draws()], minlength=3)
    expected = odds / odds.sum() * len(areas)
    assert ((drawn - expected) ** 2 / np.maximum(expected, 1)).sum() < 13.8  # chi square, 2 degrees of freedom, 0.1 %


def test_a_class_that_never_occurs_is_never_drawn():
    areas = np.column_stack([AREAS[:, :1], np.zeros((7, 1), int), AREAS[:, 2:]])
    assert {draw.wanted_class for draw in sampler(areas=np.tile(areas, (9, 1))).draws()} == {0, 2}


def make_image(index):
    """200 x 160, class 0 but for a block of class 1 + index % 2 in a place of its own."""
    rng = np.random.default_rng(index)
    mask = np.zeros((160, 200), np.uint8)
    top, left = rng.integers(0, 120), rng.integers(0, 160)
    mask[top : top + 40, left : left + 40] = 1 + index % 2
    mask[:5] = 255
    return rng.integers(0, 256, (160, 200, 3), np.uint8), mask


def dataset(seed=0, cat_max_ratio=1.0, augmentations=()):
    crop = RandomLongSideCrop(200, 64, (1.0, 1.5), cat_max_ratio=cat_max_ratio)
    samples = [Sample(None, None, str(i)) for i in range(12)]
    return SegmentationDataset(samples, read, TrainTransform(crop, augmentations), seed)


def read(sample):
    return make_image(int(sample.name))


def test_a_wanted_class_is_in_the_crop():
    data = dataset()
    asked = [data[Draw(i, epoch, 0, 1 + i % 2)]["mask"] for i in range(12) for epoch in range(10)]
    free = [data[Draw(i, epoch)]["mask"] for i in range(12) for epoch in range(10)]
    shares = [
        [float((mask == 1 + i // 10 % 2).float().mean()) for i, mask in enumerate(masks)] for masks in (asked, free)
    ]
    with_class = [np.mean([share >= WANTED_SHARE for share in of_one]) for of_one in shares]
    assert with_class[0] > 0.9 > 0.6 > with_class[1]


@pytest.mark.parametrize("wanted", [-1, 1])
def test_crops_are_varied_as_mmsegmentations_are(wanted):
    """Its RandomCrop takes a crop in which two classes occur and none has 75 % of the valid pixels, within 10 tries."""

    def is_varied(mask):
        counts = np.bincount(mask.numpy().ravel(), minlength=256)[:255]
        return np.count_nonzero(counts) > 1 and counts.max() / counts.sum() < 0.75

    varied, plain = (
        np.mean([is_varied(data[Draw(i, epoch, 0, wanted)]["mask"]) for i in range(0, 12, 2) for epoch in range(20)])
        for data in (dataset(cat_max_ratio=0.75), dataset())
    )
    # A place is good with probability `plain`, so that 10 tries and the one taken then miss with (1 - plain) ** 11.
    assert varied > plain + 0.2
    if wanted < 0:
        assert varied == pytest.approx(1 - (1 - plain) ** 11, abs=0.12)


def batches(data, made, workers):
    return {
        (name, i): batch["image"][i].numpy().tobytes() + batch["mask"][i].numpy().tobytes()
        for number, batch in enumerate(DataLoader(data, 2, sampler=made, num_workers=workers, collate_fn=collate))
        for i, name in enumerate(f"{number}:{name}" for name in batch["name"])
    }


AUGMENTED = (A.RandomBrightnessContrast(p=1), A.GaussNoise(p=0.5))


@pytest.mark.slow
def test_the_number_of_workers_changes_nothing():
    areas = np.stack([np.bincount(make_image(i)[1].ravel(), minlength=256)[:3] for i in range(12)])
    for made in (sampler(areas=areas), TrainSampler(range(12), num_replicas=1, rank=0)):
        first = batches(dataset(augmentations=AUGMENTED), made, 0)
        assert len(set(first.values())) == 12
        for workers in (1, 3):
            assert batches(dataset(augmentations=AUGMENTED), made, workers) == first


@pytest.mark.parametrize("world", [2, 3])
def test_the_number_of_processes_changes_no_sample(world):
    data = dataset(augmentations=AUGMENTED)
    areas = np.stack([np.bincount(make_image(i)[1].ravel(), minlength=256)[:3] for i in range(12)])

    def samples(rank, count):
        return {draw: data[draw]["image"].numpy().tobytes() for draw in sampler(rank, count, areas=areas)}

    ranks = [samples(rank, world) for rank in range(world)]
    assert all(not a.keys() & b.keys() for i, a in enumerate(ranks) for b in ranks[i + 1 :])  # ranks differ
    together = {draw: image for rank in ranks for draw, image in rank.items()}
    assert together == samples(0, 1)


def test_epochs_repeats_and_seeds_differ():
    data = dataset()
    images = [data[Draw(0, epoch, repeat)]["image"] for epoch in range(3) for repeat in range(3)]
    images.append(dataset(seed=1)[Draw(0, 0, 0)]["image"])
    assert len({image.numpy().tobytes() for image in images}) == 10
    assert torch.equal(data[Draw(0, 2, 1)]["image"], images[7])


def test_batches_lie_channels_last():
    batch = collate([dataset()[Draw(i)] for i in range(3)])
    assert batch["image"].shape == (3, 3, 64, 64)
    assert batch["image"].is_contiguous(memory_format=torch.channels_last)
