"""Mapillary Vistas v1.2: raw 0..64 are train ids; raw 65, "Unlabeled", is ignored.

Names and colours of the official config_v1.2.json, as in mmsegmentation 1.2.2, MapillaryDataset_v1, which counts
"Unlabeled" as its 66th class. Neuhold et al., ICCV 2017.
"""

from collections.abc import Sequence
from types import MappingProxyType

from segkit.data.datamodule import SegmentationDataModule
from segkit.data.layout.base import Part, Split
from segkit.metadata.label_space import LabelSpace

# fmt: off
# raw, name, colour
_CLASSES = (
    ( 0, "Bird",                     (165,  42,  42)),
    ( 1, "Ground Animal",            (  0, 192,   0)),
    ( 2, "Curb",                     (196, 196, 196)),
    ( 3, "Fence",                    (190, 153, 153)),
    ( 4, "Guard Rail",               (180, 165, 180)),
    ( 5, "Barrier",                  ( 90, 120, 150)),
    ( 6, "Wall",                     (102, 102, 156)),
    ( 7, "Bike Lane",                (128,  64, 255)),
    ( 8, "Crosswalk - Plain",        (140, 140, 200)),
    ( 9, "Curb Cut",                 (170, 170, 170)),
    (10, "Parking",                  (250, 170, 160)),
    (11, "Pedestrian Area",          ( 96,  96,  96)),
    (12, "Rail Track",               (230, 150, 140)),
    (13, "Road",                     (128,  64, 128)),
    (14, "Service Lane",             (110, 110, 110)),
    (15, "Sidewalk",                 (244,  35, 232)),
    (16, "Bridge",                   (150, 100, 100)),
    (17, "Building",                 ( 70,  70,  70)),
    (18, "Tunnel",                   (150, 120,  90)),
    (19, "Person",                   (220,  20,  60)),
    (20, "Bicyclist",                (255,   0,   0)),
    (21, "Motorcyclist",             (255,   0, 100)),
    (22, "Other Rider",              (255,   0, 200)),
    (23, "Lane Marking - Crosswalk", (200, 128, 128)),
    (24, "Lane Marking - General",   (255, 255, 255)),
    (25, "Mountain",                 ( 64, 170,  64)),
    (26, "Sand",                     (230, 160,  50)),
    (27, "Sky",                      ( 70, 130, 180)),
    (28, "Snow",                     (190, 255, 255)),
    (29, "Terrain",                  (152, 251, 152)),
    (30, "Vegetation",               (107, 142,  35)),
    (31, "Water",                    (  0, 170,  30)),
    (32, "Banner",                   (255, 255, 128)),
    (33, "Bench",                    (250,   0,  30)),
    (34, "Bike Rack",                (100, 140, 180)),
    (35, "Billboard",                (220, 220, 220)),
    (36, "Catch Basin",              (220, 128, 128)),
    (37, "CCTV Camera",              (222,  40,  40)),
    (38, "Fire Hydrant",             (100, 170,  30)),
    (39, "Junction Box",             ( 40,  40,  40)),
    (40, "Mailbox",                  ( 33,  33,  33)),
    (41, "Manhole",                  (100, 128, 160)),
    (42, "Phone Booth",              (142,   0,   0)),
    (43, "Pothole",                  ( 70, 100, 150)),
    (44, "Street Light",             (210, 170, 100)),
    (45, "Pole",                     (153, 153, 153)),
    (46, "Traffic Sign Frame",       (128, 128, 128)),
    (47, "Utility Pole",             (  0,   0,  80)),
    (48, "Traffic Light",            (250, 170,  30)),
    (49, "Traffic Sign (Back)",      (192, 192, 192)),
    (50, "Traffic Sign (Front)",     (220, 220,   0)),
    (51, "Trash Can",                (140, 140,  20)),
    (52, "Bicycle",                  (119,  11,  32)),
    (53, "Boat",                     (150,   0, 255)),
    (54, "Bus",                      (  0,  60, 100)),
    (55, "Car",                      (  0,   0, 142)),
    (56, "Caravan",                  (  0,   0,  90)),
    (57, "Motorcycle",               (  0,   0, 230)),
    (58, "On Rails",                 (  0,  80, 100)),
    (59, "Other Vehicle",            (128,  64,  64)),
    (60, "Trailer",                  (  0,   0, 110)),
    (61, "Truck",                    (  0,   0,  70)),
    (62, "Wheeled Slow",             (  0,   0, 192)),
    (63, "Car Mount",                ( 32,  32,  32)),
    (64, "Ego Vehicle",              (120,  10,  10)),
)
# fmt: on

MAPILLARY = LabelSpace.from_rows(_CLASSES, ignored=(65,))

_FOLDERS = {"train": "training", "val": "validation", "test": "testing"}


class MapillaryDataModule(SegmentationDataModule):
    """Mapillary Vistas v1.2, 65 classes; test is scored on the validation split, predict reads the test images.

    `root` holds `{training,validation}/images` and `labels`, or `v1.2/labels` as the archive of v2.0 has them. Labels
    of `testing/images` are not public: where these images are absent, predict reads the validation split.
    """

    title = "Mapillary Vistas"
    folder = "mapillary"
    label_space = MAPILLARY
    counts = MappingProxyType({"train": 18000, "val": 2000, "test": 5000})
    scored_as = MappingProxyType({"test": "val"})
    own_base_size = (2048, 1024)  # bounds of the long and the short side
    own_crop_size = (512, 1024)

    def parts(self, split: Split) -> Sequence[Part]:
        """See base class."""
        folder = _FOLDERS[split]
        if split == "test":
            has_images = self.files.has("testing/images")
            return (Part("testing/images/{name}.jpg"),) if has_images else self.parts("val")
        masks = f"{folder}/labels" if self.files.has(f"{folder}/labels") else f"{folder}/v1.2/labels"
        return (Part(f"{folder}/images/{{name}}.jpg", f"{masks}/{{name}}.png"),)
