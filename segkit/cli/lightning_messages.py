"""What Lightning says, as a user of segkit should hear it."""

import logging
import os
import re
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
    """Leave out what Lightning says that no user of segkit can act on, and show the rest without control characters."""
    warnings.filterwarnings("ignore", message=f".*({'|'.join(_IDLE_WARNINGS)})")
    for name in _LOGGERS:
        logging.getLogger(name).addFilter(_is_for_the_user)
    threading.excepthook = _of_a_thread


_LOGGERS = (
    "lightning_fabric.utilities.rank_zero",
    "lightning_fabric.utilities.seed",
    "pytorch_lightning.accelerators.cuda",
    "pytorch_lightning.trainer.connectors.checkpoint_connector",
    "pytorch_lightning.utilities.rank_zero",  # segkit's own words go through this one, too
)
_IDLE_LINES = re.compile(
    r"\W*(GPU available|TPU available|Seed set to|LOCAL_RANK: |You are using a CUDA device|Using \w+ Automatic Mixed"
    r"|Loading `train_dataloader` to|`weights_only` was not set|`Trainer.fit` stopped: `max_"
    r"|`Trainer\(.*was configured so|Restor(ing|ed all) states|Loaded model weights|.*Tip:)"
)
_IDLE_WARNINGS = (
    "LightningCLI's args parameter",
    "isinstance.treespec",
    "does not have many workers",
    "The dirpath has changed",
    "Checkpoint directory .* exists and is not empty",
    "Experiment logs directory .* exists and is not empty",
    "recommended to use `self.log.*sync_dist=True",  # all processes log the same: scores of the summed matrix
    "Be aware that when using `ckpt_path`",  # callbacks of `fit`, which no other command has
    "your dataloader is not resumable",  # `ExactResume` resumes at the next batch
    r"module\(s\) in eval mode at the start",  # norms that --model.norm_eval keeps fixed
)


def _is_for_the_user(record: logging.LogRecord) -> bool:
    """Also escapes what in the record's lines could steer a terminal."""
    message = record.getMessage()
    record.msg, record.args = "\n".join(map(printable, message.split("\n"))), ()
    return _IDLE_LINES.match(message) is None


def _of_a_thread(uncaught: threading.ExceptHookArgs) -> None:
    """Leave out a full disk's traceback: TensorBoard's thread hands the error on to the next event that is logged."""
    if uncaught.exc_value is None or write_refusal(uncaught.exc_value) is None:
        _thread_hook(uncaught)
