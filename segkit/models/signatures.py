"""Checks plain values against a signature: they must have its types, and each must have an effect."""

import functools
import inspect
import reprlib
import types
from collections.abc import Callable, Mapping
from collections.abc import Sequence as AbstractSequence
from dataclasses import is_dataclass
from numbers import Integral, Real
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from segkit.errors import InputError, did_you_mean

_LIMITS = {int: 2**31, float: 1e300}  # far above any setting, and results computed from two of them still fit the type
_REPR = reprlib.Repr()
_REPR.maxlevel, _REPR.maxstring, _REPR.maxlong, _REPR.maxother = 2, 60, 40, 60
_KINDS: dict[type, type] = {int: Integral, float: Real}  # NumPy's numbers are of these kinds, too


def check_arguments(owner: type, values: Mapping[Any, Any], where: str) -> None:
    """Refuse arguments that a class does not have, or whose values do not have its annotated types.

    Args:
        owner: A class whose constructor is annotated with plain types: numbers, strings, literals, lists, unions.
        values: The arguments by name.
        where: Their place in error messages, such as "model.optim".

    Raises:
        InputError: An argument is wrong; the message names the first, and what is allowed.
    """
    hints = _hints(owner)
    for name, value in values.items():
        if name not in hints:
            hint = did_you_mean(str(name), hints)
            raise InputError(f"{where}: {_short(name)} is no argument of {owner.__name__}; {hint}{', '.join(hints)}")
        if not fits(value, hints[name]):
            raise InputError(f"{where}.{name} is {_short(value)}; needed is {_words(hints[name])}")


def check_effects(config: object, where: str, needs: Mapping[str, tuple[bool, str]]) -> None:
    """Refuse settings of a dataclass that differ from their defaults but have no effect in this combination.

    Args:
        config: The dataclass.
        where: Its place in error messages, such as "model.optim".
        needs: Maps each field to whether it has an effect here and, in words, what it needs to have one.

    Raises:
        InputError: A field has no effect; the message names the first.
    """
    for name, (has_effect, need) in needs.items():
        value, default = getattr(config, name), getattr(type(config), name)
        if not has_effect and value != default:
            raise InputError(
                f"{where}.{name}={_short(value)} has no effect without {need}; leave it out, or at its default "
                f"{_short(default)}"
            )


def with_defaults(init: Callable[..., None], defaults: Mapping[str, Any]) -> Callable[..., None]:
    """Copy a constructor with other defaults: the same code under its own signature, which help and parsers show.

    Raises:
        TypeError: A default is for an unknown argument.
    """
    known = {
        name: parameter.default for name, parameter in inspect.signature(init).parameters.items() if name != "self"
    }
    if not defaults.keys() <= known.keys():
        raise TypeError(f"no argument of {init.__qualname__}: {', '.join(defaults.keys() - known.keys())}")
    assert isinstance(init, types.FunctionType)
    values = tuple({**known, **defaults}.values())
    made = types.FunctionType(init.__code__, init.__globals__, init.__name__, values, init.__closure__)
    made.__annotations__, made.__qualname__ = init.__annotations__, init.__qualname__
    return made


def fits(value: Any, hint: Any) -> bool:
    """Whether a value has an annotated type; numbers must be finite, and a bool is not a number."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(fits(value, option) for option in inner)
    if origin is Literal:
        return any(type(value) is type(option) and value == option for option in inner)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return isinstance(value, Mapping) and all(fits(k, inner[0]) and fits(v, inner[1]) for k, v in value.items())
    if isinstance(origin, type) and issubclass(origin, AbstractSequence):
        return isinstance(value, (list, tuple)) and _items_fit(value, origin, inner)
    if hint in _LIMITS:
        number = isinstance(value, _KINDS[hint]) and not isinstance(value, bool)
        return number and -_LIMITS[hint] < value < _LIMITS[hint]
    return hint is Any or isinstance(value, hint or type(None))


def _items_fit(value: AbstractSequence[Any], origin: type, inner: tuple[Any, ...]) -> bool:
    if origin is tuple and inner[-1] is not Ellipsis:
        return len(value) == len(inner) and all(map(fits, value, inner))
    return all(fits(item, inner[0]) for item in value)


@functools.cache
def _hints(owner: type) -> dict[str, Any]:
    hints = get_type_hints(owner if is_dataclass(owner) else owner.__init__)  # type: ignore[misc]
    return {name: hints[name] for name in inspect.signature(owner).parameters}


def _words(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return f"one of {', '.join(map(str, get_args(hint)))}"
    return inspect.formatannotation(hint).replace("collections.abc.", "").replace("typing.", "").replace("None", "null")


def _short(value: object) -> str:
    """The value in a few words, however large or deep it is."""
    try:
        return _REPR.repr(value)
    except ValueError:  # Python refuses to write out a number of thousands of digits
        return f"a {type(value).__name__}"
