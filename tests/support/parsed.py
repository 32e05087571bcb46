"""The options of a Lightning command, as segkit parses them; nothing is built."""

from typing import Any

import pytest

from segkit.cli.given import with_recipes
from segkit.cli.lightning import SegmentationCLI


def parse(*arguments: str, command: str = "fit") -> Any:
    return stopped_before_building(SegmentationCLI, *arguments, command=command)


def stopped_before_building(cli: type[SegmentationCLI], *arguments: str, command: str = "fit") -> Any:
    """What this command line parses to; of each kind of network there is one."""

    class Parsed(cli):  # type: ignore[misc, valid-type]
        def before_instantiate_classes(self) -> None:
            raise StopIteration(self.config[self.config.subcommand])

    with pytest.raises(StopIteration) as stopped:
        Parsed(None, with_recipes([command, *arguments]), typed=[command])  # as `segkit.cli.lightning.main` does
    return stopped.value.value
