"""Commands that a signal is sent to at a random moment."""

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gloo

_BEGUN = ".begun"  # written once the command has begun


def shoot(arguments: Sequence[str], log: Path, signals: Sequence[tuple[float, int]]) -> tuple[int, str, float]:
    """Run a command and send it signals, each so many seconds after its begin or the one before.

    Returns:
        Exit code, as a shell has it, what it said, and the seconds that it took.
    """
    begun = log.with_suffix(_BEGUN)
    begun.unlink(missing_ok=True)
    (process,) = gloo.start(1, _command, [(list(arguments), str(log), str(begun))])
    while process.is_alive() and not begun.exists():
        time.sleep(0.005)
    begin = time.monotonic()
    for seconds, signum in signals:
        process.join(seconds)
        if process.is_alive() and process.pid is not None:
            os.kill(process.pid, signum)
    (code,) = gloo.join([process], timeout=90)
    assert code is not None, f"hangs: {arguments[0]}\n{gloo.said(log)}"
    return (code if code >= 0 else 128 - code), gloo.said(log), time.monotonic() - begin


def _command(arguments: list[str], log: str, begun: str) -> None:
    import torch

    from segkit import cli
    from segkit.training.views import curves

    torch.set_num_threads(1)
    plain: Any = curves  # curves take longer to draw than these trainings last
    plain.plot_curves = plain.plot_class_iou = lambda *_: None
    with open(f"{log}.0", "w") as file:
        os.dup2(file.fileno(), 1), os.dup2(file.fileno(), 2)
        interrupts = cli.Interrupts  # from where on a command answers Ctrl-C

        class Begun(interrupts):  # type: ignore[misc,valid-type]
            def __enter__(self) -> Any:
                entered = super().__enter__()
                Path(begun).touch()
                return entered

        plain = cli
        plain.Interrupts = Begun
        raise SystemExit(cli.main(arguments))
