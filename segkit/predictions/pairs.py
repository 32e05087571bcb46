"""Pairs the label maps of two folders, written by any tool."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from segkit.errors import InputError, printable
from segkit.io.confidence import is_confidence
from segkit.paths import walk_files
from segkit.predictions.label_files import SERVERS, Ids

SUFFIXES = (".png", ".tif", ".tiff", ".npy", ".bmp", ".jpg", ".jpeg")  # JPEGs: to refuse them with a reason
_FRAME_ENDINGS: dict[Ids, str] = {"raw": "_labelIds.png", "train": "_labelTrainIds.png"}  # of Cityscapes' truth
_ENDINGS = ("", "_labels")  # of `segkit infer`, too, which writes others beside its labels


@dataclass(frozen=True)
class LabelPair:
    """An image's name and its two label maps."""

    name: str
    truth: Path
    prediction: Path


@dataclass(frozen=True)
class Problem:
    """Why an image could not be scored: its name, the kind of problem, and one line with file, value and cause."""

    name: str
    kind: str
    message: str


@dataclass(frozen=True)
class Pairing:
    """The result of `find_pairs`, in order of names.

    Attributes:
        pairs: Images with both label maps.
        problems: Problems of images whose prediction is missing or exists twice.
        unused: Names of predictions that have no truth; they are not scored.
        expected: Images that have a truth.
    """

    pairs: list[LabelPair]
    problems: list[Problem]
    unused: list[str]
    expected: int


def find_pairs(
    predictions: Path,
    truth: Path,
    truth_ids: Ids = "raw",
    prediction_ending: str = "",
    truth_ending: str = "",
) -> Pairing:
    """Pair the label maps of two folders and their subfolders by name.

    The name is the relative path without suffix. If the truth is in the Cityscapes layout (`*_gtFine_labelIds.png`),
    it is city, sequence and frame, and predictions may be in any folder and have any ending, as for the official
    script. Other formats are left out if a PNG has the same name.

    Args:
        predictions: Folder of the predicted label maps.
        truth: Folder of the true ones.
        truth_ids: "train": in the Cityscapes layout take `*_labelTrainIds.png`.
        prediction_ending: Ending of the files to pair; it is no part of the name (`_labels.png` for `segkit infer`).
        truth_ending: The same for the truth.

    Raises:
        InputError: A folder is absent or has no label map, a truth exists twice, or no names match.
    """
    frames = not truth_ending and _has_frames(truth)
    true = label_maps_by_name(truth, _FRAME_ENDINGS[truth_ids] if frames else truth_ending, frames)
    predicted = label_maps_by_name(predictions, prediction_ending, frames)
    pairs, problems = [], []
    for name, files in true.items():
        if len(files) > 1:
            raise InputError(f"{files[0]} and {files[1]}: two truths for the image {name}; give --truth_ending")
        found = predicted.get(name, [])
        if len(found) == 1:
            pairs.append(LabelPair(name, files[0], found[0]))
        else:
            problems.append(_unpaired(name, files[0], found, predictions))
    unused = [name for name in predicted if name not in true]
    if not pairs and unused:
        raise InputError(
            f"{predictions}: no prediction has a truth's name (truth: {next(iter(true))}, prediction: {unused[0]}); "
            "give the folders in which relative paths agree, or --prediction_ending, --truth_ending"
        )
    return Pairing(pairs, problems, unused, len(true))


class LabelMaps:
    """The label maps of a folder, found by the names of images.

    Args:
        folder: Files as `segkit predict` writes them, those of `segkit infer`, or with Cityscapes' or other names.

    Raises:
        InputError: There is no label map.
    """

    def __init__(self, folder: Path) -> None:
        self._files = label_maps_by_name(folder, "", frames=False)
        self._frames = label_maps_by_name(folder, "", frames=True)

    @property
    def names(self) -> list[str]:
        """Relative paths of all label maps, without suffix."""
        return list(self._files)

    def of(self, name: str) -> Sequence[Path]:
        """The label maps of an image: one, unless there is none or several."""
        for ending in _ENDINGS:
            for known in (name + ending, name.rpartition("/")[2] + ending):
                if known in self._files:
                    return self._files[known]
        return self._frames.get(SERVERS["cityscapes"].key(name) or "", ())


def problem_lines(problems: Sequence[Problem], most: int) -> Iterator[str]:
    """Lines with the first problems of each kind, about `most` at most in all, and the number of each kind."""
    kinds = defaultdict[str, list[Problem]](list)
    for problem in problems:
        kinds[problem.kind].append(problem)
    each = max(1, min(3, most // max(1, len(kinds))))
    for kind, some in kinds.items():
        yield from (f"{kind}: {printable(problem.message)}" for problem in some[:each])
        if len(some) > each:
            yield f"{kind}: ... {len(some)} images in all"


def _has_frames(folder: Path) -> bool:
    return any(path.name.endswith(tuple(_FRAME_ENDINGS.values())) for path in _files(folder, ""))


def _files(folder: Path, ending: str) -> list[Path]:
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; give a folder of label maps")
    paths = [path for path in walk_files(folder, SUFFIXES) if path.name.endswith(ending) and not is_confidence(path)]
    if not paths:
        raise InputError(f"{folder}: no label map here (*{ending or ', *'.join(SUFFIXES)}); give their folder")
    return paths


def label_maps_by_name(folder: Path, ending: str, frames: bool) -> Mapping[str, Sequence[Path]]:
    """Files of each name, confidence maps left out; only PNGs if there are any.

    Args:
        folder: Their folder.
        ending: Of the files that count.
        frames: Whether the name of Cityscapes' files is city, sequence and frame.

    Raises:
        InputError: There is no such folder, or no label map in it.
    """
    files = defaultdict[str, list[Path]](list)
    for path in _files(folder, ending):
        relative = path.relative_to(folder).as_posix()
        name = relative.removesuffix(ending or path.suffix)
        files[(SERVERS["cityscapes"].key(path.name) if frames else None) or name].append(path)
    return {name: [p for p in found if p.suffix.lower() == ".png"] or found for name, found in files.items()}


def _unpaired(name: str, truth: Path, found: Sequence[Path], folder: Path) -> Problem:
    if not found:
        message = f"{name}: no prediction below {folder} for {truth}; was the run that predicts finished?"
        return Problem(name, "missing prediction", message)
    message = f"{found[0]} and {found[1]}: {len(found)} predictions for the image {name}; give --prediction_ending"
    return Problem(name, "two predictions", message)
