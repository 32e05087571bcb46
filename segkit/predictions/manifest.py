"""`predictions.json`: what made the label maps of a folder, so that they can be gone on with and scored later."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from segkit.errors import InputError
from segkit.files import parse_json, write_json
from segkit.metadata.label_space import LabelSpace

NAME = "predictions.json"


@dataclass(frozen=True)
class Manifest:
    """What makes a label map what it is, and where the folder stands; all plain data.

    Attributes:
        weights: "file", the checkpoint's name or None, and "sha256" of parameters and buffers.
        protocol: the one that really runs.
        precision: of the arithmetic, in Lightning's words.
        dataset: "name" and "split".
        images: "count", and "sha256" of their names and file sizes.
        label_space: `LabelSpace.to_dict()`: classes, and what raw label values of the truth mean.
        complete: whether every image has its label map.
        run: what says nothing about the labels: command, date, versions, processes.
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
        """Classes and label table."""
        return LabelSpace.from_dict(self.label_space)

    def difference(self, other: "Manifest") -> str | None:
        """What first differs from `other` in what makes the labels, as "name: this, not that"; None = nothing."""
        if self.weights["sha256"] != other.weights["sha256"]:
            return f"weights: {_weights(self)}, not {_weights(other)}"
        for key in ("protocol", "precision", "dataset", "images", "label_space"):
            mine, theirs = _plain(getattr(self, key)), _plain(getattr(other, key))
            if mine != theirs:
                return _first_difference(key, mine, theirs)
        return None

    def write(self, folder: Path) -> None:
        """Write it into the folder, atomically."""
        write_json(folder / NAME, {"format": 1, **asdict(self)})


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a folder, None where it has none.

    Raises:
        InputError: the file is none, or one of a later format.
    """
    path = folder / NAME
    try:
        data = parse_json(path.read_text(encoding="utf-8"))
        if data.pop("format") != 1:
            raise InputError(f"{path}: written by a newer segkit; update, or give another folder")
        return Manifest(**{field.name: data[field.name] for field in fields(Manifest)})
    except FileNotFoundError:
        return None
    except InputError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: not what `segkit predict` writes; move it away, or give another folder") from error


def images_identity(images: Mapping[str, int]) -> dict[str, Any]:
    """`Manifest.images` of names and bytes of the files: the size is enough to notice other images."""
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
