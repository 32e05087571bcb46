"""Which class of a data set each class of a model is, where their tables differ: by name, by raw value, or as given.

So that a network of Cityscapes' 34 labels is scored on the 19 that count, one of ADE20K's 151 ("other" first) on 150,
one of COCO-Stuff's 182 on 171. What a model predicts as a class that the data lacks counts as no class (255).
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from segkit.errors import InputError, did_you_mean
from segkit.metadata.label_space import IGNORE_INDEX, UNDECLARED, LabelSpace

RAW = "raw"  # given in place of a table: the model's numbers are the raw values of the data set's masks
Table = Mapping[str | int, str | None]  # name or number of a model's class -> name of the data's, or None for no class

_NUMBERED = re.compile(r"(class |label_)\d+", re.IGNORECASE)  # names that say nothing
_LISTED = 5  # classes that a note names


@dataclass(frozen=True)
class ClassMatch:
    """What the numbers of a model mean to a data set.

    Attributes:
        table: For each number of the model from 0 on, the data's train id, or 255 = no class of the data.
        note: How classes were matched, and which were not; None if all agree.
    """

    table: tuple[int, ...]
    note: str | None = None

    @property
    def is_identity(self) -> bool:
        """Whether the numbers are the data's own."""
        return self.table == tuple(range(len(self.table)))


@dataclass(frozen=True)
class ModelClasses:
    """What is known of a model's classes: what to call the model, their names by its own numbers, and how many."""

    model: str
    names: tuple[str, ...] = ()
    count: int | None = None

    @classmethod
    def of(cls, model: str, names: Sequence[str], count: int | None) -> "ModelClasses":
        """Of names that may be mere numbers ("class 0", "LABEL_0"), which say nothing."""
        known = () if all(_NUMBERED.fullmatch(str(name)) for name in names) else tuple(map(str, names))
        return cls(model, known, len(names) or count)


def match_classes(classes: ModelClasses, space: LabelSpace, data: str, given: Table | str | None = None) -> ClassMatch:
    """Match the classes of a model with those of a data set.

    Equal names, and as many classes without names, mean the same numbers. So do as many names in another spelling,
    unless one of them stands elsewhere: then, and if the numbers of classes differ, names are compared without case,
    blanks and punctuation, and of synonyms ("door;double door") each is tried. Classes without names that are as many
    as the raw values of the data set's masks are these.

    Args:
        classes: Of the model.
        space: Of the data.
        data: What to call the data in messages.
        given: Corrections of the user, or `RAW`.

    Raises:
        InputError: Fewer than half of the data's classes are found, or a correction names what is not there.
    """
    wanted, raw_count = space.class_names, 1 + max(v for v in range(255) if space.table[v] != UNDECLARED)
    count = classes.count or len(wanted)
    in_order: list[int | None] = list(range(count))
    if given == RAW or not (classes.names or given or count == len(wanted)):
        if given != RAW and count != raw_count:
            raise InputError(_unmatched(classes, space, data, "its classes have no names"))
        table = tuple(IGNORE_INDEX if entry == UNDECLARED else entry for entry in space.table[:raw_count])
        return ClassMatch(table, "numbers are the raw values of the masks")
    found = _by_name(classes.names, wanted) if classes.names else in_order
    if isinstance(given, Mapping):
        found = found if classes.names or count == len(wanted) else [None] * count
        return _noted(classes, space, _corrected(found, classes, space, given), "matched by the table")
    if count == len(wanted) and all(place in (None, i) for i, place in enumerate(found)):
        pairs = zip(classes.names, wanted, strict=True) if classes.names else ()
        others = [f"{own} for {name}" for own, name in pairs if _words(own)[0] != _words(name)[0]]
        unnamed = None if classes.names or classes.count is None else "classes without names, in order"
        return ClassMatch(tuple(range(count)), f"other names, in order: {_listed(others)}" if others else unnamed)
    if 2 * len(set(found) - {None}) < len(wanted):
        raise InputError(_unmatched(classes, space, data, "fewer than half of the data's are among them by name"))
    return _noted(classes, space, found, "matched by name")


def _by_name(names: Sequence[str], wanted: Sequence[str]) -> list[int | None]:
    """The place of each name among the wanted ones; whole names are matched before synonyms."""
    found: list[int | None] = [None] * len(names)
    for part in (slice(1), slice(None)):
        taken, places = set(found), dict[str, int]()
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


def _corrected(found: list[int | None], classes: ModelClasses, space: LabelSpace, given: Table) -> list[int | None]:
    found = list(found)
    for own, name in given.items():
        place = classes.names.index(own) if own in classes.names else own
        if not isinstance(place, int) or isinstance(place, bool) or not 0 <= place < len(found):
            allowed = f"{did_you_mean(str(own), classes.names)}allowed are its names, or 0..{len(found) - 1}"
            raise InputError(f"classes: {classes.model} has no class {own!r}; {allowed}")
        if name is not None and name not in space.class_names:
            hint = did_you_mean(str(name), space.class_names)
            raise InputError(f"classes: the data has no class {name!r}; {hint}it has {', '.join(space.class_names)}")
        found[place] = None if name is None else space.class_names.index(name)
    return found


def _noted(classes: ModelClasses, space: LabelSpace, found: Sequence[int | None], how: str) -> ClassMatch:
    lost = [classes.names[i] if classes.names else str(i) for i, place in enumerate(found) if place is None]
    never = [name for i, name in enumerate(space.class_names) if i not in found]
    note = f"{how}: {len(found) - len(lost)} of {len(found)} classes"
    for words, names in (("not in the data", lost), ("never predicted", never)):
        note += f"; {words}: {_listed(names)}" if names else ""
    return ClassMatch(tuple(IGNORE_INDEX if place is None else place for place in found), note)


def _unmatched(classes: ModelClasses, space: LabelSpace, data: str, why: str) -> str:
    shown = f" ({', '.join(classes.names[:3])}, ...)" if classes.names else ""
    return (
        f"{classes.model}: has {classes.count} classes{shown}, {data} has {space.num_classes}; they cannot be "
        f"matched: {why}; give the data set that it was made for, or a table, 'name or number: name in the data', by "
        "--classes FILE"
    )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:_LISTED]) + (f" and {len(names) - _LISTED} more" if len(names) > _LISTED else "")
