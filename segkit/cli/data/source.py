"""The data set that a command line names: by name and root, or by a data config or recipe."""

import inspect
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from segkit.cli.yaml_files import read_yaml
from segkit.data.layouts.base import Layout
from segkit.data.layouts.names import LAYOUTS
from segkit.errors import InputError, did_you_mean

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
