"""Ends the processes of a run when one of them has failed, so that none waits forever.

A process that raises tells the others why; one that is killed, or whose machine is lost, is noticed by its silence.
Either way all processes end with the reason; without this a collective operation would hang until its own timeout (10
to 30 minutes) and then blame the waiting process. The processes talk through a key-value store of their own
(torch.distributed.TCPStore on rank 0), which works whatever the main threads are doing and whatever the backend is.
"""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Callback
from torch.distributed import TCPStore  # type: ignore[attr-defined]  # documented, but not in __all__

_POLL = 1.0  # seconds between two checks
_GRACE = 5.0  # seconds for the main thread to end by itself once another process is known to have failed
_ERROR = "error"
_DONE = "done"


class OtherProcessError(Exception):
    """This process stops only because another one of the run failed, whose message this is."""


class Watchdog(Callback):
    """Ends this process with the message of another one of the run that has failed.

    Args:
        timeout: Seconds without a sign of life after which a process counts as lost.
    """

    def __init__(self, timeout: float = 60.0) -> None:
        self.timeout = timeout
        self._watch: _Watch | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Start watching once the processes are connected."""
        if self._watch is None and trainer.world_size > 1 and dist.is_initialized():
            self._watch = _Watch(_connect(self.timeout), trainer.global_rank, trainer.world_size, self.timeout)
            self._watch.start()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Tell the others that this process is done."""
        if self._watch is not None:
            self._watch.finish()
            self._watch = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Tell the others why this process fails.

        Raises:
            OtherProcessError: The exception only follows from the failure of another process.
        """
        watch, self._watch = self._watch, None
        if watch is None:
            return
        reason = watch.fail(exception)
        if reason is not None:
            raise OtherProcessError(f"rank {watch.rank} ends: {reason}") from exception


class _Watch(threading.Thread):
    """Sends heartbeats to the other processes and checks theirs."""

    def __init__(
        self, store: TCPStore, rank: int, world: int, timeout: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__(daemon=True, name="segkit-watchdog")
        self.store, self.rank, self.timeout, self.clock = store, rank, timeout, clock
        self._beats: dict[int, tuple[bytes, float]] = {other: (b"", clock()) for other in range(world) if other != rank}
        self._stop = threading.Event()
        self._lock = threading.Lock()  # one thread at a time talks to the store

    def run(self) -> None:
        """Check the other processes until told to stop."""
        beat = 0
        while not self._stop.wait(_POLL):
            beat += 1
            reason = self._look(str(beat))
            if reason is not None and not self._stop.wait(_GRACE):
                _say(f"rank {self.rank} ends: {reason}")
                os._exit(1)  # the main thread may be stuck in a collective operation

    def finish(self) -> None:
        """Stop watching and report that this process is done; rank 0, which holds the store, waits for the others."""
        self._stop.set()
        with self._lock, contextlib.suppress(dist.DistError, RuntimeError):
            self.store.set(f"beat/{self.rank}", _DONE)
        while self.rank == 0 and not self._all_done() and self._look(_DONE) is None:
            time.sleep(_POLL / 4)

    def fail(self, exception: BaseException) -> str | None:
        """Stop watching; if another process's failure is the cause, return its reason, else send this one's."""
        self._stop.set()
        reason = None
        if _follows(exception):
            reason = self._reason(time.monotonic() + self.timeout + 2 * _POLL)
        first = " ".join(f"{type(exception).__name__}: {exception}".split())
        with self._lock, contextlib.suppress(dist.DistError, RuntimeError):
            if reason is None:
                self.store.set(_ERROR, f"rank {self.rank} failed: {first}")
            self.store.set(f"beat/{self.rank}", _DONE)
        if self.rank == 0:
            self._serve()
        return reason

    def _serve(self) -> None:
        """Keep the store, which ends with this process, until the others have read why they end."""
        deadline = time.monotonic() + 2 * _GRACE
        while time.monotonic() < deadline and not self._all_done():
            time.sleep(_POLL / 4)

    def _all_done(self) -> bool:
        """Whether no other process still needs the store; called on rank 0."""
        keys = [f"beat/{other}" for other in self._beats]
        with self._lock:
            return all(self.store.check([key]) and self.store.get(key) == _DONE.encode() for key in keys)

    def _reason(self, deadline: float) -> str:
        beat = 0
        while time.monotonic() < deadline:
            beat -= 1
            reason = self._look(str(beat))
            if reason is not None:
                return reason
            time.sleep(_POLL / 4)
        return "the connection to another process was lost"

    def _look(self, beat: str) -> str | None:
        """The reason why this process must end; None if all processes are well."""
        try:
            with self._lock:
                self.store.set(f"beat/{self.rank}", beat)
                if self.store.check([_ERROR]):
                    return bytes(self.store.get(_ERROR)).decode()
                keys = [f"beat/{other}" for other in self._beats]
                found = {key: self.store.get(key) if self.store.check([key]) else b"" for key in keys}
        except (dist.DistError, RuntimeError):
            return "rank 0 is gone: it was killed, or its machine was lost"
        return self._missing({int(key.split("/")[1]): bytes(value) for key, value in found.items()})

    def _missing(self, beats: dict[int, bytes]) -> str | None:
        now = self.clock()
        for other, value in beats.items():
            last, since = self._beats[other]
            if value != last or value == _DONE.encode():
                self._beats[other] = (value, now)
            elif now - since > self.timeout:
                return f"rank {other} gave no sign of life for {self.timeout:g} s: it was killed or its machine is lost"
        return None


def _connect(timeout: float) -> TCPStore:
    """A store that rank 0 serves on a free port."""
    host = os.environ.get("MASTER_ADDR", "127.0.0.1")
    limit = timedelta(seconds=max(timeout, 10.0))
    master = dist.get_rank() == 0
    served = TCPStore(host, 0, None, True, limit, wait_for_workers=False) if master else None
    port: list[Any] = [served.port if served is not None else None]
    dist.broadcast_object_list(port)
    return served or TCPStore(host, port[0], None, False, limit, wait_for_workers=False)


def _say(text: str) -> None:
    sys.stderr.write(f"\nsegkit: {text}\n")
    sys.stderr.flush()


def _follows(exception: BaseException) -> bool:
    """Whether an exception only means that another process is gone."""
    text = str(exception).lower()
    return isinstance(exception, dist.DistError) or (
        isinstance(exception, RuntimeError)
        and any(word in text for word in ("connection closed by peer", "connection reset", "gloo", "nccl", "socket"))
    )
