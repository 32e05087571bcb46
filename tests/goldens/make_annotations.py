"""Writes annotations.npz: brush masks as label-studio-sdk encodes them, and an export of datumaro as CVAT asks for it.

Both need many packages, and datumaro older ones than segkit's; so in an environment of their own:
`uv run --no-project --with label-studio-sdk==2.1.2 --with datumaro==1.13.12 python tests/goldens/make_annotations.py`
"""

import io
import tempfile
import zipfile
from pathlib import Path

import datumaro
import numpy as np
from datumaro.components.media import Image
from label_studio_sdk.converter.brush import mask2rle

CLASSES = {"background": (0, 0, 0), "road": (128, 64, 128), "tree": (107, 142, 35), "car": (0, 0, 142)}

rng = np.random.default_rng(0)
labels = np.kron(rng.integers(0, 4, (6, 8)), np.ones((5, 7), int)).astype(np.uint8)  # (30, 56)
labels[rng.integers(0, 30, 40), rng.integers(0, 56, 40)] = rng.integers(0, 4, 40)

items = []
for name, ids in (("town/a", range(1, 4)), ("b", range(2, 4)), ("undrawn", ())):
    masks = [datumaro.Mask(labels == i, label=i, group=i, id=i) for i in ids]
    image = Image.from_numpy(np.zeros((*labels.shape, 3), np.uint8))
    items.append(datumaro.DatasetItem(name, subset="default", media=image, annotations=masks))
dataset = datumaro.Dataset.from_iterable(items, categories=list(CLASSES))
archive = io.BytesIO()
with tempfile.TemporaryDirectory() as folder:
    label_map = {name: [colour, [], []] for name, colour in CLASSES.items()}
    dataset.export(folder, "voc_segmentation", apply_colormap=True, label_map=label_map)
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as made:
        for path in sorted(path for path in Path(folder).rglob("*") if path.is_file()):
            made.writestr(zipfile.ZipInfo(path.relative_to(folder).as_posix()), path.read_bytes())

noise = rng.random((9, 13)) < 0.5
long = np.zeros((300, 257), bool)  # runs of more than 65536 values
long[250, 3:9] = True
np.savez_compressed(
    Path(__file__).parent / "annotations.npz",
    labels=labels,
    cvat=np.frombuffer(archive.getvalue(), np.uint8),
    **{f"mask_{name}": mask for name, mask in {"noise": noise, "long": long}.items()},
    **{
        f"rle_{name}": np.array(mask2rle((255 * mask).astype(np.uint8)), np.uint8)
        for name, mask in {"noise": noise, "long": long}.items()
    },
)
