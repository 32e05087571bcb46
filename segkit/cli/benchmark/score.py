"""`segkit benchmark score PRED_DIR TRUTH_DIR`: score label maps that any tool wrote, without a network.

One wrong image does not stop the others: all are read, what is wrong is listed, and the rest is kept as partial.
"""

import argparse
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from segkit.arrays import Int64Array
from segkit.bars import Bar
from segkit.cli.benchmark.score_extras import ExtraScores, check_extras
from segkit.cli.benchmark.score_options import ALL_METRICS, label_space, score_parser
from segkit.cli.words import say
from segkit.errors import InputError, printable
from segkit.evaluation.confusion import ConfusionMatrix, true_ids
from segkit.evaluation.conventions import (
    CONVENTIONS,
    DEFAULT,
    comparison_table,
    convention,
    convention_scores,
)
from segkit.evaluation.results import format_table, result_dict, write_result
from segkit.evaluation.statistics import ImageAreas, image_areas
from segkit.files import check_writable, free_path
from segkit.metadata.label_space import LabelSpace
from segkit.predictions.manifest import NAME, Manifest, read_manifest
from segkit.predictions.pairs import Pairing, Problem, find_pairs
from segkit.predictions.scoring import score_pairs, suspicion, train_id_space

LINES = 10  # of problems that are printed; the result file has them all


@dataclass
class Outcome:
    """What came of the images so far."""

    confusion: ConfusionMatrix
    problems: list[Problem] = field(default_factory=list)
    areas: list[tuple[str, Int64Array]] = field(default_factory=list)  # of each image, for what is resampled
    pixels: int = 0
    seconds: float = 0.0
    interrupted: bool = False


@dataclass(frozen=True)
class SavedProtocol:
    """How the label maps were made, as far as their folder says."""

    fields: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return self.fields


def main(args: Sequence[str]) -> int:
    """Run `segkit benchmark score`; see `--help`.

    Returns:
        0: every image was scored. 1: some could not be; the result file is marked partial.

    Raises:
        InputError: The command is wrong, or no image could be scored.
        KeyboardInterrupt: The user stopped it; the partial result is written.
    """
    options = score_parser().parse_args(list(args))
    manifest = read_manifest(options.pred_dir)
    space = label_space(options, manifest, options.pred_dir)
    _check(options, manifest, space)
    pairing = find_pairs(
        options.pred_dir,
        options.truth_dir,
        options.truth == "train_ids",
        options.prediction_ending,
        options.truth_ending,
    )
    outcome = _score(options, pairing, space)
    expected = len(pairing.pairs) + len(pairing.problems)
    if not outcome.confusion.num_images and not outcome.interrupted:
        _complain(outcome.problems)
        raise InputError(f"{options.pred_dir}: none of {expected} images could be scored, for the reasons above")
    _report(options, outcome, pairing, space, manifest)
    if outcome.interrupted:
        raise KeyboardInterrupt
    return 1 if outcome.problems else 0


def _check(options: argparse.Namespace, manifest: Manifest | None, space: LabelSpace) -> None:
    check_extras(options)
    check_writable(options.output.absolute().parent)
    for name in options.metric:
        if name != ALL_METRICS:
            convention(name, others=(ALL_METRICS,))
    for name in ("limit", "workers"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise InputError(f"--{name} is {value}; allowed is 1 or more")
    if manifest is None:
        return
    if manifest.space.num_classes != space.num_classes:
        raise InputError(
            f"{options.pred_dir / NAME}: {manifest.space.num_classes} classes, --labels has {space.num_classes}; "
            "leave --labels out, or give that of the data set"
        )
    if options.predictions == "raw":
        raise InputError(f"{options.pred_dir / NAME}: `segkit predict` writes train ids; leave --predictions out")


def _score(options: argparse.Namespace, pairing: Pairing, space: LabelSpace) -> Outcome:
    outcome = Outcome(ConfusionMatrix(space.num_classes))
    allowed = ["missing prediction"] if options.allow_missing else []
    outcome.problems += [problem for problem in pairing.problems if problem.kind not in allowed]
    pairs = pairing.pairs[: options.limit]
    truth = space if options.truth == "raw" else train_id_space(space)
    predictions = space if options.predictions == "raw" else train_id_space(space)
    start = time.perf_counter()
    with Bar(total=len(pairs), unit="image", desc="score") as bar:

        def complain(problem: Problem) -> None:
            outcome.problems.append(problem)
            bar.update()

        try:
            for name, counts in score_pairs(pairs, truth, predictions, options.workers, complain):
                outcome.confusion.add(counts)
                outcome.areas.append((name, image_areas(counts, name)))
                outcome.pixels += int(counts.sum())
                outcome.seconds = time.perf_counter() - start
                bar.set_postfix_str(f"{outcome.pixels / outcome.seconds / 1e6:.0f} Mpx/s", refresh=False)
                bar.update()
        except KeyboardInterrupt:
            outcome.interrupted = True
    return outcome


def _report(
    options: argparse.Namespace, outcome: Outcome, pairing: Pairing, space: LabelSpace, manifest: Manifest | None
) -> None:
    """Write the result file; print tables, notes and problems."""
    confusion, expected = outcome.confusion, len(pairing.pairs) + len(pairing.problems)
    partial = outcome.interrupted or confusion.num_images < expected
    note = space.note_of_absence(true_ids(confusion.counts))
    result = result_dict(
        confusion,
        space.class_names,
        SavedProtocol({"name": "unknown: label maps of another tool"} if manifest is None else dict(manifest.protocol)),
        dataset={**(manifest.dataset if manifest else {"name": options.labels}), "num_images": expected},
        weights=None if manifest is None else manifest.weights,
        partial=partial,
        metric=_tables(options.metric)[0],
        note=note,
    )
    result["predictions"] = {
        "folder": str(options.pred_dir),
        "truth": str(options.truth_dir),
        "ids": options.predictions,
    }
    result["problems"] = [vars(problem) for problem in outcome.problems]
    extras = None
    if not outcome.interrupted:
        areas = ImageAreas.from_areas(outcome.areas)
        extras = ExtraScores(options, space, areas, pairing.pairs, confusion)
        result |= extras.result()
    written: list[Path] = []
    try:
        written = _write(options, outcome, result, extras)
    finally:  # the scores are shown also where the disk does not take them, and kept where nobody reads on
        _print_tables(options.metric, confusion, space)
        if extras is not None:
            say(extras.text(), end="")
        if pairing.unused:
            first = printable(pairing.unused[0])
            say(f"not scored: {len(pairing.unused)} predictions without a truth (first: {first})")
        for hint in filter(None, (note and f"in the truth {note}", suspicion(confusion.counts))):
            say(f"note: {hint}")
        _complain(outcome.problems)
        say(
            f"{confusion.num_images}{f' of {expected} images (partial)' if partial else ' images'}, "
            f"{outcome.pixels / 1e6:.0f} Mpx in {outcome.seconds:.1f} s"
            + "; " * bool(written)
            + ", ".join(map(str, written))
        )


def _write(
    options: argparse.Namespace, outcome: Outcome, result: dict[str, Any], extras: ExtraScores | None
) -> list[Path]:
    """Write the result file and what belongs beside it; return where."""
    stopped = outcome.interrupted or bool(outcome.problems)
    path = free_path(options.output.with_stem(f"{options.output.stem}-partial") if stopped else options.output)
    write_result(path, result)
    return [path, *(extras.write(path) if extras is not None else [])]


def _print_tables(metrics: Sequence[str], confusion: ConfusionMatrix, space: LabelSpace) -> None:
    for name in _tables(metrics):
        table = format_table(convention_scores(confusion.counts, name), space.class_names)
        say(f"\nmetric {name} ({CONVENTIONS[name].rule})\n{table}")
    if ALL_METRICS in metrics:
        say(f"\n{comparison_table(confusion.counts)}")


def _tables(metrics: Sequence[str]) -> list[str]:
    """The conventions that get a table for each class; `all` alone means segkit's."""
    return list(dict.fromkeys(name for name in metrics if name != ALL_METRICS)) or [DEFAULT]


def _complain(problems: Sequence[Problem]) -> None:
    """The first ones of each kind, at most `LINES` in all, and how many there are of it."""
    kinds = defaultdict[str, list[Problem]](list)
    for problem in problems:
        kinds[problem.kind].append(problem)
    each = max(1, min(3, LINES // max(1, len(kinds))))
    for kind, some in kinds.items():
        for problem in some[:each]:
            say(f"{kind}: {printable(problem.message)}", to=sys.stderr)
        if len(some) > each:
            say(f"{kind}: ... {len(some)} images in all", to=sys.stderr)
