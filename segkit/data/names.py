"""The data sets by their names on the command line, which are those of their files in `segkit.data.sets`."""

import importlib
import inspect
import pkgutil
from functools import cache

from segkit.data import sets
from segkit.data.datamodule import SegmentationDataModule


@cache
def data_sets() -> dict[str, type[SegmentationDataModule]]:
    """The data module of each data set by name: "pascal-context" is the one in `sets/pascal_context.py`."""
    found: dict[str, type[SegmentationDataModule]] = {}
    for entry in pkgutil.iter_modules(sets.__path__):
        module = importlib.import_module(f"{sets.__name__}.{entry.name}")
        for value in vars(module).values():
            is_own = inspect.isclass(value) and value.__module__ == module.__name__
            if is_own and issubclass(value, SegmentationDataModule):
                found[entry.name.replace("_", "-")] = value
    return found
