"""Damaged exports of annotation tools: each is read, or refused in one line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from campaign import Campaign
from label_maps import classes_of, label_map, space
from mutations import mutated

from segkit.formats.base import Labelled, rasterized
from segkit.formats.names import FORMATS, read_annotations, writer_of
from segkit.io import write_png

PLACES = {
    "coco": "a.json",
    "panoptic": "a.json",
    "labelstudio": "a.json",
    "cvat": "a.zip",
    "yolo": "yolo",
    "labelme": "labelme",
}
VALUES = (None, -1, 0, 1e308, float("nan"), 10**30, True, "x", "", "../x", "\ud800", [], {}, [[]], [1, 2, 3], {"a": 1})


def export(folder: Path, name: str) -> dict[str, bytes]:
    """Two label maps in a format; its files without the images, by their paths."""
    labels = label_map(0, 50, 60, 5)
    images = [Labelled(f"{stem}.png", labels) for stem in ("town/a", "b")]
    writer_of(name)(images, folder / PLACES[name], space(5, background=True), 0.0)
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    if name == "yolo":
        for image in images:
            write_png(folder / "yolo" / "images" / image.name, np.zeros((50, 60, 3), np.uint8))
    return files


def edited(data: bytes, rng: np.random.Generator) -> bytes:
    """A JSON file with one or two of its values replaced or removed."""
    content = json.loads(data)
    for _ in range(int(rng.integers(1, 3))):
        places = list(inside(content))
        holder, key = places[int(rng.integers(len(places)))]
        if rng.random() < 0.3:
            del holder[key]
        else:
            holder[key] = VALUES[int(rng.integers(len(VALUES)))]
    return json.dumps(content).encode()


def inside(content: Any) -> Any:
    """Every list or object inside, with the places in it; of long lists the first twenty."""
    if isinstance(content, dict | list):
        for key in list(content) if isinstance(content, dict) else range(min(20, len(content))):
            yield content, key
            yield from inside(content[key])


@pytest.mark.parametrize("name", [name for name, one in FORMATS.items() if one.reads and one.writes])
@pytest.mark.parametrize(
    "count", [pytest.param(40, marks=pytest.mark.slow), pytest.param(1000, marks=pytest.mark.campaign)]
)
def test_damaged_exports(tmp_path: Path, name: str, count: int, figures: Callable[[str], None]) -> None:
    campaign = Campaign(f"exports of {name}", figures)
    originals = export(tmp_path, name)
    classes = classes_of(space(5, background=True))
    for number, (label, original, data) in enumerate(mutated(originals, count, 7)):
        path = tmp_path / list(originals)[number % len(originals)]
        is_json = path.suffix == ".json" and number % 3
        path.write_bytes(edited(original, np.random.default_rng(number)) if is_json else data)
        with campaign.case(f"{label}{f', or edited by {number}' if is_json else ''}"):
            found = read_annotations(name, tmp_path / PLACES[name])
            "".join(found.class_names).encode()
            for index in range(len(found.images)):
                rasterized(found.images[index], None, classes)
        path.write_bytes(original)
    campaign.finish()
    assert campaign.counts["done"] and campaign.counts["refused"]
