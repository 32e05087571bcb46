"""Parsing errors of the Lightning commands: one line with the valid names, in place of jsonargparse's nested report."""

import inspect
import operator
import pydoc
import re
import sys
import typing
from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from typing import Any, NoReturn

import yaml
from jsonargparse import Namespace, get_loader, set_loader
from pytorch_lightning.cli import LightningArgumentParser

from segkit.cli.items import with_whole_lists
from segkit.errors import InputError, did_you_mean
from segkit.plain_data import check_size
from segkit.recipes import SUFFIXES, find_recipe

_load_yaml = get_loader("yaml")  # jsonargparse's, which reads 1e-4 as a number


# Once options of the model; the configs of older runs have them there.
MOVED = ("encoder_weights", "init_from", "validation_scale", "test_precision")


def _load_checked(text: str) -> Any:
    check_size(text, "YAML")
    content = _load_yaml(text)
    model = content.get("model") if isinstance(content, dict) else None
    if isinstance(model, dict):
        content = {name: model.pop(name) for name in MOVED if name in model} | content
    if isinstance(content, dict) and "model" in content:
        content.pop("published", None)  # of a recipe: numbers to compare with, not an option of a run
    return content


def with_recipes(args: Sequence[str]) -> list[str]:
    """The command line with paths in place of the names of recipes, in `--config` and `--data`.

    Raises:
        InputError: `--config` names neither a file nor a recipe.
    """
    found = list(args)
    for place, (option, following) in enumerate(zip(args, [*args[1:], ""], strict=False)):
        name, equals, rest = option.partition("=")
        value = rest if equals else following
        is_data = name == "--data" and (value.startswith("data/") or value.endswith(SUFFIXES))
        if value and (is_data or name in ("-c", "--config")):
            found[place if equals else place + 1] = (
                f"{name}={find_recipe(value)}" if equals else str(find_recipe(value))
            )
    return found


set_loader("yaml", _load_checked, (yaml.YAMLError,))  # of configs, of files that they include, and of typed values


class SegmentationParser(LightningArgumentParser):
    """A parser that raises `InputError` and takes no abbreviated names: `--model.optim.l` is a typing error.

    `--data.scale_range.1 2.0` replaces one item of a list or tuple, and an integer stays one where a float may stand.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def add_class_arguments(self, *args: Any, **kwargs: Any) -> Any:
        """As jsonargparse, but `--trainer.limit_val_batches 1` is the integer, one batch, and not 1.0, all of them.

        Lightning writes `Optional[Union[int, float]]`. `typing` keeps the unions that it has made and takes those of
        another order for the same, so that this one may come back as `Union[float, int, None]`; jsonargparse tries the
        types in that order, and has no public way to change it. `int | float` is made anew each time.
        """
        added = super().add_class_arguments(*args, **kwargs)
        action: Any
        for action in self._actions:
            kinds = typing.get_args(getattr(action, "_typehint", None))
            if int in kinds and float in kinds and kinds.index(float) < kinds.index(int):
                action._typehint = reduce(operator.or_, (int, *(kind for kind in kinds if kind is not int)))
        return added

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None, **kwargs: Any) -> Namespace:  # type: ignore[override]
        """As jsonargparse, with items of lists."""

        def options(rest: list[str]) -> dict[str, Any]:
            config = super(SegmentationParser, self).parse_args(rest, namespace, **kwargs)
            return (config.get(config.get("subcommand") or "") or config).as_dict()

        given = sys.argv[1:] if args is None else list(args)
        if namespace is None:  # that of a subcommand, whose arguments have been seen to
            whole = with_whole_lists(with_recipes(given), options)
            args = args if whole == given else whole
        return super().parse_args(args, namespace, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Hand jsonargparse's message on; `explain` shortens it where the valid names are known."""
        raise _ReportError(message) from ex


class _ReportError(InputError):
    """What jsonargparse says, in its lines: by them `explain` finds what it is about."""

    def __str__(self) -> str:
        return str(self.args[0])


def explain(message: str, keys: Iterable[str], classes: Sequence[type]) -> str:
    """Shorten a message of jsonargparse to one line: what, where, what is allowed.

    Args:
        message: jsonargparse's (4.40 to 4.53), of several lines.
        keys: Dotted names of all options.
        classes: Those a config may name.
    """
    linked = re.search(r"Call to compute_fn of link .* failed: (.*)", message, re.DOTALL)
    if linked is not None:  # what segkit makes of an option says itself what is wrong
        return linked[1]
    key = _first(r'Parser key "([^"]+)"', message)
    option = _first(r"Option '([^']+)' is not accepted", message)
    if option is not None and key is not None:
        return _unknown_argument(key, option, message, classes)
    unknown = _first(r"does not accept option '([^']+)'", message) or _first(
        r"unrecognized arguments: -*([^\s=]+)", message
    )
    if unknown is not None:
        return _unknown_option(unknown, keys)
    name = _first(r"Expected a dot import path string: (\S+)", message)
    if name is not None and key in ("data", "model.network"):
        return f"{key}: no such class {name!r}; {_suggest(name, [c.__name__ for c in _choices(key, classes)])}"
    absent = _absent_class(message)
    if absent is not None:
        return f"{key}: {absent}"
    inner = re.search(r'- Parser key "([^"]+)":\n(.+?)(?=\n {4}- |\n {2}Given|\Z)', message, re.DOTALL)
    if inner is not None and key is not None:  # the first attempt at a class is the one that was meant
        return explain(f'Parser key "{key}.{inner[1]}":\n{inner[2]}', keys, classes)
    return _wrong_value(key, message) or re.sub(r'^Parser key "([^"]+)": ', r"\1: ", " ".join(message.split()))


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}}` to `{"a.b": 1}`."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


def _choices(key: str, classes: Sequence[type]) -> list[type]:
    """The classes that this key may name: data modules for the data, networks for the model."""
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
    return f"{key}: {option!r} is no argument of {whose}; {_suggest(option, names)}"


def _absent_class(message: str) -> str | None:
    """A class path whose module has no such class."""
    found = re.search(r"given class_path '([^']+)':\s+module '([^']+)' has no attribute '([^']+)'", message)
    if found is None:
        return None
    path, module, name = found.groups()
    hint = did_you_mean(name, dir(pydoc.locate(module))).replace("mean ", f"mean {module}.", 1)
    return f"{path}: no such class; {hint}needed is the path of a class that can be imported"


def _arguments(owner: type) -> set[str]:
    """Names of a class's arguments; those that it hands on by `**options` are its base class's."""
    names: set[str] = set()
    for cls in owner.__mro__:
        parameters = inspect.signature(cls).parameters.values()
        names |= {parameter.name for parameter in parameters if parameter.kind is not parameter.VAR_KEYWORD}
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            break
    return names - {"layout"}  # which a data module makes of its root


def _unknown_option(unknown: str, keys: Iterable[str]) -> str:
    """The names beside the unknown one: those of its group, or the top ones where the group is unknown too."""
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
    """`key: 'x' is not a float`, from the type that was expected and the value that was given."""
    value = _first(r"(?:Got value|Given value): (.+)", message)
    expected = _first(r"Subtypes: \[(.+)\]", message) or _first(r"Expected a (.+?)\. Got value", message)
    if key is None or value is None or expected is None or "{" in value:
        return None
    readable = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", expected).replace("NoneType", "null")
    choices = _first(r"^typing\.Literal\[(.+)\]$", readable)
    if choices:
        return f"{key}: {value!r} is not one of {choices}"
    return f"{key}: {value!r} is not {readable.replace(', ', ' or ')}"


def _first(pattern: str, text: str) -> str | None:
    match = re.search(pattern, text)
    return match.group(1) if match else None
