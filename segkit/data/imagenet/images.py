"""The images of ImageNet and their classes: folders, the tar files as they are published, or a zip of the folders."""

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Literal, TypeAlias

from pytorch_lightning.utilities import rank_zero_info

from segkit.archives import TarMember, read_tar
from segkit.data.imagenet.truth import read_truth
from segkit.data.layout.files import Files, Source
from segkit.errors import InputError
from segkit.files import write_text
from segkit.paths import IMAGE_SUFFIXES, cache_folder, is_left_out, looked_for

Part: TypeAlias = Literal["train", "val"]
HOMES = ("", "ILSVRC/Data/CLS-LOC", "ILSVRC2012", "imagenet")  # folders that may hold train/ and val/, in a zip, too


@dataclass(frozen=True, slots=True)
class ClassImage:
    """An image, its class 0..K-1, and its name: the path below the split, without suffix."""

    file: Source | TarMember
    label: int
    name: str


class ImageFolders:
    """Images below `train` and `val`, a folder for each class; or ILSVRC2012_img_{train,val}.tar in their place.

    All validation images may be in one folder; their classes are then read from the official list (`read_truth`).
    Classes are those of the validation images, numbered in the order of their names, as is usual.

    Args:
        root: The folder, or a zip of it.
        num_classes: The required number of classes.
    """

    def __init__(self, root: Path, num_classes: int) -> None:
        self.root, self.num_classes = root, num_classes
        self.files = Files(root, homes=HOMES)

    def find(self, part: Part) -> list[ClassImage]:
        """The images of a part, in the order of their paths.

        Raises:
            InputError: There are none, a class has none, or their classes are not known.
        """
        found, words = self._listed(part)
        places = {name: place for place, name in enumerate(self.class_names)}
        self._check(part, words)
        return [
            ClassImage(file, places[word], path.with_suffix("").as_posix())
            for (path, file), word in zip(found, words, strict=True)
        ]

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        """K names, sorted.

        Raises:
            InputError: Their number is not `num_classes`.
        """
        names = sorted({*self._listed("val")[1]})
        if len(names) != self.num_classes:
            raise InputError(
                f"{self.root}/val: {len(names)} classes, from {names[0]} to {names[-1]}, where {self.num_classes} are "
                f"expected; copy those that are missing, or, if this is other data, set --data.num_classes {len(names)}"
            )
        return tuple(names)

    def _listed(self, part: Part) -> tuple[list[tuple[PurePosixPath, Source | TarMember]], list[str]]:
        """Paths and files of a part, and the name of each one's class."""
        found = self._below(part)
        words = [path.parts[0] if len(path.parts) > 1 else "" for path, _ in found]
        if "" in words:  # images that lie side by side, not in folders
            if part == "train" or any(words):
                first = found[words.index("")][0]
                raise InputError(f"{self.root}/{part}: {first} lies in no class's folder; put it into one")
            words = read_truth(self.files, [path.with_suffix("").as_posix() for path, _ in found])
        return found, words

    def _check(self, part: Part, words: Sequence[str]) -> None:
        where, there = f"{self.root}/{part}", {*words}
        empty = sorted(({*self.class_names} | self._folders(part)) - there)
        if empty:
            raise InputError(f"{where}/{empty[0]}: no images of this class ({len(empty)} classes have none); copy them")
        strange = sorted(there - {*self.class_names})
        if strange:
            raise InputError(
                f"{where}: class {strange[0]} ({len(strange)} such) has no images in val; both need the same classes"
            )

    def _below(self, part: Part) -> list[tuple[PurePosixPath, Source | TarMember]]:
        if not self.root.exists():
            raise InputError(f"{self.root}: no such data folder{looked_for(self.root)}; correct --data.root")
        tar = self._tar(part)
        found: list[tuple[PurePosixPath, Source | TarMember]]
        if tar.is_file():
            found = sorted(((PurePosixPath(member.name), member) for member in indexed(tar)), key=lambda one: one[0])
        elif not self.files.has(part):
            raise InputError(
                f"{self.root}: neither a folder {part} nor {tar.name}; see datasets/README.md, and check --data.root"
            )
        else:
            found = [*self.files.below(part, IMAGE_SUFFIXES)]
        if not found:
            raise InputError(f"{self.root}/{part}: no images here; allowed endings are {', '.join(IMAGE_SUFFIXES)}")
        return found

    def _tar(self, part: Part) -> Path:
        return self.root / f"ILSVRC2012_img_{part}.tar"

    def _folders(self, part: Part) -> set[str]:
        """Names of the folders on disk, including empty ones."""
        folder = next((p for home in HOMES if (p := self.root / home / part).is_dir()), None)
        if folder is None or self._tar(part).is_file():
            return set()
        return {path.name for path in folder.iterdir() if path.is_dir() and not is_left_out(path.name)}


def indexed(tar: Path) -> list[TarMember]:
    """The files of a tar, from its index in the cache folder if there is one.

    Raises:
        InputError: See `read_tar`.
    """
    stat = tar.stat()
    key = hashlib.sha256(f"{tar.absolute()} {stat.st_size} {stat.st_mtime_ns}".encode()).hexdigest()
    index = cache_folder() / "tars" / f"{key[:32]}.json"
    with suppress(OSError, ValueError, TypeError):  # no index yet, or a damaged one
        return [TarMember(tar, *row) for row in json.loads(index.read_text(encoding="utf-8"))]
    rank_zero_info(f"{tar}: finding its images, once; a million takes minutes")
    members = read_tar(tar)
    with suppress(OSError):  # a read-only folder only costs time
        write_text(index, json.dumps([[member.name, member.offset, member.size] for member in members]))
    return members
