"""Turns what was found into the subjects of a report, compares them with the baseline, and writes the page."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from segkit.arrays import Int64Array
from segkit.cli.report.sources import (
    Source,
    Wanted,
    data_of,
    find_source,
    images_of,
    space_of,
    training_of,
)
from segkit.cli.words import say
from segkit.errors import InputError
from segkit.evaluation.comparison import Comparison, paired_comparison
from segkit.evaluation.report.content import Subject
from segkit.evaluation.report.page import checked_section, write_report
from segkit.evaluation.results import command_line, result_dict
from segkit.evaluation.statistics import Bootstrap, ImageAreas, bootstrap_miou
from segkit.files import check_writable, free_path
from segkit.metadata.label_space import LabelSpace
from segkit.predictions.pairs import Problem, problem_lines
from segkit.predictions.reported import Gathered, gather_files
from segkit.predictions.scoring import train_id_space
from segkit.text import counted, listed

_LINES = 10  # problems that are printed


@dataclass(frozen=True)
class Made:
    """A subject, the areas by which it is compared, and the images that could not be read."""

    subject: Subject
    areas: ImageAreas | None
    problems: Sequence[Problem]


def make_report(inputs: Sequence[Path], baseline: Path | None, output: Path, title: str | None, wanted: Wanted) -> int:
    """Write a report, and print its path and what could not be read.

    Returns:
        0: everything was read. 1: an input or some images could not be.

    Raises:
        InputError: No input could be read, or the file cannot be written.
    """
    if output.is_dir():
        raise InputError(f"{output}: is a folder; name a file in it")
    check_writable(output.absolute().parent)
    names = unique_names([*inputs, *([] if baseline is None else [baseline])])
    made, failed = list[Made](), list[InputError]()
    for path, name in zip(inputs, names, strict=False):
        try:
            made.append(make_subject(path, name, wanted))
        except InputError as error:
            failed.append(error)
    if not made:
        raise failed[0]
    if baseline is not None:
        made = _compared(made, baseline, names[-1], wanted, failed)
    problems = [problem for one in made for problem in one.problems]
    for line in (*map(str, failed), *problem_lines(problems, _LINES)):
        say(f"segkit report: {line}", to=sys.stderr)
    subjects = [one.subject for one in made]
    path = free_path(output)
    write_report(path, subjects, title or listed([s.name for s in subjects], 3), command_line())
    say(path)
    return 1 if failed or problems else 0


def unique_names(paths: Sequence[Path]) -> list[str]:
    """Short names for paths: as many of their last parts as tell them apart; equal paths get a number."""
    parts = [Path(str(path.resolve()).removesuffix(".json")).parts[1:] or ("/",) for path in paths]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(own[-length:]) for own in parts]
        if len(set(names)) == len(set(parts)):
            break
    return [name if name not in names[:i] else f"{name} ({names[:i].count(name) + 1})" for i, name in enumerate(names)]


def make_subject(path: Path, name: str, wanted: Wanted) -> Made:
    """Read one input.

    Raises:
        InputError: Nothing of it can be used.
    """
    source = find_source(path)
    (curves, config), data = training_of(source, wanted), data_of(source, wanted)
    space = space_of(source, data, curves)
    found, expected = None, 0
    if source.labels is not None:
        images, expected = images_of(source, data, wanted)
        values = space if wanted.prediction_ids == "raw" else train_id_space(space)
        found = gather_files(images, values, name, wanted.most)
        if not found.sums.facts:
            raise InputError(found.problems[0].message)
        for what, lines in (("images", found.gone), ("label maps", [p.message for p in found.problems])):
            if lines:
                source.lacks(f"{len(lines)} of {counted(len(images), 'image')}: {what}", lines[0])
    elif not any(line.startswith("images") for line in source.missing):
        source.lacks("images", "there are no label maps; `segkit test --report` writes them")
    result = dict(source.result) or _result(source, found, space, expected)
    areas = _areas(source, found, space.num_classes)
    subject = Subject(name, space, result, curves=curves, config=config, confusion=_matrix(result, space))
    if found is not None:
        _check_same(source, subject, found)
        if found.sums.reliability is not None and "calibration" not in result:
            result["calibration"] = found.sums.reliability.to_dict()
        subject = replace(
            subject, groups=found.sums.groups(), image_miou=found.sums.image_miou, examples=found.examples
        )
    interval = _interval(source, areas, _left_out(subject))
    subject = replace(subject, interval=interval, missing=tuple(source.missing))
    checked_section(subject)  # now, as one that cannot be shown must not stop the others
    return Made(subject, areas, [] if found is None else found.problems)


def _left_out(subject: Subject) -> list[int]:
    """Train ids of the classes that the means of the result leave out."""
    names = subject.space.class_names
    return [names.index(name) for name in subject.result.get("without") or () if name in names]


def _result(source: Source, found: Gathered | None, space: LabelSpace, expected: int) -> dict[str, Any]:
    """The result of label maps that come without one, as `segkit benchmark score` has it; {} without label maps."""
    manifest = source.manifest
    about: dict[str, Any] = {"protocol": {"name": "unknown: label maps of another tool"}}
    if manifest is not None:
        about = {name: dict(getattr(manifest, name)) for name in ("protocol", "dataset", "weights")}
        about |= {name: manifest.run[name] for name in ("command", "date", "versions") if name in manifest.run}
        about["precision"] = manifest.precision
    if found is None:
        source.lacks("scores", "the run has not been tested")
        return {}
    count = len(found.sums.facts)
    if found.sums.areas is None:
        return about | {"num_images": count}
    scored = result_dict(found.sums.confusion, space.class_names, about["protocol"], partial=count < expected)
    return scored | about


def _matrix(result: Mapping[str, Any], space: LabelSpace) -> Int64Array | None:
    try:
        matrix = np.array(result.get("confusion_matrix") or [], np.int64)
    except (ValueError, TypeError):  # not a matrix
        return None
    return matrix if matrix.shape == (space.num_classes, space.num_classes) else None


def _check_same(source: Source, subject: Subject, found: Gathered) -> None:
    """Say so if the label maps do not give the numbers of the result file."""
    own, said = found.sums.confusion.matrix.numpy(), subject.confusion
    if source.result and found.sums.areas is not None and (said is None or not np.array_equal(own, said)):
        source.lacks("Intervals, groups and images are of the label maps, which do not give the numbers of "
                     f"{source.result_file}")  # fmt: skip


def _areas(source: Source, found: Gathered | None, num_classes: int) -> ImageAreas | None:
    """Areas of each image: of the label maps, or beside the result file."""
    if found is not None and found.sums.areas is not None:
        return found.sums.areas
    file = None if source.result_file is None else source.result_file.with_suffix(".npz")
    if file is None or not file.is_file():
        return None
    try:
        areas = ImageAreas.load(file)
    except InputError as error:
        source.lacks("interval", error)
        return None
    return areas if areas.num_classes == num_classes else None


def _interval(source: Source, areas: ImageAreas | None, left_out: Sequence[int]) -> Bootstrap | None:
    if areas is None:
        source.lacks("interval", "scores of single images are not known")
        return None
    try:
        found = bootstrap_miou(areas)
    except InputError as error:
        source.lacks("interval", error)
        return None
    return replace(found, miou=bootstrap_miou(areas.without(left_out)).miou) if left_out else found


def _compared(made: Sequence[Made], baseline: Path, name: str, wanted: Wanted, failed: list[InputError]) -> list[Made]:
    """The subjects with their difference to the baseline, and last the baseline itself, if it can be read."""
    try:
        base = make_subject(baseline, name, wanted)
    except InputError as error:
        failed.append(error)
        return [_lacking(one, name, str(error)) for one in made]
    compared = []
    for one in made:
        try:
            comparison = _comparison(base, one)
        except InputError as error:
            compared.append(_lacking(one, name, str(error)))
        else:
            compared.append(replace(one, subject=replace(one.subject, comparison=comparison, baseline=name)))
    return [*compared, base]


def _lacking(one: Made, name: str, why: str) -> Made:
    sentence = f"comparison with {name}: {why.removeprefix('comparison: ')}"
    return replace(one, subject=replace(one.subject, missing=(*one.subject.missing, sentence)))


def _comparison(base: Made, own: Made) -> Comparison:
    """The difference of two subjects.

    Raises:
        InputError: They cannot be compared.
    """
    a, b = base.areas, own.areas
    for one, areas in ((base, a), (own, b)):
        if areas is None:
            raise InputError(f"scores of single images of {one.subject.name} are not known")
    assert a is not None and b is not None
    found = paired_comparison(a, b)
    without, left_out = tuple(own.subject.result.get("without") or ()), _left_out(own.subject)
    if not left_out:
        return found
    return replace(found, miou=paired_comparison(a.without(left_out), b.without(left_out)).miou, without=without)
