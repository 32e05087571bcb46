"""The data set that a command line names: by name and root, or by a data config or recipe."""

import inspect
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from segkit.data.layouts.base import Layout
from segkit.data.layouts.names import LAYOUTS
from segkit.errors import InputError, did_you_mean
from segkit.plain_data import check_size, read_yaml

if TYPE_CHECKING:  # it needs Lightning, which takes seconds to import, and a layout does not
    from segkit.data.datamodule import SegmentationDataModule

_SUFFIXES = (".yaml", ".yml")


def open_layout(name: str, root: str | None, options: Sequence[str] = ()) -> Layout:
    """The layout of a data set.

    Args:
        name: A key of `LAYOUTS`, or a .yaml with class_path and init_args, or with a `data:` key that holds them or
            names such a file.
        root: Beats the config's.
        options: `key=value` for arguments of the layout; they beat the config's.

    Raises:
        InputError: There is no such data set, file or option, or no root.
    """
    if name.lower().endswith(_SUFFIXES):
        layout, arguments = _of_config(Path(name))
    else:
        layout, arguments = _named(name), {}
    allowed = _options_of(layout)
    given = {key: value for key, value in arguments.items() if key in allowed} | _parsed(options, allowed, layout)
    for key, value in given.items():
        _check_type(key, value, allowed[key], layout)
    home = root if root is not None else arguments.get("root")
    if home is None:
        raise InputError(f"{name}: where is the data? give its folder or zip: segkit data COMMAND {name} ROOT")
    return layout(str(home), **given)


def describe_module(name: str, root: str | None, options: Sequence[str], cure: str) -> list[str]:
    """The arguments that make a data module, for `make_module`: what comes last wins.

    Args:
        name: As of `open_layout`.
        root: Beats the config's.
        options: `--data.KEY`, `VALUE`, ..., as of `segkit fit`; they beat the config's.
        cure: What to do, in an error, where a data set is named and its folder is not.

    Raises:
        InputError: No data set of that name, no such config, or a data set without a folder.
    """
    is_config = name.lower().endswith(_SUFFIXES)
    described = ["--data", _data_of(Path(name)) if is_config else _class_of(name)]
    if root is not None:
        described += ["--data.root", root]
    elif not is_config and not any(option.startswith("--data.root") for option in options):
        raise InputError(f"{name}: no folder given; {cure}")
    return [*described, *options]


def make_module(args: Sequence[str], program: str) -> "SegmentationDataModule":
    """The data module, as `segkit fit` makes it.

    Args:
        args: Of `describe_module`.
        program: The command, as one types it.

    Raises:
        InputError: An option is unknown or wrong.
    """
    from segkit.cli.jsonargparse_border import SegmentationParser, explain
    from segkit.cli.lightning import SHORT_NAMES
    from segkit.cli.lightning_messages import input_error
    from segkit.data.datamodule import SegmentationDataModule
    from segkit.plain_data import flatten

    parser = SegmentationParser(program)
    parser.add_lightning_class_args(SegmentationDataModule, "data", subclass_mode=True, required=True)
    try:
        config = parser.parse_args(list(args))
        made = parser.build(config)["data"]
    except ValueError as error:
        known = flatten(parser.get_defaults().as_dict())
        raise InputError(explain(str(input_error(error) or error), known, SHORT_NAMES)) from error
    assert isinstance(made, SegmentationDataModule)
    return made


def _class_of(name: str) -> str:
    if name not in LAYOUTS:
        hint = did_you_mean(name, LAYOUTS)
        raise InputError(f"{name!r}: no such data set; {hint}allowed are {', '.join(LAYOUTS)}, or a recipe's .yaml")
    return LAYOUTS[name].__name__.removesuffix("Layout") + "DataModule"


def _data_of(path: Path) -> str:
    """What `--data` takes, of a recipe or of a data config: a path, or JSON."""
    content = read_yaml(path)
    if isinstance(content, dict) and "class_path" in content:
        return str(path)
    data = content.get("data") if isinstance(content, dict) else None
    if isinstance(data, str):
        return str(path.parent / data)  # included files are named relative to the recipe
    if isinstance(data, dict):
        return json.dumps(data)
    raise InputError(f"{path}: neither a recipe with `data` nor a data config with `class_path`; see configs/")


def _named(name: str) -> type[Layout]:
    if name not in LAYOUTS:
        raise InputError(f"no such data set {name!r}; {_suggest(name, LAYOUTS)}, or a data config (.yaml)")
    return LAYOUTS[name]


def _of_config(path: Path) -> tuple[type[Layout], Mapping[str, Any]]:
    """Layout and init_args of a data config, or of the one in a recipe."""
    content = _read(path)
    if "class_path" not in content and "data" in content:
        inner = content["data"]
        if isinstance(inner, str):  # relative to the recipe, as Lightning reads it
            path = path.parent / inner
            inner = _read(path)
        content = inner
    class_path = content.get("class_path") if isinstance(content, Mapping) else None
    if not isinstance(class_path, str):
        raise InputError(f"{path}: no data set here; needed is class_path, or data: with one (see configs/data)")
    arguments = content.get("init_args") or {}
    if not isinstance(arguments, Mapping):
        raise InputError(f"{path}: init_args is {arguments!r}; needed are names and values")
    return _layout_of(class_path.rsplit(".", 1)[-1], path), arguments


def _layout_of(data_module: str, path: Path) -> type[Layout]:
    """`FolderLayout` of `FolderDataModule`."""
    names = {layout.__name__.removesuffix("Layout") + "DataModule": layout for layout in LAYOUTS.values()}
    if data_module not in names:
        raise InputError(f"{path}: no such data module {data_module!r}; {_suggest(data_module, names)}")
    return names[data_module]


def _read(path: Path) -> Any:
    content = read_yaml(path)
    if not isinstance(content, Mapping):
        raise InputError(f"{path}: no data config; needed are class_path and init_args (see configs/data)")
    return content


def _options_of(layout: type[Layout]) -> dict[str, Any]:
    """Names and defaults of the arguments that a command line can give: plain values."""
    parameters = inspect.signature(layout).parameters.values()
    plain = (bool, int, float, str, type(None))
    return {p.name: p.default for p in parameters if p.default is not p.empty and isinstance(p.default, plain)}


def _parsed(options: Sequence[str], allowed: Mapping[str, Any], layout: type[Layout]) -> dict[str, Any]:
    found = {}
    for option in options:
        key, is_given, text = option.partition("=")
        if not is_given:
            raise InputError(f"--option {option}: needed is KEY=VALUE")
        if key not in allowed:
            names = _suggest(key, allowed) if allowed else "it has none"
            raise InputError(f"--option {option}: no such option of {layout.title}; {names}")
        try:
            check_size(text, f"--option {key}")
            found[key] = yaml.safe_load(text)
        except yaml.YAMLError:
            found[key] = text
    return found


def _check_type(key: str, value: object, default: object, layout: type[Layout]) -> None:
    if default is not None and type(value) is not type(default):
        wanted = "true or false" if isinstance(default, bool) else f"a {type(default).__name__}"
        raise InputError(f"option {key} of {layout.title} is {value!r}; allowed is {wanted}")


def _suggest(wrong: str, names: Iterable[str]) -> str:
    ordered = list(names)
    return f"{did_you_mean(wrong, ordered)}allowed: {', '.join(ordered)}"
