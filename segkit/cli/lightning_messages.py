"""What Lightning says, as a user of segkit should hear it."""

import logging
import threading
import warnings

from lightning_fabric.utilities.exceptions import MisconfigurationException

from segkit.errors import InputError, printable
from segkit.files import write_refusal


def input_error(error: BaseException) -> InputError | None:
    """The `InputError` behind what jsonargparse wrapped, or Lightning's own complaint about the trainer's options."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, InputError):
            return cause
        cause = cause.__cause__
    return (
        InputError("trainer: " + " ".join(str(error).split())) if isinstance(error, MisconfigurationException) else None
    )


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
