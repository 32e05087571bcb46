"""The data set that a command line names, `--data NAME --data.KEY VALUE ...`, for all commands but Lightning's own."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pytorch_lightning import LightningDataModule

from segkit.cli.jsonargparse_border import SegmentationParser, explain
from segkit.cli.lightning_messages import input_error
from segkit.data.datamodule import SegmentationDataModule
from segkit.data.names import data_sets
from segkit.errors import InputError, did_you_mean
from segkit.plain_data import flatten
from segkit.recipes import find_recipe, is_recipe, read_recipe

_IMAGENET = "ImageNetDataModule"
_NOT_OF_FILES = ("augmentations", "cache_dir")  # they name classes, and a folder of their own


def open_data(args: Sequence[str], program: str) -> SegmentationDataModule:
    """The data module that these arguments describe; no data are read yet.

    Args:
        args: `--data`, NAME; `--data.KEY`, `VALUE`, ...; of two values for one key the later one wins. NAME is a data
            set ("camvid"), a data module by its name or import path, a data config or a recipe (.yaml), or such a
            config as JSON.
        program: The command as the user typed it, for messages.

    Raises:
        InputError: There is no such data set, module, file or option, a value is wrong, or the folder is not given.
    """
    resolved = _resolved(args, program)
    if any(_IMAGENET in arg for arg in resolved):
        raise InputError(
            f"{_IMAGENET} has a class for each image and no masks; it is for `segkit fit | test | benchmark`"
        )
    made = _open(resolved, program, SegmentationDataModule)
    assert isinstance(made, SegmentationDataModule)
    return made


def open_any(args: Sequence[str], program: str) -> Any:
    """The same as `open_data`, for a command that also accepts an `ImageNetDataModule`."""
    resolved = _resolved(args, program)
    if not any(_IMAGENET in arg for arg in resolved):
        return _open(resolved, program, SegmentationDataModule)
    from segkit.data.imagenet.datamodule import ImageNetDataModule  # and with it, torchvision and timm

    return _open(resolved, program, ImageNetDataModule)


def _open(args: Sequence[str], program: str, kind: type[LightningDataModule]) -> Any:
    parser = SegmentationParser(program)
    parser.add_lightning_class_args(kind, "data", subclass_mode=True, required=True)
    data_sets()  # importing them makes their class names known to jsonargparse
    try:
        return parser.build(parser.parse_args(args))["data"]
    except ValueError as error:
        known = flatten(parser.get_defaults().as_dict())
        message = str(input_error(error) or error)
        if "root" in message and "required" in message:
            raise InputError("where is the data? give its folder or zip: --data.root ROOT") from error
        raise InputError(explain(message, known, (*data_sets().values(), kind))) from error


def named(name: str | None, root: str | None) -> list[str]:
    """The arguments of `open_data` for a data set and its folder that were given by position."""
    data = [] if name is None else ["--data", name]
    return data if root is None else [*data, "--data.root", root]


def described(data: object, file: Path) -> list[str]:
    """The arguments of `open_data` for data that a file describes, without importing what the file names.

    The file may be a stranger's, so only segkit's own data sets are taken.

    Args:
        data: `{"class_path": ..., "init_args": {...}}`, or anything else.
        file: Where it is from, for the message.

    Raises:
        InputError: It is something else, or another data module.
    """
    own = {name: cls for cls in data_sets().values() for name in (cls.__name__, f"{cls.__module__}.{cls.__name__}")}
    class_path = data.get("class_path") if isinstance(data, Mapping) else None
    given = data.get("init_args") if isinstance(data, Mapping) else None
    if not isinstance(class_path, str) or not isinstance(given, Mapping):
        raise InputError(f"{file}: names no data; give --data NAME --data.root ROOT")
    if class_path not in own:
        raise InputError(
            f"{file}: names the data module {class_path}, which is not one of segkit's; if you trust it, give --data "
            f"{class_path} --data.root ROOT"
        )
    kept = {name: value for name, value in given.items() if name not in _NOT_OF_FILES}
    return ["--data", json.dumps({"class_path": own[class_path].__name__, "init_args": kept}, default=str)]


def _resolved(args: Sequence[str], program: str) -> list[str]:
    """The arguments with names and recipes replaced by data modules."""
    resolved: list[str] = []
    is_value = False
    for arg in args:
        key, _, value = arg.partition("=")
        if is_value:
            resolved.append(data_value(arg))
        elif key == "--data" and value:
            resolved += [key, data_value(value)]
        else:
            resolved.append(arg)
        is_value = arg == "--data"
    if "--data" not in resolved:
        raise InputError(
            f"which data? give a data set or a recipe: {program} NAME ROOT, or --data NAME --data.root ROOT"
        )
    return resolved


def data_value(name: str) -> str:
    """The value for jsonargparse's `--data` that a name given by the user stands for.

    Raises:
        InputError: There is no such data set or file, or the file describes no data.
    """
    if is_recipe(name):
        return _of_recipe(name)
    if name.lstrip().startswith("{") or "." in name:  # JSON, or an import path
        return name
    if name in ("imagenet", _IMAGENET):
        return _IMAGENET
    if name in data_sets():
        return data_sets()[name].__name__
    known = {cls.__name__ for cls in SegmentationDataModule.__subclasses__()}
    if name in known:
        return name
    names = [*data_sets(), *sorted(known)]
    raise InputError(
        f"no such data set {name!r}; {did_you_mean(name, names)}allowed: {', '.join(data_sets())}, a data module "
        "(my_module.MyDataModule), or a recipe or data config (.yaml)"
    )


def _of_recipe(name: str) -> str:
    data = read_recipe(name).data
    if data is None:
        raise InputError(
            f"{find_recipe(name)}: no data set here; needed is class_path, or data: with one (see configs/data)"
        )
    return json.dumps(dict(data))
