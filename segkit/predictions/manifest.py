"""`predictions.json`: records what made the label maps of a folder, so that they can be completed and scored later."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from segkit.errors import InputError
from segkit.files import parse_json, write_json
from segkit.metadata.ade20k import ADE20K
from segkit.metadata.cityscapes import CITYSCAPES
from segkit.metadata.class_files import read_classes
from segkit.metadata.label_space import LabelSpace, binary_table, distinct_palette, identity_table, numbered_space
from segkit.predictions.label_files import Ids

NAME = "predictions.json"

SPACES = {"cityscapes": CITYSCAPES, "ade20k": ADE20K}


@dataclass(frozen=True)
class Manifest:
    """Everything that label maps depend on, and whether the folder is complete; all plain data.

    Attributes:
        weights: "file", the checkpoint's name or None, and "sha256" of parameters and buffers.
        protocol: The protocol that really runs.
        precision: Precision of the arithmetic, in Lightning's words.
        dataset: "name" and "split".
        images: "count", and "sha256" of their names and file sizes.
        label_space: `LabelSpace.to_dict()`: classes, and what raw label values of the truth mean.
        complete: Whether every image has its label map.
        run: Facts that do not affect the labels: command, date, versions, processes.
    """

    weights: Mapping[str, Any]
    protocol: Mapping[str, Any]
    precision: str
    dataset: Mapping[str, Any]
    images: Mapping[str, Any]
    label_space: Mapping[str, Any]
    complete: bool
    run: Mapping[str, Any]

    @property
    def space(self) -> LabelSpace:
        """The classes with their label table."""
        return LabelSpace.from_dict(self.label_space)

    def difference(self, other: "Manifest") -> str | None:
        """The first difference from `other` that affects labels, as "name: this, not that"; None = there is none."""
        if self.weights["sha256"] != other.weights["sha256"]:
            return f"weights: {_weights(self)}, not {_weights(other)}"
        for key in ("protocol", "precision", "dataset", "images", "label_space"):
            mine, theirs = _plain(getattr(self, key)), _plain(getattr(other, key))
            if mine != theirs:
                return _first_difference(key, mine, theirs)
        return None

    def write(self, folder: Path) -> None:
        """Write the manifest into the folder, atomically."""
        write_json(folder / NAME, {"format": 1, **asdict(self)})


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a folder, or None if it has none.

    Raises:
        InputError: The file is not a manifest, or has a later format.
    """
    path = folder / NAME
    try:
        data = parse_json(path.read_text(encoding="utf-8"))
        if data.pop("format") == 1:
            return _checked(Manifest(**{field.name: data[field.name] for field in fields(Manifest)}))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: not what `segkit predict` writes; move it away, or give another folder") from error
    raise InputError(f"{path}: written by a newer segkit; update, or give another folder")


def _checked(found: Manifest) -> Manifest:
    parts = (found.weights, found.protocol, found.dataset, found.images, found.run)
    if not all(isinstance(part, dict) for part in parts) or not isinstance(found.weights["sha256"], str):
        raise TypeError("a part has another form")
    LabelSpace.from_dict(found.label_space)
    return found


def named_space(
    labels: str | None,
    num_classes: int | None = None,
    masks: Literal["ids", "binary"] = "ids",
    manifest: Manifest | None = None,
    folder: Path | None = None,
) -> LabelSpace:
    """Classes, and what the raw values of the truth mean.

    Args:
        labels: "cityscapes", "ade20k", a classes.txt or its folder, "none", or None: those of `predictions.json`.
        num_classes: With "none", K; label values are then train ids.
        masks: With a classes.txt, the kind of raw values: class numbers, or 0 and 255.
        manifest: The manifest of the predictions.
        folder: The folder of the predictions, for the message.

    Raises:
        InputError: The classes cannot be determined.
    """
    is_file = labels not in (None, "none", *SPACES)
    if masks != "ids" and not is_file:
        raise InputError(
            f"--data.masks {masks}: is for --labels classes.txt; of other data it is known what values mean"
        )
    if (labels == "none") != (num_classes is not None):
        raise InputError("--labels none and --num_classes K go together: classes without names, numbered from 0")
    if num_classes is not None:
        return numbered_space(num_classes)
    if labels in SPACES:
        return SPACES[labels]
    if is_file:
        return _own_space(Path(str(labels)), masks)
    if manifest is None:
        raise InputError(
            f"{folder}: has no {NAME} that names the classes; give --labels cityscapes, ade20k, a classes.txt, or none"
        )
    return manifest.space


def check_manifest(manifest: Manifest, space: LabelSpace, ids: Ids, folder: Path) -> None:
    """Refuse a reading of predictions that contradicts their manifest.

    Raises:
        InputError: The number of classes differs, or the predictions are taken for raw ids.
    """
    if manifest.space.num_classes != space.num_classes:
        raise InputError(
            f"{folder / NAME}: {manifest.space.num_classes} classes, --labels has {space.num_classes}; leave --labels "
            "out, or give that of the data set"
        )
    if ids == "raw":
        raise InputError(f"{folder / NAME}: `segkit predict` writes train ids; leave --prediction_ids out")


def _own_space(path: Path, masks: str) -> LabelSpace:
    path = path / "classes.txt" if path.is_dir() else path
    if not path.is_file():
        raise InputError(f"--labels {path}: no such file; allowed: {', '.join(SPACES)}, a classes.txt, or none")
    names = read_classes(path)
    table = binary_table(len(names), str(path)) if masks == "binary" else identity_table(len(names))
    return LabelSpace(names, distinct_palette(len(names)), table)


def images_identity(images: Mapping[str, int]) -> dict[str, Any]:
    """`Manifest.images` for names and sizes of files; their sizes are enough to notice other images."""
    digest = hashlib.sha256()
    for name in sorted(images):
        digest.update(f"{name}\0{images[name]}\n".encode())
    return {"count": len(images), "sha256": digest.hexdigest()}


def _weights(manifest: Manifest) -> str:
    return f"{manifest.weights.get('file') or 'random ones'} ({manifest.weights['sha256'][:8]})"


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value))


def _first_difference(key: str, mine: Any, theirs: Any) -> str:
    if isinstance(mine, dict) and isinstance(theirs, dict):
        if mine.get("name") != theirs.get("name"):
            return f"{key}: {mine.get('name')}, not {theirs.get('name')}"
        for part in sorted(mine.keys() | theirs.keys()):
            if mine.get(part) != theirs.get(part):
                return _first_difference(f"{key}.{part}", mine.get(part), theirs.get(part))
    here, there = str(mine), str(theirs)
    return f"{key}: {here[:60]}, not {there[:60]}" if here[:60] != there[:60] else f"{key} differs"
