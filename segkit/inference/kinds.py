"""The kinds of files that `segkit infer` writes: some for each image, others that hold the annotations of many."""

from typing import NamedTuple


class AnnotationKind(NamedTuple):
    """A kind of annotation file.

    Attributes:
        format: Its name among `segkit.formats.names.FORMATS`.
        target: Where it is written below the output: a file or folder.
        needs: Modules of the extra `annotations`.
        outlines: Whether it holds polygons, which a tolerance simplifies.
        georeferenced: Whether it says where an image lies on the ground.
    """

    format: str
    target: str
    needs: tuple[str, ...] = ()
    outlines: bool = False
    georeferenced: bool = False


OF_IMAGE = ("labels", "color", "overlay", "side_by_side", "area")
DEFAULT = ("labels", "color", "overlay", "area")
AREA_TABLE = "area.csv"

_OUTLINES = ("rasterio.features", "shapely")
ANNOTATIONS = {
    "coco":        AnnotationKind("coco", "coco.json", needs=("pycocotools.mask",)),
    "panoptic":    AnnotationKind("panoptic", "panoptic.json"),
    "geojson":     AnnotationKind("geojson", ".", _OUTLINES, outlines=True, georeferenced=True),
    "cvat":        AnnotationKind("cvat", "cvat.zip"),
    "labelstudio": AnnotationKind("labelstudio", "labelstudio.json"),
    "labelme":     AnnotationKind("labelme", "labelme", _OUTLINES, outlines=True),
    "yolo":        AnnotationKind("yolo", "yolo", _OUTLINES, outlines=True),
    AREA_TABLE:    AnnotationKind("area_csv", "area.csv", georeferenced=True),
}  # fmt: skip
KINDS = (*OF_IMAGE, *ANNOTATIONS)

# What the names of an image's results end with, annotations left out.
ENDINGS = (
    "_labels.png", "_labels.tif", "_color.png", "_overlay.png", "_side_by_side.png", "_area.json", "_confidence.png",
    "_probabilities.npz", "_overlay.mp4", "_side_by_side.mp4", "_overlay.mkv", "_side_by_side.mkv",
)  # fmt: skip
