"""Running a function, or a command of segkit, in several processes that are connected by gloo."""

import multiprocessing
import os
import socket
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch


def run_function(world: int, function: Callable[..., Any], *arguments: Any, folder: Path, timeout: float = 300) -> list:
    """What `function(rank, world, *arguments)` returns in each of `world` connected processes.

    It is a function of a module, and what it returns is made of tensors and plain data.
    """
    port = _free_port()
    processes = start(world, _call, [(rank, world, port, function, arguments, str(folder)) for rank in range(world)])
    codes = join(processes, timeout)
    said = "\n".join(path.read_text() for path in sorted(folder.glob("rank*.txt")))
    assert codes == [0] * world, f"exit codes {codes}\n{said}"
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(world)]


def start_command(
    world: int, arguments: Sequence[str], log: Path, environment: Mapping[str, str] | None = None
) -> list[BaseProcess]:
    """`segkit ARGUMENTS` in `world` processes as torchrun starts them; what rank r says goes to `log.r`."""
    port = _free_port()
    ranks = [(rank, world, port, list(arguments), str(log), dict(environment or {})) for rank in range(world)]
    return start(world, _command, ranks)


def run_command(world: int, arguments: Sequence[str], log: Path, timeout: float = 300) -> None:
    """Run a command and demand that all processes succeed."""
    codes = join(start_command(world, arguments, log), timeout)
    assert codes == [0] * world, f"exit codes {codes}\n{said(log)}"


def said(log: Path) -> str:
    """The end of what the processes of a command have said."""
    return "\n".join(f"--- {p.name}\n{p.read_text()[-3000:]}" for p in sorted(log.parent.glob(f"{log.name}.*")))


def start(world: int, target: Callable[..., None], arguments: Sequence[tuple[Any, ...]]) -> list[BaseProcess]:
    """Start processes that share one import of torch, Lightning and segkit."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["segkit.cli.lightning"])
    processes: list[BaseProcess] = [context.Process(target=target, args=arguments[rank]) for rank in range(world)]
    for process in processes:
        process.start()
    return processes


def join(processes: Sequence[BaseProcess], timeout: float) -> list[int | None]:
    """Exit codes; None of a process that had to be killed because it did not end in time."""
    deadline = time.monotonic() + timeout
    codes = []
    for process in processes:
        process.join(timeout=max(0.0, deadline - time.monotonic()))
        codes.append(process.exitcode)
        if process.exitcode is None:
            process.kill()
    return codes


def trainer(world: int, sync: bool = True, **options: Any) -> Any:
    """A `pl.Trainer` for one of `world` connected processes that neither writes nor says anything."""
    import pytorch_lightning as pl  # here, as most tests that start processes need no Lightning themselves
    from pytorch_lightning.strategies import DDPStrategy

    from segkit.training.network import SyncBatchNormPlugin

    quiet = {f"enable_{name}": False for name in ("checkpointing", "progress_bar", "model_summary")}
    many: dict[str, Any] = {"strategy": DDPStrategy(process_group_backend="gloo")} if world > 1 else {}
    if sync and world > 1:
        many["plugins"] = [SyncBatchNormPlugin()]
    own = {"accelerator": "cpu", "devices": world, "logger": False, "use_distributed_sampler": False}
    return pl.Trainer(**own, **quiet, **many, **options)


def _environment(rank: int, world: int, port: int) -> dict[str, str]:
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "MASTER_PORT": port}
    return {name: str(value) for name, value in ranks.items()} | {
        "MASTER_ADDR": "127.0.0.1",
        "TORCHELASTIC_RUN_ID": "test",
    }


def _call(
    rank: int, world: int, port: int, function: Callable[..., Any], arguments: Sequence[Any], folder: str
) -> None:
    os.environ |= _environment(rank, world, port)
    torch.set_num_threads(1)
    if world > 1:
        torch.distributed.init_process_group("gloo")
    try:
        torch.save(function(rank, world, *arguments), Path(folder) / f"rank{rank}.pt")
    except BaseException:
        (Path(folder) / f"rank{rank}.txt").write_text(traceback.format_exc())
        raise
    if world > 1:
        torch.distributed.destroy_process_group()


def _command(rank: int, world: int, port: int, arguments: list[str], log: str, environment: Mapping[str, str]) -> None:
    from segkit.cli import main
    from segkit.training.views import curves

    plain: Any = curves  # they take longer to draw than these trainings last
    plain.plot_curves = plain.plot_class_iou = lambda *_: None
    os.environ |= _environment(rank, world, port) | environment if world > 1 else environment
    torch.set_num_threads(1)
    with open(f"{log}.{rank}", "w") as file:
        os.dup2(file.fileno(), 1), os.dup2(file.fileno(), 2)
        raise SystemExit(main(arguments))


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
