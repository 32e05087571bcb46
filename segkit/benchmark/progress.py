"""Everything that a row of `segkit benchmark` depends on, and the file beside the table with its counts so far.

A row that was stopped resumes at the next image, and another metric needs no network.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from segkit.arrays import Int64Array
from segkit.benchmark.models.opening import fingerprint
from segkit.benchmark.plan import PlannedRow
from segkit.errors import InputError
from segkit.files import parse_json, write_text


@dataclass(frozen=True)
class Settings:
    """The settings that all rows share.

    Attributes:
        device: Where networks run.
        limit: Maximum number of scored images; None = all.
        size: Height and width of the image whose FLOPs are counted.
        output: The table's folder.
        without: Names of the classes that all means leave out.
    """

    device: str
    limit: int | None
    size: tuple[int, int]
    output: Path
    without: tuple[str, ...] = ()


@dataclass
class Progress:
    """The results of a row so far; plain data in a file.

    Attributes:
        path: The file.
        key: Identifies everything that the counts depend on.
        seen: Images done, their counts int64 (K + 2, K + 1) and the areas int64 (3, K) of each: one attribute, so that
            they never disagree.
        timed: Number of timed images, and their seconds.
        peak_memory: Bytes, or None where they cannot be measured.
        forwards: What the network saw of the first image: height, width, number of images.
    """

    path: Path
    key: dict[str, Any]
    seen: tuple[int, Tensor | None, Sequence[Int64Array]] = (0, None, ())
    timed: tuple[int, float] = (0, 0.0)
    peak_memory: int | None = None
    forwards: list[list[int]] = field(default_factory=list)

    @classmethod
    def read(cls, folder: Path, key: dict[str, Any]) -> "Progress":
        """The progress with this key in a folder, or an empty one; a damaged file counts as absent."""
        name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
        progress = cls(folder / f"{name}.json", key)
        try:
            stored = parse_json(progress.path.read_text(encoding="utf-8"))
            if stored["key"] == key:
                areas = [np.array(area, np.int64) for area in stored["areas"]]
                progress.seen = (len(areas), torch.tensor(stored["counts"], dtype=torch.int64), areas)
                progress.timed = (stored["timed"][0], stored["timed"][1])
                progress.peak_memory, progress.forwards = stored["peak_memory"], stored["forwards"]
        except (OSError, ValueError, KeyError, TypeError, IndexError):
            return cls(progress.path, key)
        return progress

    def write(self) -> None:
        """Write the file, atomically; nothing before the first image."""
        _, counts, areas = self.seen
        if counts is None:
            return
        plain = {
            "key": self.key,
            "counts": counts.tolist(),
            "areas": [area.tolist() for area in areas],
            "timed": list(self.timed),
            "peak_memory": self.peak_memory,
            "forwards": self.forwards,
        }
        write_text(self.path, json.dumps(plain) + "\n")


def key_of(row: PlannedRow, settings: Settings) -> dict[str, Any]:
    """The key of a row's counts: another file, protocol, data set, device or limit makes another row.

    Raises:
        InputError: The model or the data are absent.
    """
    shared = {"protocol": row.protocol.to_dict(), "device": settings.device}
    if row.model is None:
        assert row.experiment is not None
        return {
            "network": row.experiment.network,
            "num_classes": num_classes(row),
            "size": list(settings.size),
            **shared,
        }
    assert row.data is not None
    model = fingerprint(row.model)
    if "test" not in row.data.datasets:
        row.data.setup("test")
    names = "\n".join(sample.name for sample in row.data.datasets["test"].samples)
    names += "" if row.data.label_space is None else f"\n{row.data.label_space.to_dict()}"  # by what classes are joined
    return {
        "model": model,
        **row.options.to_dict(),
        "data": [type(row.data).__name__, str(row.data.root), hashlib.sha256(names.encode()).hexdigest()],
        "limit": settings.limit,
        **shared,
    }


def asked_of(row: PlannedRow, settings: Settings) -> dict[str, Any]:
    """Further settings of the row that cost little to change, since it is computed again from the counts."""
    published = row.experiment.recipe.published_for(row.protocol.name) if row.experiment else None
    left_out = {"without": list(settings.without)} if settings.without else {}
    return {"size": list(settings.size), "published": asdict(published) if published else None, **left_out}


def num_classes(row: PlannedRow) -> int:
    """The number of classes of the network that a row without a model builds.

    Raises:
        InputError: Neither the recipe nor its data give it.
    """
    assert row.experiment is not None
    given = row.experiment.network.get("init_args", {}).get("num_classes")
    if given is None and row.data is None:
        raise InputError(
            f"{row.experiment.path}: neither data nor num_classes, so the network cannot be built; add data"
        )
    return int(given) if given is not None or row.data is None else row.data.num_classes
