import albumentations as A
import numpy as np
import pytest
from PIL import Image

from segkit.data.crops import Lattice, RandomLongSideCrop, Window, bounded_size, scaled_size
from segkit.data.transforms import TrainTransform

RNG = np.random.default_rng(0)
IMAGE = np.asarray(Image.fromarray(RNG.integers(60, 256, (9, 17, 3), dtype=np.uint8)).resize((160, 90)))
MASK = RNG.integers(0, 5, (90, 160), dtype=np.uint8)


def window(size, corner, crop, source=(90, 160), flipped=False):
    rows = Lattice(source[0], size[0], corner[0], min(crop[0], size[0] - corner[0]))
    return Window(rows, Lattice(source[1], size[1], corner[1], min(crop[1], size[1] - corner[1])), flipped)


def scale_then_crop(size, corner, crop):
    """The authors' way: Pillow resizes the whole image."""
    image = np.asarray(Image.fromarray(IMAGE).resize(size[::-1], Image.Resampling.BILINEAR))
    mask = np.asarray(Image.fromarray(MASK).resize(size[::-1], Image.Resampling.NEAREST))
    rows, cols = (slice(c, c + n) for c, n in zip(corner, crop, strict=True))
    return image[rows, cols], mask[rows, cols]


# size, corner: of the scaled image, so that the corner falls on a whole source pixel
ON_PIXELS = [
    ((45, 80), (0, 0)),
    ((45, 80), (7, 31)),  # half the size: every corner does
    ((60, 120), (20, 60)),
    ((75, 120), (25, 33)),
    ((61, 108), (0, 27)),
    ((90, 160), (13, 57)),
    ((135, 240), (63, 99)),
    ((180, 320), (88, 124)),  # twice the size: every other one does
    ((125, 222), (25, 111)),
]


@pytest.mark.parametrize(("size", "corner"), ON_PIXELS)
def test_cropping_first_equals_resizing_the_whole(size, corner):
    crop = (min(50, size[0] - corner[0]), min(64, size[1] - corner[1]))
    cut = window(size, corner, crop)
    image, mask = scale_then_crop(size, corner, crop)
    difference = np.abs(cut.image(IMAGE).astype(int) - image)
    assert difference.shape == (*crop, 3)
    # Rounding; but for the first row and column, which in the whole image have neighbours outside of the crop.
    assert difference[corner[0] > 0 :, corner[1] > 0 :].max() <= 1
    assert difference.max() <= 30
    assert np.array_equal(cut.mask(MASK), mask)


@pytest.mark.parametrize("seed", range(60))
def test_between_pixels_the_crop_moves_by_less_than_one(seed):
    """Image and mask lie on one lattice: that of Pillow with a box which begins at the moved corner."""
    rng = np.random.default_rng(seed)
    size = scaled_size((90, 160), int(rng.integers(40, 400)))
    crop = (min(50, size[0]), min(64, size[1]))
    corner = tuple(int(rng.integers(0, s - c + 1)) for s, c in zip(size, crop, strict=True))
    cut = window(size, corner, crop)
    steps = cut.rows.step, cut.cols.step
    starts = cut.rows.start, cut.cols.start
    moved = [corner[k] * steps[k] - starts[k] for k in (0, 1)]
    assert all(-1e-6 < m < 1 for m in moved)
    box = (starts[1], starts[0], starts[1] + crop[1] * steps[1], starts[0] + crop[0] * steps[0])
    image = np.asarray(Image.fromarray(IMAGE).resize(crop[::-1], Image.Resampling.BILINEAR, box=box))
    # Pillow's kernel sees the box alone, so that the border differs; inside only roundings do.
    difference = np.abs(cut.image(IMAGE).astype(int) - image)[3:-3, 3:-3]
    assert difference.max(initial=0) <= 2 and (difference > 1).mean() < 0.01
    found = [cut.rows.nearest(), cut.cols.nearest()]
    for start, n, step, indices in zip(starts, crop, steps, found, strict=True):
        places = start + (np.arange(n) + 0.5) * step
        wrong = places[indices != np.floor(places)]
        assert (np.abs(wrong - np.rint(wrong)) < 1e-6).all()  # between two pixels either is the nearest
    assert np.array_equal(cut.mask(MASK), MASK[found[0][:, None], found[1]])


@pytest.mark.parametrize("seed", range(40))
def test_nearest_is_pillows(seed):
    rng = np.random.default_rng(seed)
    source, scaled = int(rng.integers(2, 2049)), int(rng.integers(1, 4097))
    line = Image.fromarray(np.arange(source, dtype=np.float32)[None])
    expected = np.asarray(line.resize((scaled, 1), Image.Resampling.NEAREST))[0].astype(int)
    assert np.array_equal(Lattice(source, scaled, 0, scaled).nearest(), expected)


def test_mirrored_is_the_mirrored_image():
    for size, corner in (((45, 80), (3, 20)), ((120, 213), (11, 100)), ((90, 160), (0, 60))):
        there, back = window(size, corner, (40, 60), flipped=True), window(size, corner, (40, 60))
        assert np.array_equal(there.image(IMAGE), back.image(np.ascontiguousarray(IMAGE[:, ::-1])))
        assert np.array_equal(there.mask(MASK), back.mask(np.ascontiguousarray(MASK[:, ::-1])))


def test_without_antialiasing_it_is_opencvs():
    import cv2

    cut = window((45, 80), (0, 0), (45, 80))
    assert np.array_equal(cut.image(IMAGE, antialias=False), cv2.resize(IMAGE, (80, 45)))
    smooth = cut.image(IMAGE).astype(int)
    assert np.abs(smooth - cut.image(IMAGE, antialias=False)).max() > 2


def test_same_distribution_as_scale_then_crop():
    """Sizes and corners are drawn in the scaled image, uniformly, as the authors draw them."""
    transform = RandomLongSideCrop(base_size=160, crop_size=80, ratio=(1.0, 1.0), flip=0.25)
    drawn = []
    for index in range(2000):
        TrainTransform(transform)(IMAGE, MASK, (0, 0, index))
        drawn.append(transform.params["window"])
    lefts, tops = np.array([w.cols.first for w in drawn]), np.array([w.rows.first for w in drawn])
    assert set(lefts) == set(range(81)) and set(tops) == set(range(11))
    assert 38 < lefts.mean() < 42 and 4.7 < tops.mean() < 5.3
    assert 0.21 < np.mean([w.flipped for w in drawn]) < 0.29
    assert abs(np.corrcoef(lefts, tops)[0, 1]) < 0.07


def test_other_side_is_rounded_as_the_authors_do():
    assert scaled_size((512, 683), 520) == (390, 520)
    assert scaled_size((683, 512), 520) == (520, 390)
    assert scaled_size((100, 100), 77) == (77, 77)
    # mmcv.rescale_size((683, 512), (2048, 512)) and ((2048, 1024), (1024, 512))
    assert bounded_size((512, 683), 2048, 512) == (512, 683)
    assert bounded_size((1024, 2048), 1024, 512) == (512, 1024)
    assert bounded_size((300, 1500), 2048, 512) == (410, 2048)


def test_long_side_takes_both_ends_of_its_range():
    transform = RandomLongSideCrop(base_size=4, crop_size=8)
    drawn = set()
    for index in range(300):
        TrainTransform(transform)(IMAGE[:9, :12], MASK[:9, :12], (0, 0, index))
        drawn.add(transform.params["window"].cols.scaled)
    assert drawn == set(range(2, 9))


def test_padding_is_right_and_bottom_black_and_ignored():
    transform = A.Compose([RandomLongSideCrop(base_size=80, crop_size=128, ratio=(1.0, 1.0))])
    out = transform(image=IMAGE, mask=MASK)
    assert out["image"].shape == (128, 128, 3) and out["mask"].shape == (128, 128)
    assert (out["mask"][:45, :80] < 5).all() and out["image"][:45, :80].min() > 0
    assert (out["mask"][45:] == 255).all() and (out["mask"][:, 80:] == 255).all()
    assert (out["image"][45:] == 0).all() and (out["image"][:, 80:] == 0).all()


def test_crops_need_not_be_square():
    image, mask = TrainTransform(RandomLongSideCrop((160, 90), (32, 64)))(IMAGE, MASK, (0, 0, 0))
    assert image.shape == (32, 64, 3) and mask.shape == (32, 64)


def test_image_and_mask_stay_together():
    mask = (np.arange(160)[None] // 20 + np.zeros((90, 1), int)).astype(np.uint8)
    image = np.repeat((mask * 30)[..., None], 3, 2)
    transform = TrainTransform(RandomLongSideCrop(160, 64))
    for index in range(20):
        crop, labels = transform(image, mask, (0, 0, index))
        inside = labels != 255
        wrong = np.abs(crop[..., 0].astype(int) - labels * 30)[inside] > 16
        assert wrong.mean() < 0.03  # half blended edge columns


def test_an_image_taken_as_it_is_is_copied():
    image = IMAGE.copy()
    image.flags.writeable = False
    crop, _ = TrainTransform(RandomLongSideCrop(160, (90, 160), (1.0, 1.0), flip=0))(image, MASK, (0,))
    assert np.array_equal(crop, IMAGE) and crop.flags.writeable and not np.shares_memory(crop, image)


@pytest.mark.parametrize("place", ["left", "right", "bottom"])
def test_only_the_crop_is_read(place):
    """A crop at an image's corner does not depend on pixels that it does not show (but for what a kernel reaches)."""
    size, crop = (180, 320), (40, 60)
    corner = {"left": (0, 0), "right": (0, 260), "bottom": (140, 0)}[place]
    cut = window(size, corner, crop)
    other = np.zeros_like(IMAGE)
    rows, cols = slice(cut.rows.start, cut.rows.end), slice(cut.cols.start, cut.cols.end)
    other[rows, cols] = IMAGE[rows, cols]
    assert np.array_equal(cut.image(other), cut.image(IMAGE))
    assert (cut.rows.end - cut.rows.start) <= 20 + 4 and (cut.cols.end - cut.cols.start) <= 30 + 4
