"""The one exception that segkit raises for what a user gave: no traceback is needed to understand it."""


class InputError(ValueError):
    """Something the user gave is wrong.

    The message is one line: what was wrong, where, what is allowed, what to do. The command line prints it
    without a traceback and ends with exit code 2; from Python it is a `ValueError`.
    """
