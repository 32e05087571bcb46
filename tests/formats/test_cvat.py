import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from label_maps import classes_of, label_map, space
from PIL import Image

from segkit.errors import InputError
from segkit.formats import cvat
from segkit.formats.base import Labelled, rasterized
from segkit.metadata.label_space import LabelSpace, identity_table

GOLDEN = Path(__file__).parents[1] / "goldens" / "annotations.npz"
LABELMAP = "# label:color_rgb:parts:actions\nbackground:0,0,0::\nroad:128,64,128::\ntree:107,142,35::\n"
COLOURS = np.array([(0, 0, 0), (128, 64, 128), (107, 142, 35)], np.uint8)


def png(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "PNG")
    return buffer.getvalue()


def packed(path: Path, files: dict[str, bytes | str]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def masks_of(path: Path, classes: dict[str, int]) -> dict[str, np.ndarray]:
    made = {image.name: rasterized(image, image.size, classes) for image in cvat.read(path).images}
    assert not any(problems for _, problems in made.values())
    return {name: mask for name, (mask, _) in made.items()}


@pytest.mark.slow
@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("unpacked", [False, True])
def test_what_is_written_is_read_to_the_pixel(tmp_path: Path, background: bool, unpacked: bool) -> None:
    names = space(background=background)
    images = [Labelled(f"town.1/a.{seed}.jpg", label_map(seed)) for seed in range(3)]
    path = tmp_path / "export.zip"
    cvat.write(iter(images), path, names)
    first = path.read_bytes()
    cvat.write(iter(images), path, names)
    assert path.read_bytes() == first  # no clock in it
    if unpacked:
        with zipfile.ZipFile(path) as archive:
            archive.extractall(tmp_path / "folder")
        path = tmp_path / "folder"
    masks = masks_of(path, classes_of(names))
    for image in images:
        expected = np.where(image.labels == 255, 0, image.labels) if background else image.labels  # both are black
        assert np.array_equal(masks[image.name.replace(".jpg", ".png")], expected)
    declared = cvat.read(path).class_names
    assert declared == names.class_names if background else declared == ("background", *names.class_names)


def test_an_export_of_datumaro_is_read_to_the_pixel(tmp_path: Path) -> None:
    with np.load(GOLDEN) as golden:
        labels = golden["labels"]
        (tmp_path / "export.zip").write_bytes(golden["cvat"].tobytes())
    classes = {"background": 0, "road": 1, "tree": 2, "car": 3}
    masks = masks_of(tmp_path / "export.zip", classes)
    assert np.array_equal(masks["town/a.png"], labels)
    assert np.array_equal(masks["b.png"], np.where(labels == 1, 0, labels))  # its road was not drawn
    found = cvat.read(tmp_path / "export.zip")
    assert set(found.class_names) == set(classes) and found.notes == {cvat.UNDRAWN: 1} and len(found.images) == 2


def test_datumaro_reads_what_is_written(tmp_path: Path) -> None:
    datumaro = pytest.importorskip("datumaro", reason="datumaro wants an older Pillow: an environment of its own")
    names = space()
    images = [Labelled(f"town/a{seed}.jpg", label_map(seed)) for seed in range(3)]
    cvat.write(images, tmp_path / "export.zip", names)
    with zipfile.ZipFile(tmp_path / "export.zip") as archive:
        archive.extractall(tmp_path / "folder")
    read = datumaro.Dataset.import_from(str(tmp_path / "folder"), "voc_segmentation")
    declared = [label.name for label in read.categories()[datumaro.AnnotationType.label]]
    assert len(read) == len(images)
    for image in images:
        found = np.full(image.labels.shape, 255)
        for part in read.get(image.name.removesuffix(".jpg"), "default").annotations:
            found[part.image.astype(bool)] = names.class_names.index(declared[part.label])
        assert np.array_equal(found, image.labels)


def test_colours_that_are_black_or_shared_are_told_apart(tmp_path: Path) -> None:
    names = LabelSpace(("road", "tree", "sky"), ((0, 0, 0), (128, 0, 0), (128, 0, 0)), identity_table(3))
    labels = np.array([[0, 1, 2, 255]], np.uint8)
    cvat.write([Labelled("a.jpg", labels)], tmp_path / "a.zip", names)
    assert np.array_equal(masks_of(tmp_path / "a.zip", classes_of(names))["a.png"], labels)


@pytest.mark.parametrize("kind", ["colours", "palette", "numbers"])
def test_masks_of_one_channel_and_of_colours(tmp_path: Path, kind: str) -> None:
    index = np.array([[0, 1, 2], [2, 2, 1]], np.uint8)
    palette = Image.fromarray(index)
    palette.putpalette(COLOURS.ravel().tolist())
    buffer = io.BytesIO()
    palette.save(buffer, "PNG")
    mask = {"colours": png(COLOURS[index]), "palette": buffer.getvalue(), "numbers": png(index)}[kind]
    path = packed(tmp_path / "a.zip", {"top/labelmap.txt": LABELMAP, "top/SegmentationClass/a.png": mask})
    assert np.array_equal(masks_of(path, {"background": 0, "road": 1, "tree": 2})["a.png"], index)


def test_a_background_that_is_drawn_leaves_black_without_a_label(tmp_path: Path) -> None:
    """CVAT gives a label `background` of the user's its own colour, and lists black no more."""
    mask = png(np.array([[(0, 0, 0), (9, 9, 9), (128, 64, 128)]], np.uint8))
    files = {"labelmap.txt": "road:128,64,128::\nbackground:9,9,9::\n", "SegmentationClass/a.png": mask}
    path = packed(tmp_path / "a.zip", files)
    assert masks_of(path, {"background": 0, "road": 1})["a.png"].tolist() == [[0, 0, 1]]
    assert masks_of(path, {"road": 1})["a.png"].tolist() == [[255, 255, 1]]


def test_without_colours_labels_have_those_of_pascal_voc(tmp_path: Path) -> None:
    voc = np.array([[(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0)]], np.uint8)  # its devkit's first four
    labelmap = "background:::\nroad:::\ntree:::\nsky:::\n"
    path = packed(tmp_path / "a.zip", {"labelmap.txt": labelmap, "SegmentationClass/a.png": png(voc)})
    assert masks_of(path, {"road": 1, "tree": 2, "sky": 3})["a.png"].tolist() == [[255, 1, 2, 3]]


ROAD = png(COLOURS[[[1, 1]]])
Files = dict[str, bytes | str]
BAD: dict[str, tuple[Files, str]] = {
    "no labelmap": ({"SegmentationClass/a.png": ROAD}, "0 files labelmap.txt"),
    "no masks": ({"labelmap.txt": LABELMAP}, "no masks in SegmentationClass/; annotate"),
    "path traversal": ({"labelmap.txt": LABELMAP, "SegmentationClass/../../a.png": ROAD}, "leads out of the folder"),
    "no colour": ({"labelmap.txt": "road:1,2::", "SegmentationClass/a.png": ROAD}, "line 1, 'road:1,2::'"),
    "not UTF-8": ({"labelmap.txt": b"caf\xe9:1,2,3::", "SegmentationClass/a.png": ROAD}, "is not UTF-8"),
    "shared": ({"labelmap.txt": "a:1,2,3::\nb:1,2,3::", "SegmentationClass/a.png": ROAD}, "two labels have one colour"),
    "damaged mask": ({"labelmap.txt": LABELMAP, "SegmentationClass/a.png": ROAD[:40]}, "SegmentationClass/a.png"),
    "unknown colour": (
        {"labelmap.txt": LABELMAP, "SegmentationClass/a.png": png(np.full((2, 3, 3), 7, np.uint8))},
        r"colour \[7, 7, 7\] is of no label: 6 such pixels",
    ),
    "unknown number": (
        {"labelmap.txt": LABELMAP, "SegmentationClass/a.png": png(np.full((2, 3), 3, np.uint8))},
        "value 3 is of no label: 6 such pixels",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_one_line_with_the_file(tmp_path: Path, case: str) -> None:
    files, message = BAD[case]
    path = packed(tmp_path / "bad.zip", files)
    with pytest.raises(InputError, match=message) as caught:
        masks_of(path, {"road": 0, "tree": 1})
    assert "bad.zip" in str(caught.value) and "\n" not in str(caught.value)


def test_an_unknown_class_is_named(tmp_path: Path) -> None:
    path = packed(tmp_path / "a.zip", {"labelmap.txt": LABELMAP, "SegmentationClass/a.png": ROAD})
    with pytest.raises(InputError, match=r"a\.zip/SegmentationClass/a\.png: class 'road' is unknown"):
        masks_of(path, {"tree": 1})


@pytest.mark.parametrize("damage", ["cut", "text", "bomb"])
def test_a_damaged_zip_and_a_bomb_are_refused(tmp_path: Path, damage: str) -> None:
    path = packed(tmp_path / "bad.zip", {"labelmap.txt": LABELMAP, "SegmentationClass/a.png": ROAD})
    data = path.read_bytes()
    change: dict[str, Callable[[], bytes]] = {
        "cut": lambda: data[: len(data) // 2],
        "text": lambda: b"no zip",
        # the size in the directory of the first file becomes 4 GB less 2
        "bomb": lambda: data[: data.index(b"PK\1\2") + 24] + b"\xfe\xff\xff\xff" + data[data.index(b"PK\1\2") + 28 :],
    }
    path.write_bytes(change[damage]())
    with pytest.raises(InputError, match=r"bad\.zip"):
        cvat.read(path)


@pytest.mark.parametrize("name", ["a:b", "#a"])
def test_a_name_that_labelmap_cannot_hold_is_refused(tmp_path: Path, name: str) -> None:
    names = LabelSpace((name,), ((1, 2, 3),), identity_table(1))
    with pytest.raises(InputError, match="rename the class"):
        cvat.write([], tmp_path / "a.zip", names)
    assert not (tmp_path / "a.zip").exists()
