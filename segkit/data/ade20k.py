"""ADE20K scene parsing (ADEChallengeData2016): 150 classes, 20210 training and 2000 validation pictures."""

from pathlib import Path

from segkit.data.datamodule import SegmentationDataModule, Split, find_pictures, pair
from segkit.data.dataset import Sample
from segkit.errors import InputError
from segkit.metadata.ade20k import ADE20K
from segkit.metadata.label_space import LabelSpace

_FOLDERS = {"train": "training", "val": "validation", "test": "validation"}


class ADE20KDataModule(SegmentationDataModule):
    """ADE20K, read from `images/{training,validation}` and `annotations/{training,validation}`.

    `root` is ADEChallengeData2016 or the folder that contains it. Labels of the benchmark's test pictures are not
    public: test and predict read the validation split.
    """

    @property
    def label_space(self) -> LabelSpace:
        """150 classes; raw 0 is ignored."""
        return ADE20K

    def find_samples(self, split: Split, with_masks: bool) -> list[Sample]:
        """As in the base class."""
        home = self._home()
        images = find_pictures(home / "images" / _FOLDERS[split])
        masks = {name: home / "annotations" / _FOLDERS[split] / f"{name}.png" for name in images}
        return pair(images, masks if with_masks else None)

    def _home(self) -> Path:
        inner = self.root / "ADEChallengeData2016"
        home = inner if inner.is_dir() else self.root
        # The full data set nests its pictures two folders deep, by scene: images/ADE/training/urban/street/...
        if (home / "images" / "ADE").is_dir() or any(home.glob("ADE20K_20*")) or _has_seg_png(home):
            raise InputError(
                f"{home}: this is the full ADE20K archive (pictures with *_seg.png); the benchmark needs "
                "ADEChallengeData2016 (SceneParsing, ADEChallengeData2016.zip): see datasets/README.md"
            )
        return home


def _has_seg_png(home: Path) -> bool:
    folders = (home, home / "images" / "training")
    return any(next(folder.glob(pattern), None) for folder in folders for pattern in ("*_seg.png", "*/*/*_seg.png"))
