"""`segkit benchmark compare PRED_A PRED_B TRUTH_DIR`: is one model really better than another, and in which classes?"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from segkit import __version__
from segkit.bars import Bar
from segkit.cli.benchmark.score_options import compare_parser, label_space
from segkit.cli.words import say
from segkit.errors import InputError, printable
from segkit.evaluation.comparison import SIGNIFICANCE, Comparison, Difference, paired_comparison
from segkit.evaluation.statistics import ImageAreas
from segkit.files import check_writable, free_path, write_json
from segkit.metadata.label_space import LabelSpace
from segkit.predictions.manifest import read_manifest
from segkit.predictions.pairs import Pair, find_pairs
from segkit.predictions.scoring import score_pairs, train_id_space
from segkit.text import RULE, aligned, percent, points


def main(args: Sequence[str]) -> int:
    """Run `segkit benchmark compare`; see `--help`.

    Raises:
        InputError: The command is wrong, or an image cannot be scored for both models.
    """
    options = compare_parser().parse_args(list(args))
    check_writable(options.output.absolute().parent)
    space = _space(options)
    names = _names(options)
    a, b = (_areas(path, name, options, space) for path, name in zip(options.predicted, names, strict=True))
    if options.allow_missing:
        a, b = a.only(b.names), b.only(a.names)
    comparison = paired_comparison(a, b, options.samples, options.permutations, options.seed, options.level)
    written: list[Path] = []
    try:
        written = _write(options, comparison, space, names)
    finally:  # shown also where the disk does not take it, and kept where nobody reads on
        say(f"\n{comparison_rows(comparison, space.class_names, names)}\n")
        say(comparison.sentence(*names))
        note = space.note_of_absence(np.flatnonzero(a.areas[:, 1].sum(axis=0)).tolist())
        if note is not None:
            say(f"note: in the truth {note}")
    say(", ".join(map(str, written)))
    return 0


def comparison_rows(comparison: Comparison, class_names: Sequence[str], names: tuple[str, str]) -> str:
    """An aligned text table in points: each class, then the mIoU; the last column names who is really better."""
    level = f"{100 * comparison.level:g} % CI"
    rows: list[tuple[str, ...]] = [("class", *names, "difference", level, "p", "better")]
    rows += [_row(name, row, names) for name, row in zip(class_names, comparison.classes, strict=True)]
    rows.append(_row("mIoU", comparison.miou, names))
    last = len(rows[0]) - 1
    note = f"better: p < {SIGNIFICANCE}, over the classes corrected by Holm; points of IoU"
    return aligned([rows[0], RULE, *rows[1:-1], RULE, rows[-1]], left=(0, last)) + f"\n{note}"


def _row(name: str, row: Difference, names: tuple[str, str]) -> tuple[str, ...]:
    a, b = percent(row.a), percent(row.b)
    if not row.verdict:
        return name, a, b, "-", "-", "-", "no truth"
    interval = f"{points(row.difference.low)} to {points(row.difference.high)}"
    better = {"A": names[0], "B": names[1], "=": ""}[row.verdict]
    return name, a, b, points(row.difference.value), interval, f"{row.p:.4f}", better


def _space(options: argparse.Namespace) -> LabelSpace:
    folders = [path for path in options.predicted if path.suffix != ".npz"]
    manifests = [read_manifest(folder) for folder in folders]
    manifest = next((m for m in manifests if m is not None), None)
    return label_space(options, manifest, options.predicted[0])


def _names(options: argparse.Namespace) -> tuple[str, str]:
    """What to call the models: as asked, else by their folders, as far as those differ."""
    first, second = options.names or (path.resolve().stem for path in options.predicted)
    return ("A", "B") if first == second else (first, second)


def _areas(path: Path, name: str, options: argparse.Namespace, space: LabelSpace) -> ImageAreas:
    """Areas of one model, scored now or before.

    Raises:
        InputError: An image cannot be scored, or the areas are of other classes.
    """
    if path.suffix == ".npz":
        areas = ImageAreas.load(path)
        if areas.num_classes != space.num_classes:
            raise InputError(f"{path}: areas of {areas.num_classes} classes, --labels has {space.num_classes}")
        return areas
    if options.truth_dir is None:
        raise InputError(f"{path}: a folder of label maps needs TRUTH_DIR, the true ones, as third argument")
    truth = space if options.truth == "raw" else train_id_space(space)
    raw = options.predictions == "raw" and read_manifest(path) is None  # `segkit predict` writes train ids
    pairs = _pairs(path, options)
    counts = score_pairs(pairs, truth, space if raw else train_id_space(space), options.workers)
    return ImageAreas.from_counts(Bar(counts, total=len(pairs), unit="image", desc=printable(name)))


def _pairs(path: Path, options: argparse.Namespace) -> list[Pair]:
    train_ids = options.truth == "train_ids"
    found = find_pairs(path, options.truth_dir, train_ids, options.prediction_ending, options.truth_ending)
    problems = [p for p in found.problems if not options.allow_missing or p.kind != "missing prediction"]
    if problems:
        more = f" (and {len(problems) - 1} more; --allow_missing compares what both have)" if len(problems) > 1 else ""
        raise InputError(problems[0].message + more)
    return found.pairs


def _write(
    options: argparse.Namespace, comparison: Comparison, space: LabelSpace, names: tuple[str, str]
) -> list[Path]:
    from segkit.evaluation.plots import comparison_figure, save_figure  # and with it, matplotlib

    result = {
        "segkit": __version__,
        "a": {"name": names[0], "predictions": str(options.predicted[0])},
        "b": {"name": names[1], "predictions": str(options.predicted[1])},
        "truth": None if options.truth_dir is None else str(options.truth_dir),
        "class_names": list(space.class_names),
        "conclusion": comparison.sentence(*names),
        **comparison.to_dict(),
    }
    path = free_path(options.output)
    image = free_path(path.with_suffix(".png"))
    write_json(path, result)
    save_figure(comparison_figure(comparison, space.class_names, *names), image)
    return [path, image]
