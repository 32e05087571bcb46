from pathlib import Path
from types import ModuleType

import by_datumaro
import numpy as np
import pytest
from label_maps import classes_of, label_map, space

from segkit.formats import coco, panoptic
from segkit.formats.base import Labelled, rasterized
from segkit.io import write_png


@pytest.mark.parametrize(
    ("form", "kind", "file"),
    [(coco, "coco_instances", "instances_val.json"), (panoptic, "coco_panoptic", "panoptic_val.json")],
)
def test_datumaro_reads_what_is_written_and_writes_what_is_read(
    tmp_path: Path, form: ModuleType, kind: str, file: str
) -> None:
    maps, names = {f"a{seed}": label_map(seed) for seed in range(2)}, space()
    images = [Labelled(f"{name}.png", labels) for name, labels in maps.items()]
    form.write(images, tmp_path / "ours" / "annotations" / file, names, 0.0)
    for name, labels in maps.items():
        write_png(tmp_path / "ours" / "images" / "val" / f"{name}.png", np.zeros((*labels.shape, 3), np.uint8))
    theirs = by_datumaro.maps_in(tmp_path / "ours", kind, names)
    assert theirs.keys() == maps.keys() and all(np.array_equal(theirs[name], maps[name]) for name in maps)

    by_datumaro.export(maps, tmp_path / "theirs", kind, names)
    found = form.read(tmp_path / "theirs" / "annotations" / file)
    for image in found.images:
        assert np.array_equal(rasterized(image, None, classes_of(names))[0], maps[Path(image.name).stem])
