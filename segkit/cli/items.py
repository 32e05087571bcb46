"""One item of a list or tuple on the command line, as in `--data.scale_range.1 2.0`.

jsonargparse (seen in 4.53) takes such an option for a whole tuple made of the index and the value, `(1.0, 2.0)`, and
has no words for it where the option is a list. Here the command line is first parsed without its items, which says what
the list is, and each item is then put into it.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from segkit.errors import InputError
from segkit.plain_data import parse_yaml

_ITEM = re.compile(r"--(?P<key>[\w.]+)\.(?P<index>[-+]?\d[^.=]*)(?:=(?P<value>.*))?", re.DOTALL)


def with_whole_lists(args: Sequence[str], parse: Callable[[list[str]], Mapping[str, Any]]) -> list[str]:
    """The arguments with whole lists in the place of their items.

    Args:
        args: The command line.
        parse: Gives the options of a command line, nested by name.

    Returns:
        `args` itself where it names no items. The whole lists come last, where they beat what the config files say.

    Raises:
        InputError: There is no such item, or something behind it would replace the whole list.
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
    """`--key=[...]` for each list that has items among these, or the item as it was typed where it is of no list."""
    lists: dict[str, Any] = {}
    others = []
    for key, index, text in items:
        value = lists[key] if key in lists else _value(options, key)
        if value is _ABSENT or isinstance(value, Mapping):  # no list: its parser knows what is wrong, if anything is
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
    """What stands at a dotted name, in which `init_args` may be left out; `_ABSENT` where nothing does.

    Raises:
        InputError: There is a list on the way.
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
    """Refuse what would silently take the item back."""
    path = _without_init_args(key)
    for later in following:
        name = later.split("=")[0]
        whole = _without_init_args(name[2:]) if name.startswith("--") else None
        if name in ("-c", "--config") or (whole and (path + ".").startswith(whole + ".")):
            raise InputError(f"{option.split('=')[0]}: stands before {name}, which may replace it; give it behind that")


def _without_init_args(key: str) -> str:
    return ".".join(name for name in key.split(".") if name != "init_args")
