# /// script
# requires-python = ">=3.11,<3.12"
# dependencies = ["mit-semseg==1.0.0", "torch", "torchvision", "numpy"]
# ///
"""Writes metrics.npz: label maps, and what CSAIL's mit_semseg makes of them.

Run: uv run --no-project tests/goldens/make_metrics.py    (uv must be allowed to build mit-semseg from source)

Every case is a small data set of several images, summed as the library sums it. In each, 255 is ignored. Keys are
CASE/mask/I and CASE/labels/I (uint8 images), CASE/num_classes, and CASE/csail/SCORE. make_metrics_paddleseg.py adds
PaddleSeg's, in an environment of its own; the tests run mmsegmentation's IoUMetric on the same label maps.
"""

from pathlib import Path

import numpy as np
from mit_semseg.utils import AverageMeter, accuracy, intersectionAndUnion

SIZES = ((23, 31), (1, 17), (40, 9))


def random_images(num_classes, seed, sizes=SIZES):
    """Images of which 7 in 10 pixels are right and 1 in 10 is ignored."""
    generator = np.random.default_rng(seed)
    images = []
    for size in sizes:
        mask = generator.integers(0, num_classes, size, dtype=np.uint8)
        labels = np.where(generator.random(size) < 0.7, mask, generator.integers(0, num_classes, size, dtype=np.uint8))
        mask[generator.random(size) < 0.1] = 255
        images.append((mask, labels.astype(np.uint8)))
    return images


def cases():
    """Name to (num_classes, images)."""
    found = {f"random_{k}": (k, random_images(k, seed=k)) for k in (2, 5, 19, 150)}
    absent = random_images(7, seed=100)
    for mask, labels in absent:
        mask[mask == 3], labels[labels == 3] = 255, 6
    found["absent_from_both"] = (7, absent)
    predicted = random_images(7, seed=101)
    for mask, _ in predicted:
        mask[(mask == 2) | (mask == 5)] = 0
    found["predicted_only"] = (7, predicted)
    hidden = random_images(7, seed=102)
    for mask, labels in hidden:
        mask[(mask == 4) | (labels == 4)] = 255  # class 4 is predicted on ignored pixels alone
    found["predicted_where_ignored"] = (7, hidden)
    outside = random_images(6, seed=103)
    for _, labels in outside:
        labels[::3, ::2], labels[1::3, ::4] = 255, 6
    found["predicted_as_no_class"] = (6, outside)
    lost = random_images(6, seed=104)
    for mask, labels in lost:
        labels[mask == 1] = 255  # a true class whose pixels are all predicted as no class
    found["class_lost"] = (6, lost)
    found["all_ignored"] = (4, [(np.full((3, 5), 255, np.uint8), np.zeros((3, 5), np.uint8))])
    found["one_pixel_right"] = (3, [(np.array([[1]], np.uint8), np.array([[1]], np.uint8))])
    found["one_pixel_wrong"] = (3, [(np.array([[1]], np.uint8), np.array([[2]], np.uint8))])
    found["one_class_of_5"] = (5, [(np.full((4, 6), 2, np.uint8), np.full((4, 6), 2, np.uint8))])
    found["one_class_at_all"] = (1, random_images(1, seed=105))
    return found


def csail_scores(num_classes, images):
    """The meters of CSAIL's eval.py; there, ignored is -1."""
    share, intersections, unions = AverageMeter(), AverageMeter(), AverageMeter()
    for mask, labels in images:
        true = np.where(mask == 255, -1, mask.astype(np.int64))
        predicted = labels.astype(np.int64)
        share.update(*accuracy(predicted, true))
        intersection, union = intersectionAndUnion(predicted, true, num_classes)
        intersections.update(intersection)
        unions.update(union)
    iou = intersections.sum / (unions.sum + 1e-10)
    return {"IoU": iou, "mIoU": iou.mean(), "accuracy": share.average()}


def main():
    """Write the file."""
    arrays = {}
    for name, (num_classes, images) in cases().items():
        arrays[f"{name}/num_classes"] = np.array(num_classes)
        for i, (mask, labels) in enumerate(images):
            arrays[f"{name}/mask/{i}"], arrays[f"{name}/labels/{i}"] = mask, labels
        for key, value in csail_scores(num_classes, images).items():
            arrays[f"{name}/csail/{key}"] = np.asarray(value)
    np.savez_compressed(Path(__file__).with_name("metrics.npz"), **arrays)


if __name__ == "__main__":
    main()
