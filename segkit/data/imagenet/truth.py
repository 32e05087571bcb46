"""Classes of ImageNet's validation images, which are published side by side with a list beside them."""

import io
import re
import tarfile
from collections.abc import Sequence

from scipy.io import loadmat

from segkit.data.layout.files import Files, Source
from segkit.errors import InputError

OFFICIAL, META = "ILSVRC2012_validation_ground_truth.txt", "meta.mat"
DEVKIT = "ILSVRC2012_devkit_t12"
# A line is `name class`, as in Caffe's and Kaggle's lists, or the class of the n-th image.
LISTS = ("LOC_val_solution.csv", "val.txt", "imagenet_2012_validation_synset_labels.txt")

_WORD = re.compile(r"n\d{8}")


def read_truth(files: Files, names: Sequence[str]) -> list[str]:
    """The class of each validation image, by its WordNet id (n01440764).

    The official files are OFFICIAL, a number from 1 for each image in the order of their names, and META, which defines
    these numbers: they do not follow the order of the WordNet ids. Both are in the development kit, packed or not. One
    of LISTS also works.

    Args:
        files: The data set's files.
        names: Names of the images, without suffix.

    Raises:
        InputError: There is no such list, it has another length, or a line in it is wrong.
    """
    truth = _kit(files, OFFICIAL)
    if truth is not None:
        ids = truth.decode("utf-8", "replace").split()
        meanings = _meanings(_kit(files, META), files)
        _check_length(OFFICIAL, ids, names)
        return [_meaning(meanings, one, line) for line, one in enumerate(ids, start=1)]
    for name in LISTS:
        file = files.file(name)
        if file is not None:
            return _of_list(file, names)
    raise InputError(
        f"{files.root}: the validation images lie side by side, and no list says what they show; put "
        f"{DEVKIT}.tar.gz (from image-net.org, 2.5 MB) there, or one of {', '.join(LISTS)}"
    )


def _of_list(file: Source, names: Sequence[str]) -> list[str]:
    rows = [re.split(r"[,\s]+", line.strip()) for line in file.read_bytes().decode("utf-8", "replace").splitlines()]
    rows = [row for row in rows if row != [""] and row[0] != "ImageId"]
    _check_length(str(file), rows, names)
    named = [(row[0].split(".")[0], row[1]) if len(row) > 1 else (name, row[0])
             for row, name in zip(rows, names, strict=True)]  # fmt: skip
    for line, (_, word) in enumerate(named, start=1):
        if not _WORD.fullmatch(word):
            raise InputError(f"{file}: row {line}: {word!r} is no WordNet id, such as n01440764; give another list")
    classes = dict(named)
    missing = [name for name in names if name not in classes]
    if missing:
        raise InputError(f"{file}: nothing on image {missing[0]} ({len(missing)} such); give the list of these images")
    return [classes[name] for name in names]


def _check_length(where: str, rows: Sequence[object], names: Sequence[str]) -> None:
    if len(rows) != len(names):
        raise InputError(
            f"{where}: {len(rows)} rows for {len(names)} validation images; copy the images that are missing, or the "
            "list again"
        )


def _kit(files: Files, name: str) -> bytes | None:
    """A file of the development kit, packed or not."""
    for path in (name, f"{DEVKIT}/data/{name}", f"data/{name}"):
        file = files.file(path)
        if file is not None:
            return file.read_bytes()
    packed = files.file(f"{DEVKIT}.tar.gz")
    if packed is None:
        return None
    try:
        with tarfile.open(fileobj=io.BytesIO(packed.read_bytes()), mode="r:gz") as kit:
            found = next((entry for entry in kit if entry.name.endswith(f"data/{name}") and entry.isreg()), None)
            content = None if found is None else kit.extractfile(found)
            return None if content is None else content.read()
    except (tarfile.TarError, OSError, EOFError) as error:
        raise InputError(f"{packed}: cannot be read ({error}); download it again") from error


def _meanings(meta: bytes | None, files: Files) -> dict[str, str]:
    """WordNet id of each number."""
    if meta is None:
        raise InputError(
            f"{files.root}: {OFFICIAL} is there, but not {META}, which says what its numbers mean; put it beside"
        )
    try:
        rows = loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"]
        return {str(int(row["ILSVRC2012_ID"])): str(row["WNID"]) for row in rows if not int(row["num_children"])}
    except Exception as error:  # scipy may raise anything for a damaged file
        raise InputError(f"{META}: is not that of the development kit ({error}); download it again") from error


def _meaning(meanings: dict[str, str], number: str, line: int) -> str:
    if number not in meanings:
        raise InputError(f"{OFFICIAL}: row {line}: {number!r} is none of {META}'s {len(meanings)} numbers; copy both")
    return meanings[number]
