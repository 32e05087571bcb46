"""The options of a Lightning command, as segkit parses them; nothing is built."""

from typing import Any

import pytest

from segkit.cli.given import with_recipes
from segkit.cli.lightning import SegmentationCLI


class Parsed(SegmentationCLI):
    """Parses and stops before anything is built."""

    def before_instantiate_classes(self) -> None:
        raise StopIteration(self.config[self.config.subcommand])


def parse(*arguments: str, command: str = "fit") -> Any:
    with pytest.raises(StopIteration) as stopped:
        Parsed(None, with_recipes([command, *arguments]), typed=[command])  # as `segkit.cli.lightning.main` does
    return stopped.value.value
