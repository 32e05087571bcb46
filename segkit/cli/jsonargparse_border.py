"""Everything that relies on jsonargparse's undocumented behaviour; no other file reaches into it.

* Its errors are texts of several lines without structured fields; `explain` takes them apart.
* `--pair.1 2.0` behind `--pair "[0.8, 1.25]"` gives (1.0, 2.0) where `pair` is a `tuple[float, float]` (seen in 4.53),
  as `NestedArg`, which holds index and value, is a tuple itself; for a list it is refused. Here a command line is first
  parsed without its items, which yields each list, and then with whole lists in their place.
* The types of a union are tried in its order, and there is no public way to change it. `typing` caches unions
  (`_tp_cache`) and treats those that differ only in order as the same, so that Lightning's `Union[int, float, None]`
  may come back as `Union[float, int, None]`, and `--trainer.limit_val_batches 1` as 1.0, which means all batches.

https://github.com/mauvilsa/jsonargparse/blob/v4.53.0/jsonargparse/_typehints.py (messages, `NestedArg`, `_typehint`)
https://github.com/python/cpython/blob/3.11/Lib/typing.py (`_tp_cache`)
"""

import inspect
import json
import operator
import pydoc
import re
import sys
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import reduce
from typing import Any, NoReturn

import yaml
from jsonargparse import Namespace, get_loader, set_loader
from pytorch_lightning import LightningModule
from pytorch_lightning.cli import LightningArgumentParser
from torch import nn

from segkit.errors import InputError, did_you_mean
from segkit.models.own import build_module
from segkit.models.segmentation import SegmentationModel
from segkit.plain_data import check_size, parse_yaml

_load_yaml = get_loader("yaml")  # jsonargparse's, which reads 1e-4 as a number

# These were once options of the model, and configs of older runs still have them there.
MOVED = ("encoder_weights", "init_from", "validation_scale", "test_precision")


def _load_checked(text: str) -> Any:
    check_size(text, "YAML")
    content = _load_yaml(text)
    model = content.get("model") if isinstance(content, dict) else None
    if isinstance(model, dict):
        content = {name: model.pop(name) for name in MOVED if name in model} | content
    if isinstance(content, dict) and "model" in content:
        content.pop("published", None)  # a recipe's published numbers, not an option of a run
    return content


set_loader("yaml", _load_checked, (yaml.YAMLError,))  # reads configs, files that they include, and typed values


class SegmentationParser(LightningArgumentParser):
    """A parser that raises `InputError`, takes no abbreviated names, and replaces items: `--data.scale_range.1 2.0`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def add_class_arguments(self, *args: Any, **kwargs: Any) -> Any:
        """Add a class's arguments as jsonargparse does, but where both int and float are allowed, try int first."""
        added = super().add_class_arguments(*args, **kwargs)
        action: Any
        for action in self._actions:
            kinds = typing.get_args(getattr(action, "_typehint", None))
            if int in kinds and float in kinds and kinds.index(float) < kinds.index(int):
                # `int | float` is made anew each time
                action._typehint = reduce(operator.or_, (int, *(kind for kind in kinds if kind is not int)))
        return added

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None, **kwargs: Any) -> Namespace:  # type: ignore[override]
        """Parse as jsonargparse does, and accept items of lists."""

        def options(rest: list[str]) -> dict[str, Any]:
            config = super(SegmentationParser, self).parse_args(rest, namespace, **kwargs)
            return (config.get(config.get("subcommand") or "") or config).as_dict()

        given = sys.argv[1:] if args is None else list(args)
        if namespace is None:  # not None in a subcommand, whose arguments have been handled already
            whole = _with_whole_lists(given, options)
            args = args if whole == given else whole
        return super().parse_args(args, namespace, **kwargs)

    def build(self, config: Namespace) -> Namespace:
        """Build the objects that a configuration describes."""
        built: Namespace = self.instantiate(config, instantiators=[(_build, nn.Module, True)])
        return built

    def instantiate_classes(self, cfg: Namespace, *args: Any, **kwargs: Any) -> Namespace:
        """The name by which Lightning calls `build`."""
        return self.build(cfg)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise jsonargparse's message as it is; `explain` shortens it where the valid names are known."""
        raise _ReportError(message) from ex


def _build(kind: Any, *args: Any, **kwargs: Any) -> Any:
    """Build a module; a user's own network keeps the arguments from which a checkpoint rebuilds it."""
    if kind.__module__.startswith("segkit.") or not {LightningModule, SegmentationModel}.isdisjoint(kind.__mro__):
        return kind(*args, **kwargs)
    return build_module(kind, kwargs)


class _ReportError(InputError):
    """A message of jsonargparse with its line breaks, which `explain` needs to take it apart."""

    def __str__(self) -> str:
        return str(self.args[0])


def explain(message: str, keys: Iterable[str], classes: Sequence[type]) -> str:
    """Shorten a message of jsonargparse to one line: what, where, what is allowed.

    Args:
        message: jsonargparse's (4.51 to 4.53), of several lines.
        keys: Dotted names of all options.
        classes: Classes that a config may name.
    """
    key = _first(r'Parser key "([^"]+)"', message)
    option = _first(r"Option '([^']+)' is not accepted", message)
    if option is not None and key is not None:
        return _unknown_argument(key, option, message, classes)
    stray = _first(r"unrecognized arguments: ([^-\s]\S*)", message)
    if stray is not None:
        return f"{stray!r} belongs to no option: a switch such as --probe takes no value, all others take one"
    unknown = _first(r"(?:does not accept option '|unrecognized arguments: -*)([^\s=']+)", message)
    if unknown is not None:
        return _unknown_option(unknown, keys)
    if key == "model.normalization":
        return f"{key}: allowed are encoder, data, or {key}.mean and {key}.std together, a number for each channel"
    if "arguments are required: " in message:
        return (
            "no data or no network given; needed is a recipe, --config RECIPE (`segkit recipes` lists them), or --data "
            "and --model.network"
        )
    name = _first(r"Expected a dot import path string: (\S+)", message)
    if name is not None and key in ("data", "model.network"):
        return f"{key}: no such class {name!r}; {_suggest(name, [c.__name__ for c in _choices(key, classes)])}"
    absent = _absent_class(message)
    if absent is not None:
        return f"{key}: {absent}"
    inner = re.search(r'- Parser key "([^"]+)":\n(.+?)(?=\n {4}- |\n {2}Given|\Z)', message, re.DOTALL)
    if inner is not None and key is not None:  # jsonargparse tries the class that was meant first
        return explain(f'Parser key "{key}.{inner[1]}":\n{inner[2]}', keys, classes)
    return _wrong_value(key, message) or re.sub(r'^Parser key "([^"]+)": ', r"\1: ", " ".join(message.split()))


def _choices(key: str, classes: Sequence[type]) -> list[type]:
    """The classes that this key may name: data modules for the data, networks for the model."""
    if key not in ("data", "model.network"):
        return []
    return [c for c in classes if ("DataModule" in c.__name__) == key.startswith("data")]


def _unknown_argument(key: str, option: str, message: str, classes: Sequence[type]) -> str:
    named = _first(r"'class_path': '([^']+)'", message) or _first(r"given class_path '([^']+)'", message)
    owners = [c for c in classes if named and c.__name__ == named.split(".")[-1]]
    if not owners and named:
        owners = [found] if isinstance(found := pydoc.locate(named), type) else []
    if not owners:
        owners = _choices(key, classes)
    names = {name for owner in owners for name in _arguments(owner)}
    whose = owners[0].__name__ if len(owners) == 1 else key
    hint = _suggest(option, names) if names else "see the arguments of its class"
    return f"{key}: {option!r} is no argument of {whose}; {hint}"


def _absent_class(message: str) -> str | None:
    """A class path that cannot be imported, or whose class is of another kind."""
    found = re.search(r"given class_path '([^']+)':\s+No module named '([^']+)'", message)
    if found is not None:
        return f"{found[1]}: there is no module {found[2]!r}, neither in the folder of this command nor installed"
    found = re.search(r"Import path (\S+) does not correspond to a subclass of (\w+)", message)
    if found is not None:
        return f"{found[1]} is no subclass of {found[2]}"
    found = re.search(r"given class_path '([^']+)':\s+module '([^']+)' has no attribute '([^']+)'", message)
    if found is None:
        return None
    path, module, name = found.groups()
    hint = did_you_mean(name, dir(pydoc.locate(module))).replace("mean ", f"mean {module}.", 1)
    return f"{path}: no such class; {hint}needed is the path of a class that can be imported"


def _arguments(owner: type) -> set[str]:
    """Names of a class's arguments, including its base class's where it passes on `**options`."""
    names: set[str] = set()
    for cls in owner.__mro__:
        parameters = inspect.signature(cls).parameters.values()
        names |= {parameter.name for parameter in parameters if parameter.kind is not parameter.VAR_KEYWORD}
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            break
    return names


def _unknown_option(unknown: str, keys: Iterable[str]) -> str:
    """A message that suggests names from the unknown option's group, or top-level names if the group is unknown too."""
    parts = unknown.split(".")
    if parts[:-1] == ["model"] and parts[-1] in MOVED:
        return f"no such option {unknown!r}; it is --{parts[-1]} now"
    for depth in range(len(parts) - 1, -1, -1):
        prefix = "".join(f"{part}." for part in parts[:depth])
        names = {key.removeprefix(prefix).split(".")[0] for key in keys if key.startswith(prefix)}
        if names:
            break
    where = prefix.rstrip(".") or "the options"
    return f"no such option {unknown!r}; {_suggest(parts[depth], names, where)}"


def _suggest(wrong: str, names: Iterable[str], where: str = "") -> str:
    ordered = sorted(set(names) - {"self"})
    return f"{did_you_mean(wrong, ordered)}{'allowed' if not where else f'allowed in {where}'}: {', '.join(ordered)}"


def _wrong_value(key: str | None, message: str) -> str | None:
    """A message such as `key: 'x' is not a float`, from the expected type and the given value."""
    value = _first(r"(?:Got value|Given value): (.+)", message)
    expected = _first(r"Subtypes: \[(.+)\]", message) or _first(r"Expected a (.+?)\. Got value", message)
    if key is None or value is None or expected is None or "{" in value:
        return None
    path = value.strip("'")
    if path.endswith((".yaml", ".yml")):  # had it been found, its content would be the value
        return f"{key}: {path}: no such file; in a config, a path begins at the config's folder"
    readable = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", expected).replace("NoneType", "null")
    choices = _first(r"^typing\.Literal\[(.+)\]$", readable)
    if choices:
        return f"{key}: {value!r} is not one of {choices}"
    return f"{key}: {value!r} is not {readable.replace(', ', ' or ')}"


def _first(pattern: str, text: str) -> str | None:
    match = re.search(pattern, text)
    return match.group(1) if match else None


_ITEM = re.compile(r"--(?P<key>[\w.]+)\.(?P<index>[-+]?\d[^.=]*)(?:=(?P<value>.*))?", re.DOTALL)


def _with_whole_lists(args: Sequence[str], parse: Callable[[list[str]], Mapping[str, Any]]) -> list[str]:
    """The arguments with items of lists replaced by whole lists.

    Args:
        args: The command line.
        parse: Returns the options of a command line, nested by name.

    Returns:
        `args` itself if it names no items. The whole lists come last, so that they override the config files.

    Raises:
        InputError: There is no such item, or a later argument would replace the whole list.
    """
    given, rest = list(args), list[str]()
    items: list[tuple[str, str, str]] = []
    while given:
        item = _ITEM.fullmatch(given[0])
        if item is None:
            rest.append(given.pop(0))
            continue
        option = given.pop(0)
        text = item["value"] if item["value"] is not None else given.pop(0) if given else ""
        _check_order(option, item["key"], given)
        items.append((item["key"], item["index"], text))
    return [*rest, *_whole(items, parse(rest))] if items else list(args)


def _whole(items: Sequence[tuple[str, str, str]], options: Mapping[str, Any]) -> list[str]:
    """`--key=[...]` for each list that these items belong to; an item of no list stays as it was typed."""
    lists: dict[str, Any] = {}
    others = []
    for key, index, text in items:
        value = lists[key] if key in lists else _value(options, key)
        if value is _ABSENT or isinstance(value, Mapping):  # no list: the parser of the option reports errors
            others.append(f"--{key}.{index}={text}")
        else:
            lists[key] = _replaced(key, value, index, text)
    return [*others, *(f"--{key}={json.dumps(value, default=str)}" for key, value in lists.items())]


def _replaced(key: str, value: Any, index: str, text: str) -> list[Any]:
    if not isinstance(value, (list, tuple)):
        raise InputError(f"{key}.{index}: {key} is {json.dumps(value, default=str)}, no list; {_whole_list(key)}")
    if not index.isdecimal() or int(index) >= len(value):
        allowed = f"0 to {len(value) - 1}" if value else "none, for it is empty"
        raise InputError(f"{key}.{index}: no such item of {key}; allowed: {allowed}; or {_whole_list(key)}")
    return [*value[: int(index)], parse_yaml(text, f"--{key}.{index}"), *value[int(index) + 1 :]]


def _whole_list(key: str) -> str:
    return f"give the whole list: --{key} '[...]'"


_ABSENT = object()


def _value(options: Mapping[str, Any], key: str) -> Any:
    """The value at a dotted name, in which `init_args` may be left out; `_ABSENT` if there is none.

    Raises:
        InputError: A name before the last one is that of a list.
    """
    value: Any = options
    for name in key.split("."):
        if isinstance(value, (list, tuple)):
            raise InputError(f"{key}: {name!r} is no item of a list; {_whole_list(key.split('.' + name)[0])}")
        if isinstance(value, Mapping) and name not in value:
            value = value.get("init_args")
        if not isinstance(value, Mapping) or name not in value:
            return _ABSENT
        value = value[name]
    return value


def _check_order(option: str, key: str, following: Sequence[str]) -> None:
    """Refuse a later argument that would silently undo the item."""
    path = _without_init_args(key)
    for later in following:
        name = later.split("=")[0]
        whole = _without_init_args(name[2:]) if name.startswith("--") else None
        if name in ("-c", "--config") or (whole and (path + ".").startswith(whole + ".")):
            raise InputError(f"{option.split('=')[0]}: stands before {name}, which may replace it; give it behind that")


def _without_init_args(key: str) -> str:
    return ".".join(name for name in key.split(".") if name != "init_args")
