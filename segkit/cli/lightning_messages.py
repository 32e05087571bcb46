"""Lightning's messages, reduced to those that a user of segkit can act on."""

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
    """The `InputError` that jsonargparse wrapped, or one made of Lightning's complaint about the trainer's options.

    A bug in segkit, in Lightning, or in a user's callback or logger is neither, and keeps its traceback.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, InputError):
            return cause
        cause = cause.__cause__
    return InputError("trainer: " + " ".join(str(error).split())) if _is_complaint(error) else None


def _is_complaint(error: BaseException) -> bool:
    """Whether Lightning refused an option of the command line.

    The error then comes from a `raise` statement in Lightning's own code that only frames of Lightning and
    jsonargparse lead to: an error raised on the way through a callback, a logger or a module is a bug in those.
    """
    frames = traceback.extract_tb(error.__traceback__)
    if not frames or not (frames[-1].line or "").startswith("raise ") or not _is_in(frames[-1].filename, _LIGHTNING):
        return False
    return all(_is_in(frame.filename, _MACHINERY) or frame.name in _LOOKS for frame in frames)


_LIGHTNING = ("pytorch_lightning", "lightning_fabric", "lightning_utilities")
_MACHINERY = (*_LIGHTNING, "jsonargparse", f"segkit{os.sep}cli", "contextlib.py", "_contextlib.py")
_LOOKS = ("configure_optimizers", "batch_size")  # segkit's functions through which Lightning first looks at the loaders


def _is_in(filename: str, places: Iterable[str]) -> bool:
    return any(f"{os.sep}{place}" in filename for place in places)


_thread_hook = threading.excepthook


def quiet() -> None:
    """Drop messages of Lightning that no user of segkit can act on, and show the rest without control characters."""
    warnings.filterwarnings("ignore", message=f".*({'|'.join(_IDLE_WARNINGS)})")
    for name in _LOGGERS:
        logging.getLogger(name).addFilter(_is_for_the_user)
    threading.excepthook = _of_a_thread


_LOGGERS = (
    "lightning_fabric.utilities.rank_zero",
    "lightning_fabric.utilities.seed",
    "pytorch_lightning.accelerators.cuda",
    "pytorch_lightning.trainer.connectors.checkpoint_connector",
    "pytorch_lightning.utilities.rank_zero",  # segkit's own messages pass through it, too
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
    "recommended to use `self.log.*sync_dist=True",  # all processes log the same scores, those of the summed matrix
    "Be aware that when using `ckpt_path`",  # the callbacks it lists belong to `fit` alone
    "your dataloader is not resumable",  # `ExactResume` resumes at the next batch
    r"module\(s\) in eval mode at the start",  # norms that --model.norm_eval keeps fixed
)


def _is_for_the_user(record: logging.LogRecord) -> bool:
    """Whether to show the record, whose control characters are escaped so that they cannot steer a terminal."""
    message = record.getMessage()
    record.msg, record.args = "\n".join(map(printable, message.split("\n"))), ()
    return _IDLE_LINES.match(message) is None


def _of_a_thread(uncaught: threading.ExceptHookArgs) -> None:
    """Drop the traceback of a full disk: TensorBoard's thread raises the error again at the next logged event."""
    if uncaught.exc_value is None or write_refusal(uncaught.exc_value) is None:
        _thread_hook(uncaught)
