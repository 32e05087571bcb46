"""ADE20K scene parsing (ADEChallengeData2016): 150 classes. Zhou et al., CVPR 2017.

The label table is in `segkit.metadata.ade20k`, because submissions need it without reading a data set.
"""

from collections.abc import Sequence
from types import MappingProxyType

from segkit.data.datamodule import SegmentationDataModule
from segkit.data.layout.base import Part, Split
from segkit.errors import InputError
from segkit.metadata.ade20k import ADE20K

_FOLDERS = {"train": "training", "val": "validation", "test": "validation"}


class ADE20KDataModule(SegmentationDataModule):
    """ADE20K scene parsing, 150 classes; validation is also the test split.

    `root` is ADEChallengeData2016, the folder that contains it, or ADEChallengeData2016.zip. Labels of the benchmark's
    test images are not public.
    """

    title = "ADE20K"
    folder = "ADEChallengeData2016"
    label_space = ADE20K
    counts = MappingProxyType({"train": 20210, "val": 2000})
    archives = ("ADEChallengeData2016.zip",)
    homes = ("ADEChallengeData2016", "")

    def parts(self, split: Split) -> Sequence[Part]:
        """See base class.

        Raises:
            InputError: This is the full ADE20K.
        """
        if self._is_full_archive():
            raise InputError(
                f"{self.root}: this is the full ADE20K archive (images with *_seg.png); the benchmark needs "
                "ADEChallengeData2016 (SceneParsing, ADEChallengeData2016.zip): see datasets/README.md"
            )
        folder = _FOLDERS[split]
        return (Part(f"images/{folder}/{{name}}", f"annotations/{folder}/{{name}}.png"),)

    def _is_full_archive(self) -> bool:
        """The full data set nests its images two folders deep, by scene: images/ADE/training/urban/street/..."""
        if self.files.has("images/ADE"):
            return True
        home = next((self.root / home for home in self.homes if (self.root / home).is_dir()), self.root)
        folders = (home, home / "images" / "training")
        nested = (next(folder.glob(f"{deep}*_seg.png"), None) for folder in folders for deep in ("", "*/*/"))
        return any(nested) or next(home.glob("ADE20K_20*"), None) is not None
