"""`segkit benchmark score` and `compare`: label maps that any tool wrote, without a network."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from segkit import __version__
from segkit.cli.benchmark.command import compare_parser, score_parser
from segkit.cli.words import say
from segkit.errors import InputError, printable
from segkit.evaluation.comparison import Comparison, paired_comparison
from segkit.evaluation.conventions import ALL_METRICS, DEFAULT, comparison_table, convention, convention_scores
from segkit.evaluation.results import confused_both_ways, format_table, images_scored, pairs_table, without_words
from segkit.evaluation.statistics import ImageAreas
from segkit.files import check_writable, free_path, write_json
from segkit.metadata.regroup import left_out_ids
from segkit.predictions.extra_scores import ExtraScores, extra_scores
from segkit.predictions.folders import FolderScores, Reading, areas_of_folder, score_folders
from segkit.predictions.manifest import Manifest, check_manifest, named_space, read_manifest
from segkit.predictions.pairs import Problem, problem_lines
from segkit.predictions.scoring import suspicion

LINES = 10  # problems that are printed; the result file has all of them


def score(args: Sequence[str]) -> int:
    """Run `segkit benchmark score`; see `--help`.

    Returns:
        0: every image was scored. 1: some could not be; the result file is marked partial.

    Raises:
        InputError: The command is wrong, or no image could be scored.
        KeyboardInterrupt: The user stopped it; the partial result is written.
    """
    options = score_parser().parse_args(list(args))
    manifest = read_manifest(options.pred_dir)
    reading = _reading(options, manifest, options.pred_dir)
    _check(options, manifest, reading)
    options.without = left_out_ids(options.without, reading.space.class_names)
    scored = score_folders(options.pred_dir, options.truth_dir, reading, options.limit)
    if not scored.confusion.num_images and not scored.interrupted:
        _complain(scored.problems)
        expected = scored.pairing.expected
        raise InputError(f"{options.pred_dir}: none of {expected} images could be scored, for the reasons above")
    _report(options, scored, manifest)
    if scored.interrupted:
        raise KeyboardInterrupt
    return 1 if scored.problems else 0


def compare(args: Sequence[str]) -> int:
    """Run `segkit benchmark compare`; see `--help`.

    Raises:
        InputError: The command is wrong, or an image cannot be scored for both models.
    """
    options = compare_parser().parse_args(list(args))
    check_writable(options.output.absolute().parent)
    manifests = [read_manifest(path) for path in options.predicted if path.suffix != ".npz"]
    reading = _reading(options, next(filter(None, manifests), None), options.predicted[0])
    names = _names(options)
    a, b = (areas_of_folder(p, options.truth_dir, reading, n) for p, n in zip(options.predicted, names, strict=True))
    if options.allow_missing:
        a, b = a.only(b.names), b.only(a.names)
    true = np.flatnonzero(a.areas[:, 1].sum(axis=0)).tolist()
    left_out = left_out_ids(options.without, reading.space.class_names)
    a, b = a.without(left_out), b.without(left_out)
    names_of = [name for i, name in enumerate(reading.space.class_names) if i not in left_out]
    comparison = paired_comparison(a, b, options.samples, options.permutations, options.seed, options.level)
    comparison = replace(comparison, without=tuple(reading.space.class_names[i] for i in left_out))
    written: list[Path] = []
    try:
        written = _write_comparison(options, comparison, names_of, names)
    finally:  # printed even if the file cannot be written, and written even if the output pipe is closed
        say(f"\n{comparison.table(names_of, *names)}\n\n{comparison.sentence(*names)}")
        note = reading.space.note_of_absence(true) if not left_out else None
        if note is not None:
            say(f"note: in the truth {note}")
    say(", ".join(map(str, written)))
    return 0


def _reading(options: argparse.Namespace, manifest: Manifest | None, folder: Path) -> Reading:
    space = named_space(options.labels, options.num_classes, options.masks, manifest, folder)
    names = ("prediction_ids", "truth_ids", "prediction_ending", "truth_ending", "allow_missing", "workers")
    return Reading(space, **{name: getattr(options, name) for name in names})


def _check(options: argparse.Namespace, manifest: Manifest | None, reading: Reading) -> None:
    check_writable(options.output.absolute().parent)
    for name in options.metric:
        if name != ALL_METRICS:
            convention(name, others=(ALL_METRICS,))
    if manifest is not None:
        check_manifest(manifest, reading.space, reading.prediction_ids, options.pred_dir)


def _report(options: argparse.Namespace, scored: FolderScores, manifest: Manifest | None) -> None:
    """Write the result file, and print tables, notes and problems."""
    result = scored.result(manifest, _tables(options.metric)[0], options.labels, options.without)
    folders = {"folder": str(options.pred_dir), "truth": str(options.truth_dir), "ids": options.prediction_ids}
    result["predictions"] = folders
    extras = None if scored.interrupted else extra_scores(scored, options.boundary, options.bootstrap, options.without)
    if extras is not None:
        result |= extras.to_dict()
        if options.plot:
            confused = _confused(scored)
            result["most_confused"] = {by: [vars(pair) for pair in pairs] for by, pairs in confused.items()}
    written: list[Path] = []
    try:
        written = _write(options, scored, result, extras)
    finally:  # printed even if the file cannot be written, and written even if the output pipe is closed
        _print_tables(options.metric, scored, options.without)
        if extras is not None:
            _print_extras(options, scored, extras)
        _print_notes(scored)
        images = images_scored(scored.confusion.num_images, scored.pairing.expected, scored.partial)
        done = f"{images}, {scored.pixels / 1e6:.0f} Mpx in {scored.seconds:.1f} s"
        say("; ".join(filter(None, (done, ", ".join(map(str, written))))))


def _write(
    options: argparse.Namespace, scored: FolderScores, result: dict[str, Any], extras: ExtraScores | None
) -> list[Path]:
    """Write the result file, the areas that `compare` takes, and the figure; return their paths."""
    stopped = scored.interrupted or bool(scored.problems)
    path = free_path(options.output.with_stem(f"{options.output.stem}-partial") if stopped else options.output)
    write_json(path, result)
    written = [path]
    if extras is not None and extras.interval is not None:
        written.append(free_path(path.with_suffix(".npz")))
        ImageAreas.from_areas(scored.areas).save(written[-1])  # of all classes: `compare` has its own --without
    if extras is not None and options.plot:
        from segkit.evaluation.plots import confusion_figure, save_figure  # and with it, matplotlib

        written.append(free_path(path.with_name(f"{path.stem}-confusion.png")))
        matrix = scored.confusion.matrix.cpu().numpy()
        save_figure(confusion_figure(matrix, scored.reading.space.class_names), written[-1])
    return written


def _print_tables(metrics: Sequence[str], scored: FolderScores, left_out: Sequence[int]) -> None:
    counts = scored.confusion.counts
    for name in _tables(metrics):
        rule = convention(name)
        table = format_table(convention_scores(counts, name, left_out), scored.reading.space.class_names, rule.heading)
        say(f"\nmetric {name} ({rule.rule})\n{table}")
    if ALL_METRICS in metrics:
        heading = f"mIoU{without_words(scored.reading.space.class_names, left_out)}"
        say(f"\n{comparison_table(counts, left_out, heading)}")


def _print_extras(options: argparse.Namespace, scored: FolderScores, extras: ExtraScores) -> None:
    if options.bootstrap is not None and extras.interval is None:
        say("\nno interval: one image cannot be resampled")
    if extras.interval is not None or extras.boundary is not None:
        say(f"\n{extras.table()}")
    if options.plot:
        pixels, share = map(pairs_table, _confused(scored).values())
        say(f"\nmost confused pairs, by pixels\n{pixels}\n\nand by share of the true class\n{share}")


def _print_notes(scored: FolderScores) -> None:
    if scored.pairing.unused:
        first = printable(scored.pairing.unused[0])
        say(f"not scored: {len(scored.pairing.unused)} predictions without a truth (first: {first})")
    note = scored.note and f"in the truth {scored.note}"
    for hint in filter(None, (note, suspicion(scored.confusion.counts))):
        say(f"note: {hint}")
    _complain(scored.problems)


def _confused(scored: FolderScores) -> dict[str, Any]:
    return confused_both_ways(scored.confusion.matrix.cpu().numpy(), scored.reading.space.class_names)


def _tables(metrics: Sequence[str]) -> list[str]:
    """The conventions that get a table of classes; for `all`, only segkit's own."""
    return list(dict.fromkeys(name for name in metrics if name != ALL_METRICS)) or [DEFAULT]


def _complain(problems: Sequence[Problem]) -> None:
    for line in problem_lines(problems, LINES):
        say(line, to=sys.stderr)


def _names(options: argparse.Namespace) -> tuple[str, str]:
    """Names of the models: those given, otherwise the parts of their folders' paths that differ."""
    first, second = options.names or (path.resolve().stem for path in options.predicted)
    return ("A", "B") if first == second else (first, second)


def _write_comparison(
    options: argparse.Namespace, comparison: Comparison, class_names: Sequence[str], names: tuple[str, str]
) -> list[Path]:
    from segkit.evaluation.plots import comparison_figure, save_figure  # and with it, matplotlib

    result = {
        "segkit": __version__,
        "a": {"name": names[0], "predictions": str(options.predicted[0])},
        "b": {"name": names[1], "predictions": str(options.predicted[1])},
        "truth": None if options.truth_dir is None else str(options.truth_dir),
        "class_names": list(class_names),
        "conclusion": comparison.sentence(*names),
        **comparison.to_dict(),
    }
    path = free_path(options.output)
    figure = free_path(path.with_suffix(".png"))
    write_json(path, result)
    save_figure(comparison_figure(comparison, class_names, *names), figure)
    return [path, figure]
