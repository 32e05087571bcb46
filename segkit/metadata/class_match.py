"""Matches the classes of a model with those of a data set if they differ: by name, by raw value, or by a given table.

A network of Cityscapes' 34 labels is thus scored on the 19 that count, one of ADE20K's 151 ("other" first) on 150, one
of COCO-Stuff's 182 on 171. Pixels that a model predicts as a class that the data lack count as no class (255).
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from segkit.errors import InputError, did_you_mean
from segkit.metadata.label_space import IGNORE_INDEX, UNDECLARED, LabelSpace

RAW = "raw"  # given in place of a table: the model's numbers are the raw values of the data set's masks

_NUMBERED = re.compile(r"(class |label_)\d+", re.IGNORECASE)  # names that say nothing
_LISTED = 5  # classes that a note names


@dataclass(frozen=True)
class ClassMatch:
    """The meaning of a model's class numbers for a data set.

    Attributes:
        table: For each number of the model from 0 on, the data's train id, or 255 = no class of the data.
        note: A remark for readers of the scores: how classes were matched, and which were not; None: all agree.
    """

    table: tuple[int, ...]
    note: str | None = None

    @property
    def is_identity(self) -> bool:
        """Whether the numbers are the data's own."""
        return self.table == tuple(range(len(self.table)))


@dataclass(frozen=True)
class ModelClasses:
    """The known facts about a model's classes.

    Attributes:
        model: The model's name in messages: its file.
        names: Names by the model's own numbers; () if it has none.
        count: Number of classes; None if only the labels could tell.
    """

    model: str
    names: tuple[str, ...] = ()
    count: int | None = None

    @classmethod
    def of(cls, model: str, names: Sequence[str] | None, count: int | None) -> "ModelClasses":
        """Classes from names that may be missing, or may be mere numbers ("class 0", "LABEL_0")."""
        known = tuple(map(str, names or ()))
        known = () if all(_NUMBERED.fullmatch(name) for name in known) else known
        return cls(model, known, len(names) if names else count)


def match_classes(
    classes: ModelClasses, space: LabelSpace, data: str, given: Mapping[str | int, str | None] | str | None = None
) -> ClassMatch:
    """Match the classes of a model with those of a data set.

    Equal names and equal numbers of classes without names mean the same numbers. So do equally many names in another
    spelling, unless one of them stands elsewhere: then, and where the numbers of classes differ, names are compared
    without case, blanks and punctuation, and of synonyms ("door;double door") each is tried. Classes without names that
    are as many as the raw values of the data set's masks are these.

    Args:
        classes: Classes of the model.
        space: Label space of the data.
        data: Name of the data in messages.
        given: The user's corrections: name or number of the model's class -> name of the data's, or None for no class;
            or "raw": the model's numbers are the raw values of the masks.

    Raises:
        InputError: Fewer than half of the data's classes are found, or a correction names an unknown class.
    """
    wanted = space.class_names
    if given == RAW:
        return _as_raw(space)
    if isinstance(given, str):
        raise InputError(f"classes: {given!r} is no table; give 'name or number: name in the data', or {RAW}")
    count = classes.count or len(wanted)
    if given:
        found = (
            _by_name(classes.names, wanted)
            if classes.names
            else [i if count == len(wanted) else None for i in range(count)]
        )
        return _noted(classes, space, _corrected(found, classes, space, given), "matched by the table")
    if classes.names == wanted:
        return ClassMatch(tuple(range(count)))
    if not classes.names:
        if count == len(wanted):
            return ClassMatch(tuple(range(count)), None if classes.count is None else "classes without names, in order")
        if count == _raw_count(space):
            return _as_raw(space)
        raise InputError(_unmatched(classes, space, data, "its classes have no names"))
    found = _by_name(classes.names, wanted)
    moved = any(place not in (None, i) for i, place in enumerate(found))
    if count == len(wanted) and not moved:
        others = [f"{a} for {b}" for a, b in zip(classes.names, wanted, strict=True) if _words(a)[0] != _words(b)[0]]
        return ClassMatch(tuple(range(count)), f"other names, in order: {_listed(others)}" if others else None)
    if 2 * len({place for place in found if place is not None}) < len(wanted):
        raise InputError(_unmatched(classes, space, data, "fewer than half of the data's are among them by name"))
    return _noted(classes, space, found, "matched by name")


def _by_name(names: Sequence[str], wanted: Sequence[str]) -> list[int | None]:
    """The place of each name among the wanted ones; whole names are matched before synonyms."""
    found: list[int | None] = [None] * len(names)
    for part in (slice(1), slice(None)):
        taken = set(found)
        places: dict[str, int] = {}
        for place, name in enumerate(wanted):
            for word in _words(name)[part]:
                places.setdefault(word, place)
        for i, name in enumerate(names):
            if found[i] is None:
                hits = (places[word] for word in _words(name)[part] if word in places)
                found[i] = next((place for place in hits if place not in taken), None)
    return found


def _words(name: str) -> list[str]:
    """The name, and then its synonyms, without case, blanks and punctuation."""
    return [re.sub(r"[\W_]+", "", part).casefold() for part in (name, *re.split(r"[,;/]", name))]


def _corrected(
    found: list[int | None], classes: ModelClasses, space: LabelSpace, given: Mapping[str | int, str | None]
) -> list[int | None]:
    found = list(found)
    for own, name in given.items():
        place = classes.names.index(own) if own in classes.names else own
        if not isinstance(place, int) or isinstance(place, bool) or not 0 <= place < len(found):
            hint = did_you_mean(str(own), classes.names)
            raise InputError(
                f"classes: {classes.model} has no class {own!r}; {hint}allowed are its names, or 0..{len(found) - 1}"
            )
        if name is not None and name not in space.class_names:
            hint = did_you_mean(str(name), space.class_names)
            raise InputError(f"classes: the data has no class {name!r}; {hint}it has {', '.join(space.class_names)}")
        found[place] = None if name is None else space.class_names.index(name)
    return found


def _as_raw(space: LabelSpace) -> ClassMatch:
    table = [IGNORE_INDEX if entry == UNDECLARED else entry for entry in space.table]
    return ClassMatch(tuple(table[: _raw_count(space)]), "numbers are the raw values of the masks")


def _raw_count(space: LabelSpace) -> int:
    """One more than the highest raw value, 255 left out."""
    return 1 + max(raw for raw, entry in enumerate(space.table[:IGNORE_INDEX]) if entry != UNDECLARED)


def _noted(classes: ModelClasses, space: LabelSpace, found: Sequence[int | None], how: str) -> ClassMatch:
    lost = [classes.names[i] if classes.names else str(i) for i, place in enumerate(found) if place is None]
    never = [name for i, name in enumerate(space.class_names) if i not in found]
    matched = f"{how}: {len(found) - len(lost)} of {len(found)} classes"
    parts = [
        matched,
        f"not in the data: {_listed(lost)}" * bool(lost),
        f"never predicted: {_listed(never)}" * bool(never),
    ]
    table = tuple(IGNORE_INDEX if place is None else place for place in found)
    return ClassMatch(table, "; ".join(filter(None, parts)))


def _unmatched(classes: ModelClasses, space: LabelSpace, data: str, why: str) -> str:
    shown = f" ({', '.join(classes.names[:3])}, ...)" if classes.names else ""
    return (
        f"{classes.model}: has {classes.count} classes{shown}, {data} has {space.num_classes}; they cannot be "
        f"matched: {why}; give the data set that it was made for, or a table, 'name or number: name in the data', by "
        "--classes FILE"
    )


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more
