"""The parser of all commands that are not Lightning's: errors take one line, and no option may be abbreviated."""

import argparse
import math
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

from segkit.errors import InputError, did_you_mean

_ABOUT_NAMES = ("unrecognized arguments", "the following arguments are required")


class Parser(argparse.ArgumentParser):
    """An argparse parser that raises `InputError` instead of exiting, and keeps the line breaks of descriptions."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        shared: dict[str, Any] = {"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False}
        super().__init__(*args, **shared | kwargs)
        self._given: list[str] = []

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """Parse, and refuse a subcommand's unknown arguments here, where its options are known."""
        self._given = list(sys.argv[1:] if args is None else args)
        known, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return known, unknown

    def error(self, message: str) -> NoReturn:
        """Raise an error that says what is wrong, what was probably meant, and where the options are listed."""
        lines = re.findall(r"^ +-.*$", self.format_help(), re.MULTILINE)  # argparse has no public list of its options
        options = re.findall(r"--[\w.-]+", "".join(lines))
        unknown = [name for name in option_names(self._given) if name not in options]
        wrong_choice = re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message)
        if unknown and message.startswith(_ABOUT_NAMES):
            message = no_such_option(unknown[0], options)
        elif wrong_choice is not None:
            hint = did_you_mean(wrong_choice[1], re.findall(r"[^\s,']+", wrong_choice[2]))
            message = f"{message}; {hint}" if hint else message
        raise InputError(f"{message.rstrip()}{'' if message.endswith('? ') else ';'} see `{self.prog} --help`")


class Switch(argparse.BooleanOptionalAction):
    """The action of an option without a value: `--plot`, and `--no-plot` to undo it; off by default."""

    def __init__(self, option_strings: Sequence[str], dest: str, default: bool = False, **kwargs: Any) -> None:
        super().__init__(option_strings, dest, default=default, **kwargs)


def whole_number(least: int) -> Callable[[str], int]:
    """The type of an option that takes a whole number of at least `least`."""

    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least}")
        return int(text)

    return parse


def no_such_option(wrong: str, names: Iterable[str]) -> str:
    """The message for an option that does not exist: "no such option '--outptu'; did you mean --output? "."""
    hint = did_you_mean(wrong, names)
    return f"no such option {wrong!r}{f'; {hint}' if hint else ''}"


def option_names(args: Sequence[str]) -> list[str]:
    """The options among a command's arguments, without their values; nothing after `--` is an option."""
    before = args[: args.index("--")] if "--" in args else args
    return [argument.split("=")[0] for argument in before if argument.startswith("--")]


def number(allowed: Callable[[float], bool], which: str) -> Callable[[str], float]:
    """The type of an option that takes a number `which` is `allowed`, said as in "a number in 0..1"."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan  # which no comparison allows
        if not allowed(value):
            raise argparse.ArgumentTypeError(f"{text!r} is not a number {which}")
        return value

    return parse


def add_network_option(parser: argparse.ArgumentParser) -> None:
    """Add the option that names the class of a user's own network, which a weight file may then refer to."""
    parser.add_argument(
        "--network",
        type=_imported,
        metavar="CLASS",
        help="my_module.Net: a network of your own that FILE was made with",
    )


def _imported(path: str) -> object:
    from segkit.models.own import own_network  # PyTorch takes seconds

    try:
        return own_network(path)
    except InputError as error:  # a ValueError, whose words argparse would drop
        raise argparse.ArgumentTypeError(str(error).removeprefix("--network ")) from error


def add_data_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that describe a data set to the help; `split_options` removes them before parsing."""
    data = parser.add_argument_group("data")
    data.add_argument("--data", metavar="NAME", help="a data set, a data module, a data config or a recipe (.yaml)")
    data.add_argument("--data.KEY", metavar="VALUE", help="an option of the data, as of `segkit fit`: --data.root DIR")


def split_options(args: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split arguments into a command's own and, for `open_data`, those that describe the data."""
    own: list[str] = []
    of_data: list[str] = []
    rest = iter(args)
    for arg in rest:
        if arg != "--data" and not arg.startswith(("--data.", "--data=")):
            own.append(arg)
            continue
        of_data.append(arg)
        if "=" not in arg:
            of_data += [value for value in [next(rest, None)] if value is not None]
    return own, of_data
