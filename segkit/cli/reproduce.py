"""`segkit reproduce`: the tables of the ResNeSt paper and of its authors' repositories, as far as a machine allows.

A cell is a recipe, whose `published:` is the number, and the authors' file of the same name. Parameters and
multiply-adds need neither files nor data; their published values stand here (zhanghang1989/ResNeSt, ablation.md).
"""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from segkit.cli.parser import Parser, Switch, whole_number
from segkit.cli.words import say
from segkit.errors import InputError, did_you_mean
from segkit.files import check_writable, parse_json, write_json, write_text
from segkit.recipes import read_recipe
from segkit.text import markdown, percent, points

DESCRIPTION = """\
Print the tables of the ResNeSt paper and its authors' repositories: published, measured, difference, interval. A cell
is scored if the authors' file is in the cache (or --fetch is given) and its data are named; else it says what is
missing. Scores in the output folder are not computed again: stop at any time, and the same command continues."""

_SEGMENTED = ("deeplabv3_resnest50", "deeplabv3_resnest101", "deeplabv3_resnest200", "deeplabv3_resnest269")
_FAST = ("1s1x64d", "2s1x64d", "4s1x64d", "1s2x40d", "2s2x40d", "4s2x40d", "1s4x24d")

# table           its recipes, or none where no program can make it
TABLES: dict[str, tuple[str, ...]] = {
    "imagenet":       tuple(f"imagenet/resnest{depth}" for depth in (50, 101, 200, 269)),
    "ablation":       tuple(f"imagenet/resnest50_fast_{kind}" for kind in _FAST),
    "comparators":    (),
    "ade20k":         ("ade20k/fcn_resnest50", *(f"ade20k/{name}" for name in _SEGMENTED)),
    "pascal-context": ("pascal_context/fcn_resnest50", *(f"pascal_context/{name}" for name in _SEGMENTED)),
    "cityscapes":     tuple(f"cityscapes/{name}" for name in _SEGMENTED[:2]),
    "coco":           (),
}  # fmt: skip

_OF_PIXELS = "mIoU by the recipe's protocol, its interval (95 %) by resampling images; with --limit not comparable."
NOTES = {
    "imagenet": "Published M and GMAC of ResNeSt-50 are the paper's, quoted; GMAC here counts convolutions and matrix "
    "products alone, at 224 x 224.",
    "ablation": "Published M and GMAC are ablation.md's. M of 1s1x64d and 1s2x40d do not agree when rounded (0.08 and "
    "0.05 apart), why is not known; GMAC are 0.2 to 0.9 % below: here convolutions and matrix products alone count.",
    "comparators": "The paper's ResNet-50 76.86, SENet-50 80.29, SKNet-50 80.68 beside ResNeSt-50 81.82 (second, "
    "larger crop; quoted, not re-read) cannot be made: no weights of the first three, trained the paper's way, are "
    "published.",
    "ade20k": _OF_PIXELS,
    "pascal-context": _OF_PIXELS,
    "cityscapes": "The authors publish no weights and no command for these.",
    "coco": "Out of scope: detection, instance and panoptic segmentation are in zhanghang1989/ResNeSt, d2/README.md.",
}

# recipe                             M parameters, GMAC as published
COSTS = {
    "imagenet/resnest50":               (27.5, 5.39),
    "imagenet/resnest50_fast_1s1x64d":  (26.3, 4.34),
    "imagenet/resnest50_fast_2s1x64d":  (27.5, 4.34),
    "imagenet/resnest50_fast_4s1x64d":  (31.9, 4.35),
    "imagenet/resnest50_fast_1s2x40d":  (25.9, 4.38),
    "imagenet/resnest50_fast_2s2x40d":  (26.9, 4.38),
    "imagenet/resnest50_fast_4s2x40d":  (30.4, 4.41),
    "imagenet/resnest50_fast_1s4x24d":  (25.7, 4.42),
}  # fmt: skip

_DIGITS = {"M published": 1, "M": 2, "GMAC published": 2, "GMAC": 3}  # behind the point, of what is no per cent
_HEAD = ("cell", "published", "measured", "difference", "interval", *_DIGITS, "state")


def main(args: Sequence[str]) -> int:
    """Run `segkit reproduce`; see `--help`.

    Returns:
        0, or 1 if a cell whose file and data are here could not be scored.
    """
    parser = Parser("segkit reproduce", description=DESCRIPTION)
    parser.add_argument(
        "tables", nargs="*", metavar="TABLE", help=f"{', '.join(TABLES)}, or a cell of one; default: all"
    )
    parser.add_argument(
        "--data", action="append", default=[], metavar="NAME=ROOT", help="where imagenet, ade20k, ... lie"
    )
    parser.add_argument("--fetch", action=Switch, help="fetch the authors' files of these cells into the cache first")
    parser.add_argument("--limit", type=whole_number(1), metavar="N", help="score N images of a cell at most")
    parser.add_argument("-o", "--output", type=Path, default=Path("reproduce"), help="folder (default: reproduce)")
    options = parser.parse_args(args)
    wanted, roots = _wanted(options.tables), _roots(options.data)
    check_writable(options.output)
    cells: list[dict[str, Any]] = []
    try:
        for table, recipes in wanted.items():
            say(f"\n{table}")
            for recipe in recipes:
                cells.append(_cell(recipe, roots, options) | {"table": table})
                say(f"  {' | '.join(_row(cells[-1]))}")
    finally:  # what is done is kept
        text = "\n\n".join(_written(wanted, cells))
        write_json(options.output / "reproduce.json", {"cells": cells, "notes": NOTES})
        write_text(options.output / "reproduce.md", text + "\n")
        say(f"\n{text}\n\n{options.output / 'reproduce'}.md, .json")
    return int(any(cell["state"].startswith("failed") for cell in cells))


def _wanted(names: Sequence[str]) -> dict[str, list[str]]:
    """The requested cells of each table."""
    table_of = {recipe: table for table, recipes in TABLES.items() for recipe in (table, *recipes)}
    wanted: dict[str, list[str]] = {}
    for name in names or TABLES:
        if name not in table_of:
            hint = did_you_mean(name, [*table_of])
            raise InputError(f"no table or cell {name!r}; {hint}the tables are {', '.join(TABLES)}")
        wanted.setdefault(table_of[name], []).extend(TABLES.get(name, (name,)))
    return {table: list(dict.fromkeys(recipes)) for table, recipes in wanted.items()}


def _roots(given: Sequence[str]) -> dict[str, str]:
    """The root of the data for each folder of recipes, from `NAME=ROOT`."""
    known = sorted({recipe.split("/")[0] for recipes in TABLES.values() for recipe in recipes})
    roots = {}
    for text in given:
        name, equals, root = text.partition("=")
        name = name.replace("-", "_")
        if name not in known or not equals:
            raise InputError(
                f"--data {text}: expected is NAME=ROOT; {did_you_mean(name, known)}NAME: {', '.join(known)}"
            )
        if not Path(root).exists():
            raise InputError(f"--data {text}: there is no {root}")
        roots[name] = root
    return roots


def _cell(recipe: str, roots: Mapping[str, str], options: Any) -> dict[str, Any]:
    published = read_recipe(recipe).published[0]
    number = published.miou if published.top1 is None else published.top1
    cell: dict[str, Any] = {
        "recipe": recipe,
        "published": number,
        "source": published.source,
        "protocol": published.protocol,
    }
    cell |= _cost(recipe)
    return cell | _score(recipe, roots.get(recipe.split("/")[0]), options, 4 * cell["M"])


def _cost(recipe: str) -> dict[str, Any]:
    """Millions of parameters and, for a classifier, 1e9 multiply-adds at 224 x 224, computed on the meta device."""
    import torch

    from segkit.benchmark.cost import flops, parameters
    from segkit.benchmark.plan import read_experiment

    classifies = recipe.startswith("imagenet/")
    with torch.device("meta"):
        network = read_experiment(recipe).build(1000 if classifies else 150)
    size = parameters(network) / 1e6
    if not classifies:
        return {"M": size}
    published = dict(zip(("M published", "GMAC published"), COSTS.get(recipe, ()), strict=False))
    return published | {"M": size, "GMAC": flops(network, (224, 224)) / 2e9}


def _score(recipe: str, root: str | None, options: Any, megabytes: float) -> dict[str, Any]:
    """Score the authors' file, or say which files are missing."""
    from segkit.models.authors import NAMES, address, authors_weights_path, local_path

    if recipe not in NAMES:
        return {"state": "no weights are published"}
    again = f"segkit reproduce {recipe}"
    data = recipe.split("/")[0]
    if options.fetch:
        authors_weights_path(recipe)
    missing = []
    if not local_path(recipe).is_file():
        missing.append(f"weights (about {megabytes:.0f} MB, {address(recipe)}): {again} --fetch")
    if root is None:
        images = read_recipe(recipe).published[0].images
        missing.append(f"data ({images} images): {again} --data {data}=ROOT")
    if missing or root is None:
        return {"state": f"missing {'; '.join(missing)}"}
    from segkit.cli.benchmark.table import main as benchmark

    folder = options.output / recipe / str(options.limit or "all")
    command = [str(authors_weights_path(recipe)), "--config", recipe, "--data.root", root, "--output", str(folder)]
    command += [f"--limit={options.limit}"] if options.limit else []
    say(f"segkit benchmark {shlex.join(command)}")
    if benchmark(command):
        return {"state": "failed, for the reason above"}
    row = parse_json((folder / "benchmark.json").read_text(encoding="utf-8"))["rows"][-1]
    measured = row.get("top-1", row.get("mIoU"))
    state = "; ".join(filter(None, (f"{row['images']} images", row.get("not comparable"))))
    return {"measured": measured, "interval": row.get("interval"), "state": state}


def _row(cell: Mapping[str, Any]) -> list[str]:
    measured, interval = cell.get("measured"), cell.get("interval")
    difference = None if measured is None else measured - cell["published"]
    shown = [cell["recipe"], percent(cell["published"]), percent(measured), points(difference)]
    shown.append("-" if interval is None else " to ".join(map(percent, interval)))
    costs = [f"{cell[name]:.{digits}f}" if name in cell else "-" for name, digits in _DIGITS.items()]
    return [*shown, *costs, cell["state"]]


def _written(wanted: Mapping[str, Sequence[str]], cells: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for table in wanted:
        rows = [_row(cell) for cell in cells if cell["table"] == table]
        yield f"## {table}"
        if rows:
            yield markdown([_HEAD, *rows], left=(0, len(_HEAD) - 1))
        if table in NOTES:
            yield NOTES[table]
