"""`segkit study`: trains and tests each variant with each seed in a process of its own, and tabulates the scores."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from segkit.cli.parser import Parser, Switch
from segkit.cli.words import say
from segkit.errors import InputError
from segkit.files import check_writable, write_json, write_text
from segkit.recipes import find_recipe
from segkit.study.plan import RESULT, Run, read_study, share

DESCRIPTION = """\
Train and test each variant of a study file with each of its seeds, by `segkit fit` and `segkit test` in processes of
their own, and write the table: mean, range, and the difference from the baseline with an interval paired over seeds.
The last checkpoint is tested. Finished runs are not run again; a stopped one resumes. On a cluster each job takes a
share, `--shard 2/4`, of a folder that all can read; the last job to finish, or `--table`, writes the whole table.

Options that depend on the machine are given here: --data.root, --data.cache_dir, --data.num_workers,
--trainer.accelerator, --trainer.devices. All others belong in the study file (docs/training.md)."""

_OF_THE_MACHINE = ("data.root", "data.cache_dir", "data.num_workers", "trainer.accelerator", "trainer.devices")
_LAUNCHERS = ("SLURM_", "TORCHELASTIC_", "RANK", "LOCAL_", "WORLD_SIZE", "GROUP_", "ROLE_", "MASTER_")


def main(args: Sequence[str]) -> int:
    """Run `segkit study`; see `--help`."""
    parser = Parser("segkit study", description=DESCRIPTION)
    parser.add_argument("study", metavar="STUDY.yaml", help="a study file, or the name of one that comes with segkit")
    parser.add_argument("--output", type=Path, help="the study's folder (default: runs/<name of the study>)")
    parser.add_argument("--shard", metavar="i/n", default="1/1", help="run only the i-th of n shares, i from 1")
    parser.add_argument("--table", action=Switch, help="run nothing; tabulate what is finished")
    for name in _OF_THE_MACHINE:
        parser.add_argument(f"--{name}", help="as of `segkit fit`")
    options = parser.parse_args(args)
    study = read_study(find_recipe(options.study))
    output = options.output or Path("runs") / study.name
    mine, failed = [] if options.table else share(study.runs, options.shard), []
    machine = [f"--{name}={value}" for name, value in vars(options).items() if name in _OF_THE_MACHINE and value]
    check_writable(output)
    for run in mine:
        run.claim(output)
    _check_options([run for run in mine if not (run.folder(output) / "config.yaml").is_file()], machine)
    for number, run in enumerate(mine, 1):
        start, name = time.perf_counter(), f"[{number}/{len(mine)}] {run.variant}, seed {run.seed}"
        if (run.folder(output) / RESULT).is_file():
            say(f"{name}: finished before")
            continue
        code, why = _fit_and_test(run, output, machine)
        if code in (130, 143, -signal.SIGTERM):  # -SIGTERM: stopped before it had installed its handler
            say(f"{name}: stopped; the same command resumes it")
            return code
        say(f"{name}: {why or 'done'}, {time.perf_counter() - start:.0f} s")
        failed += [run] if code else []
    from segkit.evaluation.plots import save_figure  # and with it NumPy and Matplotlib
    from segkit.study.table import RULE, figure, gather, table

    rows = gather(study, output)
    found = {row.name: row.to_dict() for row in rows}
    write_json(
        output / "table.json", {"study": study.name, "baseline": study.baseline, "rule": RULE, "variants": found}
    )
    write_text(output / "table.md", table(study, rows))
    save_figure(figure(study, rows), output / "table.png")
    say(f"\n{table(study, rows)}\n{output}/table.md, table.json, table.png")
    return 1 if failed else 0


def _fit_and_test(run: Run, output: Path, machine: list[str]) -> tuple[int, str]:
    """Train or resume, then test; return the exit code and, after a failure, the last line of the log."""
    folder = run.folder(output)
    checkpoints, config = folder / "checkpoints", folder / "config.yaml"
    fit = ["fit", "--ckpt_path", "last"]
    if not any(checkpoints.glob("*.ckpt")):  # a run killed before its first checkpoint starts again
        (folder / "metrics.csv").unlink(missing_ok=True)
        fit = ["fit", *run.options()]
    test = ["test", "--config", str(config), "--ckpt_path", str(checkpoints / "last.ckpt")]
    for step in [test] if (folder / "summary.json").is_file() else [fit, test]:
        log = folder / f"{step[0]}.log"
        code = _run([*step, "--run_dir", str(folder), *machine], log)
        if code:
            return code, f"failed: {_last_line(log)} ({log})"
    return 0, ""


def _check_options(runs: list[Run], machine: list[str]) -> None:
    """Let `segkit fit` parse each variant's options once, so that a misspelt one is found before hours of training."""
    for run in {run.variant: run for run in runs}.values():
        command = _command(["fit", *run.options(), *machine, "--print_config"])
        done = subprocess.run(command, env=_environment(), capture_output=True, text=True, check=False)
        if done.returncode:
            line = (done.stderr.strip().splitlines() or ["no message"])[-1].removeprefix("segkit fit: error: ")
            raise InputError(f"variant {run.variant}: {line}")


def _run(arguments: list[str], log: Path) -> int:
    """Run a command and append its output to a file; SIGTERM, SIGUSR1 and Ctrl-C reach it, and it ends as usual."""
    stops = [getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name)]
    children: list[subprocess.Popen[bytes]] = []

    def hand_on(*_: object) -> None:
        for child in children:
            child.terminate()

    before = {stop: signal.signal(stop, hand_on) for stop in stops}
    try:
        with log.open("a", encoding="utf-8") as words:
            children += [subprocess.Popen(_command(arguments), env=_environment(), stdout=words, stderr=words)]
        return children[0].wait()
    except KeyboardInterrupt:
        for child in children:
            child.wait()  # Ctrl-C reached it, too; it is writing its checkpoint
        raise
    finally:
        for stop, handler in before.items():
            signal.signal(stop, handler)


def _command(arguments: list[str]) -> list[str]:
    return [sys.executable, "-m", "segkit", *arguments]


def _environment() -> dict[str, str]:
    """The environment without a launcher's variables: each run is a training of its own, not a rank of one."""
    return {name: value for name, value in os.environ.items() if not name.startswith(_LAUNCHERS)}


def _last_line(log: Path) -> str:
    return (log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["no message"])[-1]
