import albumentations as A
import numpy as np
import pytest
from PIL import Image

from segkit.data.crops import RandomLongSideCrop
from segkit.data.transforms import TrainTransform, check_augmentations
from segkit.errors import InputError

RNG = np.random.default_rng(0)
IMAGE = np.asarray(Image.fromarray(RNG.integers(60, 256, (9, 17, 3), dtype=np.uint8)).resize((160, 90)))
MASK = RNG.integers(0, 5, (90, 160), dtype=np.uint8)


def transform(*augmentations, base=160, crop=64):
    return TrainTransform(RandomLongSideCrop(base, crop), augmentations)


def test_same_key_same_draw_and_steps_are_independent():
    plain = transform()

    def draw(*key: int) -> bytes:
        return plain(IMAGE, MASK, key)[0].tobytes()

    assert draw(1, 2, 3) == draw(1, 2, 3)
    assert len({draw(1, 2, 3), draw(2, 2, 3), draw(1, 3, 3), draw(1, 2, 4), draw(1, 2, 3, 1)}) == 5
    # With one seed per step (Compose.set_random_seed) the flip would be the draw of the scale: flipped = small.
    gradient = np.repeat(np.arange(160, dtype=np.uint8)[None, :, None], 90, 0).repeat(3, 2)
    flips = []
    for index in range(200):
        image, mask = plain(gradient, MASK, (0, 0, index))
        small = (mask[:, -1] == 255).all() or (mask[-1] == 255).all()
        flips.append((small, int(image[0, 1, 0]) > int(image[0, 40, 0])))
    shares = [np.mean([flip for small, flip in flips if small is kind or small == kind]) for kind in (True, False)]
    assert all(0.3 < share < 0.7 for share in shares)


def test_augmentations_follow_the_key_too():
    noisy = transform(
        A.RandomBrightnessContrast(p=1), A.GaussNoise(p=1), A.OneOf([A.HorizontalFlip(), A.GaussianBlur()])
    )
    first = [noisy(IMAGE, MASK, (0, 1, index))[0] for index in range(6)]
    again = [noisy(IMAGE, MASK, (0, 1, index))[0] for index in reversed(range(6))][::-1]
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert len({image.tobytes() for image in first}) == 6


def test_noise_follows_the_key_too():
    """albumentations draws some things from NumPy's generator, others from Python's."""
    whole = TrainTransform(RandomLongSideCrop(160, (90, 160), (1.0, 1.0), flip=0), [A.GaussNoise((0.2, 0.2), p=1)])
    keys = [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0)]
    assert len({whole(IMAGE, MASK, key)[0].tobytes() for key in keys}) == 4
    assert np.array_equal(whole(IMAGE, MASK, keys[2])[0], whole(IMAGE, MASK, keys[2])[0])


def test_augmentations_change_neither_the_crop_nor_its_place():
    """Adding an augmentation to a recipe leaves the draws of the crops alone."""
    same = [transform(A.NoOp())(IMAGE, MASK, (0, 0, i))[1] for i in range(5)]
    assert all(np.array_equal(mask, transform()(IMAGE, MASK, (0, 0, i))[1]) for i, mask in enumerate(same))


def test_masks_may_only_be_filled_with_ignore():
    nested = [A.OneOf([A.NoOp(), A.Sequential([A.Rotate(fill_mask=0)])])]
    for wrong in ([A.Affine()], [A.PadIfNeeded(fill_mask=3)], nested):
        with pytest.raises(InputError, match="fill_mask=255"):
            transform(*wrong)
    check_augmentations([A.Affine(fill_mask=255), A.CoarseDropout(), A.OneOf([A.Rotate(fill_mask=255)])])
    rotated = transform(A.Rotate((45, 45), p=1.0, fill_mask=255))(IMAGE, MASK, (0, 0, 0))
    assert rotated[1][0, 0] == 255


@pytest.mark.parametrize("wrong", [A.Normalize(), A.ToTensorV2()])
def test_augmentations_must_keep_uint8(wrong):
    with pytest.raises(InputError, match="leave out Normalize"):
        transform(wrong)(IMAGE, MASK, (0, 0, 0))
