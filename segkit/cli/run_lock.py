"""One training at a time in a run's folder."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from pytorch_lightning.utilities import rank_zero_warn

from segkit.errors import InputError
from segkit.files import remove_left_behind

# Seconds. Loader workers share the lock of the process that started them, and outlive its SIGKILL by five.
WAIT = 10.0

# Where launchers say which of a training's processes this is, before there is a Trainer that knows.
_RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")


@contextmanager
def run_lock(run: Path) -> Iterator[None]:
    """Hold `<run>/.lock`, which ends with the process, however that ends; then remove what a killed run left half done.

    Of several processes of a training the first one holds it. On a file system without locks a warning says so.

    Raises:
        InputError: Another training holds it.
    """
    if any(os.environ.get(name, "0") != "0" for name in _RANKS):
        yield
        return
    lock = FileLock(run / ".lock", timeout=WAIT)
    try:
        run.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise InputError(
            f"--run_dir {run}: another `segkit fit` is writing here; wait for its end, or give another folder, or none "
            "for runs/<n>"
        ) from None
    except (OSError, NotImplementedError) as error:
        if not os.access(run, os.W_OK):  # which whoever writes there says better
            raise
        rank_zero_warn(f"{run}: this file system has no locks ({error}); see to it that no other fit writes here")
    for folder in (run, run / "checkpoints", run / "validation"):
        remove_left_behind(folder, all_of_them=lock.is_locked)
    try:
        yield
    finally:
        lock.release()
