"""Where two networks label images differently, and what they say there."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from segkit.arrays import Int64Array, UInt8Array
from segkit.errors import InputError
from segkit.inference.segmenter import Segmenter
from segkit.metadata.class_match import ModelClasses, match_classes
from segkit.metadata.label_space import IGNORE_INDEX


def class_table(first: Segmenter, second: Segmenter) -> UInt8Array:
    """The first network's train id of each class of the second, or 255: matched by name.

    Raises:
        InputError: Fewer than half of the first's classes are among the second's.
    """
    count, others = first.label_space.num_classes, second.label_space.num_classes
    try:
        match = match_classes(ModelClasses.of("--against", second.class_names, others), first.label_space, "the model")
    except InputError as error:
        raise InputError(
            f"--against: its {others} classes cannot be matched by name with the {count} of the model; compare models "
            "of one class table"
        ) from error
    return np.array(match.table, np.uint8)


def joint_counts(a: UInt8Array, b: UInt8Array) -> Int64Array:
    """int64 (256, 256): pixels that the first labels as the row, the second as the column."""
    return np.bincount(a.ravel().astype(np.int64) * 256 + b.ravel(), minlength=256 * 256).reshape(256, 256)


def differences(counts: Int64Array, class_names: Sequence[str], most: int = 10) -> dict[str, Any]:
    """Plain data: pixels, how many differ and their share, and the most frequent pairs of classes.

    Args:
        counts: See `joint_counts`.
        class_names: K names.
        most: How many pairs.
    """
    names = [*class_names, *["no class of the first"] * (IGNORE_INDEX + 1 - len(class_names))]
    differing, total = counts - np.diag(counts.diagonal()), max(1, int(counts.sum()))
    order = np.argsort(-differing, axis=None, kind="stable")[:most].tolist()
    pairs = [
        {"first": names[i // 256], "second": names[i % 256], "pixels": count, "share": count / total}
        for i, count in zip(order, differing.ravel()[order].tolist(), strict=True)
        if count
    ]
    different = int(differing.sum())
    return {"pixels": int(counts.sum()), "different": different, "share": different / total, "pairs": pairs}
