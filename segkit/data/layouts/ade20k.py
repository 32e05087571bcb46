"""ADE20K scene parsing (ADEChallengeData2016): 150 classes. Zhou et al., CVPR 2017."""

from collections.abc import Sequence
from types import MappingProxyType

from segkit.data.layouts.base import Layout, Part, Split
from segkit.errors import InputError
from segkit.metadata.ade20k import ADE20K
from segkit.metadata.label_space import LabelSpace

_FOLDERS = {"train": "training", "val": "validation", "test": "validation"}


class ADE20KLayout(Layout):
    """`images/{training,validation}` and `annotations/{training,validation}`.

    `root` is ADEChallengeData2016, the folder that contains it, or ADEChallengeData2016.zip. Labels of the benchmark's
    test images are not public: test and predict read the validation split.
    """

    title = "ADE20K"
    counts = MappingProxyType({"train": 20210, "val": 2000})
    archives = ("ADEChallengeData2016.zip",)
    homes = ("ADEChallengeData2016", "")

    @property
    def label_space(self) -> LabelSpace:
        """150 classes; raw 0 is ignored."""
        return ADE20K

    def parts(self, split: Split) -> Sequence[Part]:
        """As in the base class.

        Raises:
            InputError: This is the full ADE20K.
        """
        if self._is_full_archive():
            raise InputError(
                f"{self.root}: this is the full ADE20K archive (images with *_seg.png); the benchmark needs "
                "ADEChallengeData2016 (SceneParsing, ADEChallengeData2016.zip): see datasets/README.md"
            )
        folder = _FOLDERS[split]
        return (Part(f"images/{folder}", f"annotations/{folder}"),)

    def _is_full_archive(self) -> bool:
        """The full data set nests its images two folders deep, by scene: images/ADE/training/urban/street/..."""
        if self.files.has("images/ADE"):
            return True
        home = next((self.root / home for home in self.homes if (self.root / home).is_dir()), self.root)
        folders = (home, home / "images" / "training")
        nested = (next(folder.glob(f"{deep}*_seg.png"), None) for folder in folders for deep in ("", "*/*/"))
        return any(nested) or next(home.glob("ADE20K_20*"), None) is not None
