import albumentations as A
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from segkit.data.crops import RandomLongSideCrop
from segkit.data.dataset import SegmentationDataset, collate
from segkit.data.layout.base import Layout, Sample
from segkit.data.samplers import EvalSampler, TrainSampler
from segkit.data.transforms import TrainTransform
from segkit.errors import InputError
from segkit.io import write_png
from segkit.metadata.label_space import LabelSpace, distinct_palette, identity_table


class _Three(Layout):
    label_space = LabelSpace(("a", "b", "c"), distinct_palette(3), identity_table(3))

    def parts(self, split):
        raise NotImplementedError


LAYOUT = _Three("nowhere")


@pytest.fixture
def samples(tmp_path):
    rng = np.random.default_rng(0)
    found = []
    for index in range(8):
        image, mask = tmp_path / f"i{index}.png", tmp_path / f"m{index}.png"
        write_png(image, rng.integers(0, 256, (30, 40, 3), dtype=np.uint8))
        write_png(mask, rng.integers(0, 3, (30, 40), dtype=np.uint8))
        found.append(Sample(image, mask, f"town/{index}"))
    return found


def batches(samples, epoch=0, seed=0, workers=0, rank=0, world=1):
    transform = TrainTransform(RandomLongSideCrop(48, 24), [A.RandomBrightnessContrast()])
    dataset = SegmentationDataset(samples, LAYOUT.read, transform, seed)
    sampler = TrainSampler(dataset, seed, num_replicas=world, rank=rank)
    sampler.set_epoch(epoch)
    return list(DataLoader(dataset, 2, sampler=sampler, num_workers=workers, drop_last=True, collate_fn=collate))


def same(left, right):
    return all(
        torch.equal(a["image"], b["image"]) and torch.equal(a["mask"], b["mask"]) and a["name"] == b["name"]
        for a, b in zip(left, right, strict=True)
    )


def test_batch_contract(samples):
    batch = batches(samples)[0]
    assert batch["image"].shape == (2, 3, 24, 24) and batch["image"].dtype == torch.uint8
    assert batch["mask"].shape == (2, 24, 24) and batch["mask"].dtype == torch.uint8
    assert isinstance(batch["name"], list) and batch["name"][0].startswith("town/")


@pytest.mark.slow
def test_randomness_is_a_function_of_seed_epoch_and_sample(samples):
    first = batches(samples)
    assert same(first, batches(samples))
    assert same(first, batches(samples, workers=2))
    assert not same(first, batches(samples, epoch=1))
    assert not same(first, batches(samples, seed=1))
    assert not same(batches(samples, epoch=1), batches(samples, seed=1))
    assert same(batches(samples, epoch=3), batches(samples, epoch=3, workers=2))


def test_ranks_share_the_epoch_without_overlap(samples):
    names = [name for rank in (0, 1) for batch in batches(samples, rank=rank, world=2) for name in batch["name"]]
    assert sorted(names) == [sample.name for sample in samples]
    alone = {n: i for b in batches(samples) for n, i in zip(b["name"], b["image"], strict=True)}
    shared = {n: i for b in batches(samples, rank=1, world=2) for n, i in zip(b["name"], b["image"], strict=True)}
    assert all(torch.equal(alone[name], image) for name, image in shared.items())


def test_all_crops_of_an_epoch_differ(samples):
    one = [Sample(samples[0].image, samples[0].mask, str(index)) for index in range(8)]
    crops = [image.numpy().tobytes() for batch in batches(one, workers=2) for image in batch["image"]]
    assert len(set(crops)) == 8


def test_whole_images_without_transform(samples):
    dataset = SegmentationDataset(samples, LAYOUT.read)
    assert dataset[3]["image"].shape == (3, 30, 40) and dataset[3]["mask"].shape == (30, 40)
    bare = SegmentationDataset([Sample(samples[0].image, None, "x")], LAYOUT.read)
    assert sorted(bare[0]) == ["image", "name"]


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_bad_files_are_one_line_even_from_a_worker(samples, workers):
    def fails(*words):
        with pytest.raises(InputError) as caught:
            list(DataLoader(SegmentationDataset(samples, LAYOUT.read), num_workers=workers))
        assert "\n" not in str(caught.value) and "Traceback" not in str(caught.value)
        assert all(word in str(caught.value) for word in words), str(caught.value)

    write_png(samples[5].mask, np.zeros((30, 41), np.uint8))
    fails(str(samples[5].image), "40x30", str(samples[5].mask), "41x30")
    write_png(samples[4].mask, np.full((30, 40), 7, np.uint8))
    fails(str(samples[4].mask), "value 7")
    samples[2].image.write_bytes(samples[2].image.read_bytes()[:500])
    fails(str(samples[2].image))


def test_augmentations_must_keep_uint8(samples):
    dataset = SegmentationDataset(samples, LAYOUT.read, TrainTransform(RandomLongSideCrop(48, 24), [A.Normalize()]))
    with pytest.raises(InputError, match="leave out Normalize"):
        dataset[0]


@pytest.mark.parametrize(("count", "world"), [(5, 1), (5, 2), (5, 3), (7, 3), (2, 4)])
def test_evaluation_counts_every_sample_once(count, world):
    parts = [list(EvalSampler(range(count), num_replicas=world, rank=rank)) for rank in range(world)]
    assert sorted(index for part in parts for index in part) == list(range(count))
    assert parts[0] == list(range(0, count, world))
    assert [len(EvalSampler(range(count), world, rank)) for rank in range(world)] == [len(part) for part in parts]


@pytest.mark.parametrize(("count", "world"), [(5, 1), (5, 2), (7, 3), (2, 4)])
def test_training_gives_every_rank_the_same_number(count, world):
    samplers = [TrainSampler(range(count), num_replicas=world, rank=rank) for rank in range(world)]
    parts = [[draw.index for draw in sampler] for sampler in samplers]
    assert {len(part) for part in parts} == {count // world} == {len(sampler) for sampler in samplers}
    assert len({index for part in parts for index in part}) == world * (count // world)


def test_what_nobody_may_write_to_is_copied():
    """A tensor over a cache's read-only pages would crash the process that writes to it."""
    image, mask = np.zeros((4, 6, 3), np.uint8), np.zeros((4, 6), np.uint8)
    for writeable in (True, False):
        image.flags.writeable = mask.flags.writeable = writeable
        item = SegmentationDataset([Sample(None, None, "x")], lambda sample: (image, mask))[0]
        assert np.shares_memory(item["image"].numpy(), image) is writeable
        assert np.shares_memory(item["mask"].numpy(), mask) is writeable
