"""What Lightning says, as a user of segkit should hear it."""

import logging
import os
import threading
import traceback
import warnings
from collections.abc import Iterable

from segkit.errors import InputError, printable
from segkit.files import write_refusal


def input_error(error: BaseException) -> InputError | None:
    """The `InputError` behind what jsonargparse wrapped, or Lightning's own complaint about the trainer's options.

    A mistake in segkit, in Lightning, or in a callback or logger of the user's is neither: it keeps its traceback.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, InputError):
            return cause
        cause = cause.__cause__
    return InputError("trainer: " + " ".join(str(error).split())) if _is_complaint(error) else None


def _is_complaint(error: BaseException) -> bool:
    """Whether Lightning refuses what it was given, and it was given it by the command line.

    That is a `raise` statement in Lightning's own code, between which and the command line only Lightning and
    jsonargparse were at work: what a callback, a logger or a module asks of Lightning in vain is a mistake in those.
    """
    frames = traceback.extract_tb(error.__traceback__)
    if not frames or not (frames[-1].line or "").startswith("raise ") or not _is_in(frames[-1].filename, _LIGHTNING):
        return False
    return all(_is_in(frame.filename, _MACHINERY) or frame.name in _LOOKS for frame in frames)


_LIGHTNING = ("pytorch_lightning", "lightning_fabric", "lightning_utilities")
_MACHINERY = (*_LIGHTNING, "jsonargparse", f"segkit{os.sep}cli", "contextlib.py", "_contextlib.py")
_LOOKS = ("configure_optimizers", "batch_size")  # segkit's, through which Lightning first looks at the loaders


def _is_in(filename: str, places: Iterable[str]) -> bool:
    return any(f"{os.sep}{place}" in filename for place in places)


_thread_hook = threading.excepthook


def quiet() -> None:
    """Leave out what Lightning says that no user of segkit can act on."""
    for message in (
        ".*LightningCLI's args parameter.*",
        ".*isinstance.treespec.*",
        ".*does not have many workers.*",
        ".*The dirpath has changed.*",
        ".*Checkpoint directory .* exists and is not empty.*",
        ".*Experiment logs directory .* exists and is not empty.*",
        ".*recommended to use `self.log.*sync_dist=True.*",  # all processes log the same: scores of the summed matrix
    ):
        warnings.filterwarnings("ignore", message=message)
    for name in ("pytorch_lightning.utilities.rank_zero", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).addFilter(_is_no_advertisement)
        logging.getLogger(name).addFilter(_printable)
    threading.excepthook = _of_a_thread


def _is_no_advertisement(record: logging.LogRecord) -> bool:
    return "Tip:" not in record.getMessage()


def _printable(record: logging.LogRecord) -> bool:
    """Also: the record's lines as they may be shown on a terminal."""
    record.msg, record.args = "\n".join(map(printable, record.getMessage().split("\n"))), ()
    return True


def _of_a_thread(uncaught: threading.ExceptHookArgs) -> None:
    """Leave out a full disk's traceback: TensorBoard's thread hands the error on to the next event that is logged."""
    if uncaught.exc_value is None or write_refusal(uncaught.exc_value) is None:
        _thread_hook(uncaught)
