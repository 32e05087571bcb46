"""Merges and drops classes of a data set, which makes a new label space."""

from collections.abc import Iterable, Mapping, Sequence

from segkit.errors import InputError, did_you_mean
from segkit.metadata.label_space import IGNORE_INDEX, LabelSpace


def class_ids(names: Iterable[str], class_names: Sequence[str], where: str) -> list[int]:
    """Train ids of classes that a user names.

    Args:
        names: Names of the classes.
        class_names: K names of the data set.
        where: The option, for messages.

    Raises:
        InputError: There is no such class, or one is named twice.
    """
    ids: list[int] = []
    for name in names:
        if name not in class_names:
            hint, known = did_you_mean(name, class_names), ", ".join(class_names)
            raise InputError(f"{where}: no such class {name!r}; {hint}the classes are {known}")
        if class_names.index(name) in ids:
            raise InputError(f"{where}: names the class {name!r} twice; name it once")
        ids.append(class_names.index(name))
    return ids


def left_out_ids(names: Iterable[str], class_names: Sequence[str]) -> tuple[int, ...]:
    """Train ids, sorted, of the classes that `--without` leaves out of means.

    Raises:
        InputError: There is no such class, or all are left out.
    """
    ids = class_ids(names, class_names, "--without")
    if len(ids) == len(class_names):
        raise InputError("--without: leaves out all classes; a mean needs one")
    return tuple(sorted(ids))


def regrouped(space: LabelSpace, merge: Mapping[str, Sequence[str]], ignore: Sequence[str]) -> LabelSpace:
    """The label space with classes merged and dropped.

    A merged class takes the place of the first of its classes and the colour of the first that is named. Pixels of
    dropped classes are ignored, like 255. The other classes keep their order.

    Args:
        space: The data set's label space.
        merge: The classes of each new one, whose name may be that of one of them.
        ignore: The classes to drop.

    Raises:
        InputError: There is no such class, one is named twice, a name would stand for two, or none is left.
    """
    class_ids([*ignore, *(name for group in merge.values() for name in group)], space.class_names, "merge and ignore")
    group_of = {name: group for group, names in merge.items() for name in names}
    for group, names in merge.items():
        if not names:
            raise InputError(f"merge: {group!r} is made of no class; name those that it joins")
        if group in space.class_names and group not in names:
            raise InputError(f"merge: {group!r} is a class that is not part of the group; add it, or rename the group")
    kept = [name for name in space.class_names if name not in ignore]
    names = tuple(dict.fromkeys(group_of.get(name, name) for name in kept))
    if not names:
        raise InputError("ignore: drops all classes; keep one")
    first = {name: merge[name][0] if name in merge else name for name in names}
    new_id = {
        old: names.index(group_of.get(name, name)) if name in kept else IGNORE_INDEX
        for old, name in enumerate(space.class_names)
    }
    palette = tuple(space.palette[space.class_names.index(first[name])] for name in names)
    return LabelSpace(names, palette, tuple(new_id.get(entry, entry) for entry in space.table))
