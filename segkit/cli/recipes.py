"""`segkit recipes`: the recipes that come with segkit, and the published numbers of each."""

from collections.abc import Iterator, Sequence

from segkit.cli.parser import Parser
from segkit.cli.words import say
from segkit.plain_data import read_text
from segkit.recipes import own_recipes, read_recipe

DESCRIPTION = """\
List the recipes that come with segkit: experiments with the numbers that others published for them, data recipes,
overlays and protocols. `segkit fit --config NAME` trains by one; a path to a file of your own works in its place."""

_NAME = 44  # letters of the longest name


def main(args: Sequence[str]) -> int:
    """Run `segkit recipes`; see `--help`."""
    parser = Parser("segkit recipes", description=DESCRIPTION)
    parser.add_argument("text", nargs="?", default="", help="list only names that contain this text")
    text = parser.parse_args(args).text
    for name in own_recipes():
        if text in name:
            say("\n".join(_lines(name)))
    return 0


def _lines(name: str) -> Iterator[str]:
    """The published numbers, or without any, the title in the recipe's first line."""
    recipe = read_recipe(name)
    for number in recipe.published:
        value = f"{100 * number.top1:.2f} top-1" if number.top1 else f"{100 * (number.miou or 0):.2f} mIoU"
        yield f"{name:<{_NAME}} {value} by {number.protocol} ({number.source})"
    if not recipe.published:
        yield f"{name:<{_NAME}} {read_text(recipe.path).split(chr(10))[0].removeprefix('# ')}"
