"""A Lightning callback that ends its own process, as the environment says: for tests of what a run survives."""

import os
import signal

import pytorch_lightning as pl


class Interrupt(pl.Callback):
    """At the end of step $INTERRUPT_AT (of rank $INTERRUPT_RANK, if given) sends $INTERRUPT_SIGNAL, or raises."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        rank = os.environ.get("INTERRUPT_RANK")
        if os.environ.get("INTERRUPT_AT") != str(trainer.global_step) or rank not in (None, str(trainer.global_rank)):
            return
        name = os.environ["INTERRUPT_SIGNAL"]
        if name == "raise":
            raise ValueError("the disk of this machine is on fire")
        os.kill(os.getpid(), getattr(signal, name))
