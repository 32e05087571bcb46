"""argparse, but a wrong command line is an `InputError` of one line, as all that is wrong in segkit."""

import argparse
from typing import NoReturn

from segkit.errors import InputError


class Parser(argparse.ArgumentParser):
    """Raises `InputError` in place of printing the usage and ending."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong, and where the options are listed."""
        raise InputError(f"{message}; see `{self.prog} --help`")
