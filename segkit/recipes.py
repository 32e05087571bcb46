"""Recipes: the YAML files of configs/, found by path or by name, and the numbers that others published for them.

A recipe is an experiment (`ade20k/deeplabv3_resnest50`), a data recipe (`data/camvid`), an overlay (`overlays/smoke`)
or a protocol (`protocols/half-ms-flip`). Its name is its path below configs/ without the ending.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segkit.errors import InputError, did_you_mean
from segkit.paths import looked_for
from segkit.plain_data import read_yaml

SUFFIXES = (".yaml", ".yml")

_INSTALLED, _CLONE = Path(__file__).parent / "configs", Path(__file__).parents[1] / "configs"
CONFIGS = _INSTALLED if _INSTALLED.is_dir() else _CLONE  # a wheel holds them; a clone and an editable install do not

_KEYS = {"mIoU", "top1", "pixel_accuracy", "protocol", "images", "source"}


@dataclass(frozen=True)
class Published:
    """A published number, and everything it depends on.

    Attributes:
        miou: 0..1 (in the file `mIoU`, in percent); None for a classifier.
        pixel_accuracy: 0..1 (in the file in percent); None if none was published.
        protocol: Name of the protocol with which it was measured.
        images: Number of images in the split.
        source: Where it was published.
        top1: Top-1 accuracy of a classifier, 0..1 (in the file in percent).
    """

    miou: float | None
    pixel_accuracy: float | None
    protocol: str
    images: int
    source: str
    top1: float | None = None


@dataclass(frozen=True)
class Recipe:
    """A recipe as plain data.

    Attributes:
        path: The file.
        content: Its content.
        data: `{"class_path": ..., "init_args": {...}}` of its data module, read from the data recipe that it includes;
            for a data recipe, the content itself; None if no class is named.
        published: The numbers published for it.
    """

    path: Path
    content: Mapping[str, Any]
    data: Mapping[str, Any] | None
    published: tuple[Published, ...]

    def published_for(self, protocol: str) -> Published | None:
        """The number published for a protocol, otherwise the first one; None if there is none."""
        return next((one for one in self.published if one.protocol == protocol), next(iter(self.published), None))


def own_recipes() -> list[str]:
    """The names of all recipes that come with segkit."""
    return sorted(path.relative_to(CONFIGS).with_suffix("").as_posix() for path in CONFIGS.rglob("*.yaml"))


def is_recipe(name: str) -> bool:
    """Whether a name means a recipe (a YAML file, or one of segkit's), not a model, data set or protocol."""
    return name.lower().endswith(SUFFIXES) or (name in own_recipes() and not Path(name).is_file())


def find_recipe(name: str | Path) -> Path:
    """The file of a recipe: a path, or else the name of one that comes with segkit.

    Raises:
        InputError: There is neither.
    """
    path = Path(name)
    if path.is_file():
        return path
    short = path.with_suffix("") if path.suffix in SUFFIXES else path
    known, wanted = own_recipes(), short.as_posix().removeprefix("configs/")
    if wanted in known:
        return CONFIGS / f"{wanted}.yaml"
    hint = did_you_mean(wanted, known)
    raise InputError(f"{name}: no such file{looked_for(path)}, and no such recipe; {hint}`segkit recipes` lists them")


def read_recipe(name: str | Path) -> Recipe:
    """Read a recipe, and the data recipe that it includes.

    Args:
        name: A path, or a name as of `find_recipe`.

    Raises:
        InputError: There is no such file, one is not YAML or no mapping, or a published number lacks something.
    """
    path = find_recipe(name)
    content = _mapping(path)
    data: Any = content if "class_path" in content else content.get("data")
    if isinstance(data, str):
        data = _mapping(path.parent / data)  # relative to the recipe, as Lightning reads it
    if not isinstance(data, Mapping) or not isinstance(data.get("class_path"), str):
        data = None  # an overlay changes some options of the data below it
    given = content.get("published") or []
    published = tuple(_published(one, path) for one in (given if isinstance(given, list) else [given]))
    return Recipe(path, content, data, published)


def _mapping(path: Path) -> Mapping[str, Any]:
    content = read_yaml(path)
    if not isinstance(content, Mapping):
        raise InputError(f"{path}: not a recipe; expected are names and values, as in ade20k/deeplabv3_resnest50")
    return content


def _published(given: Any, path: Path) -> Published:
    try:
        numbers = {name: float(given[name]) / 100 for name in ("mIoU", "pixel_accuracy", "top1") if name in given}
        if "top1" not in numbers:
            numbers["mIoU"]
        if given.keys() - _KEYS:
            raise KeyError(*given.keys() - _KEYS)
        return Published(
            miou=numbers.get("mIoU"),
            pixel_accuracy=numbers.get("pixel_accuracy"),
            protocol=str(given["protocol"]),
            images=int(given["images"]),
            source=str(given["source"]),
            top1=numbers.get("top1"),
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path}: published: {error}; expected are mIoU or top1 (per cent), protocol, images and source, allowed "
            "is pixel_accuracy (per cent)"
        ) from error
