"""A Lightning callback that ends its own process, as the environment says: for tests of what a run survives."""

import os
import signal

import pytorch_lightning as pl


class Killed(BaseException):
    """In the place of a SIGKILL, where the process must live on: no handler of the run may do anything about it."""


class Interrupt(pl.Callback):
    """In step $INTERRUPT_AT (of rank $INTERRUPT_RANK, if given) sends $INTERRUPT_SIGNAL, or raises.

    $INTERRUPT_IN: "step" (where none is given), "logged" (the step is done, its losses are logged), "validation" (the
    one behind so many steps), "validated" (it is done, its best checkpoint is not written), "ended" (the
    training is, after so many steps).
    """

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        self._interrupt("step", trainer, trainer.global_step)

    def on_validation_start(self, trainer, pl_module) -> None:
        self._interrupt("logged", trainer, trainer.global_step - 1)

    def on_validation_batch_start(self, trainer, *args) -> None:
        self._interrupt("validation", trainer, trainer.global_step - 1)

    def on_validation_end(self, trainer, pl_module) -> None:
        self._interrupt("validated", trainer, trainer.global_step - 1)

    def on_train_end(self, trainer, pl_module) -> None:
        self._interrupt("ended", trainer, trainer.global_step)

    def _interrupt(self, where, trainer, step) -> None:
        rank = os.environ.get("INTERRUPT_RANK")
        if os.environ.get("INTERRUPT_IN", "step") != where or trainer.sanity_checking:
            return
        if os.environ.get("INTERRUPT_AT") != str(step) or rank not in (None, str(trainer.global_rank)):
            return
        name = os.environ["INTERRUPT_SIGNAL"]
        if name == "raise":
            raise ValueError("the disk of this machine is on fire")
        if name == "killed":
            raise Killed
        os.kill(os.getpid(), getattr(signal, name))
