"""The command line: `segkit COMMAND ...`. It imports no torch and no Lightning; each command imports what it needs."""

import importlib
import os
import sys
from collections.abc import Sequence
from contextlib import suppress

from segkit import __version__
from segkit.cli.interrupts import Interrupts
from segkit.cli.words import flush_streams, open_streams, say
from segkit.errors import InputError, did_you_mean, printable

# command      its file in segkit/cli    what it does
COMMANDS = {
    "fit":        ("lightning", "train a network on a data set"),
    "validate":   ("lightning", "score a checkpoint on the validation split"),
    "test":       ("lightning", "score a checkpoint on the test split, by a named protocol"),
    "predict":    ("lightning", "write label maps of a split as PNGs"),
    "infer":      ("infer", "segment images, folders of images and videos"),
    "explain":    ("explain", "show what a network attends to, and where two networks disagree"),
    "study":      ("study", "train variants of a recipe with several seeds, and tabulate what differs"),
    "benchmark":  ("benchmark.command", "compare models in one table; score or compare folders of label PNGs"),
    "report":     ("report.command", "one HTML file about runs, results and label maps, to look at and to send"),
    "reproduce":  ("reproduce", "the tables of the ResNeSt paper: published, measured, or what is missing"),
    "recipes":    ("recipes", "list the recipes that come with segkit, with published numbers"),
    "weights":    ("weights.command", "inspect or convert any toolkit's checkpoint; calibrate norms or confidence"),
    "export":     ("export", "write a checkpoint as a safetensors file with a model card"),
    "data":       ("data.command", "check a data set, count its classes, cache it decoded, browse it"),
    "submission": ("submission", "make and check uploads to the Cityscapes and ADE20K servers; official scores"),
    "doctor":     ("doctor", "check versions, machine, GPU kernels and data, and say what to fix"),
    "demo":       ("demo", "draw a small data set, train on it, test, and show the results, in minutes"),
}  # fmt: skip


def main(args: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code, even after `--help`.

    0 done, 1 partly failed, 2 wrong input or unwritable output, 130 interrupted, 141 output pipe closed.
    """
    arguments = list(sys.argv[1:] if args is None else args)
    open_streams()
    with Interrupts(ends=args is None) as interrupts:
        try:
            return _run(arguments, interrupts)
        except BaseException as error:
            if not interrupts.received and not isinstance(error, KeyboardInterrupt):
                return _code(arguments, error)
            interrupts.ignore()
            say(f"segkit {arguments[0]}: interrupted", to=sys.stderr)
            return 130
        finally:
            flush_streams()


def _code(arguments: list[str], error: BaseException) -> int:
    """The exit code for an exception that a command raised; an unexpected one is raised again."""
    if isinstance(error, SystemExit):  # argparse raises it after `--help`
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    if isinstance(error, InputError):
        return _refuse(arguments, error)
    if isinstance(error, BrokenPipeError):  # the reader of our output (`head`, a pager) has closed it
        return 141
    if isinstance(error, OSError):  # raised while a library wrote a file: a log, a figure
        from segkit.files import write_refusal  # here, because importing it takes time

        refusal = write_refusal(error)
        if refusal is not None:
            return _refuse(arguments, refusal)
    raise error


def _refuse(arguments: list[str], error: InputError) -> int:
    with suppress(InputError, BrokenPipeError):  # standard error may be full, too
        say(f"segkit {' '.join(arguments[:1])}: error: {printable(str(error))}", to=sys.stderr)
    return 2


def _run(arguments: list[str], interrupts: Interrupts) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        say(_help())
        return 0
    if arguments[0] in ("-V", "--version"):
        say(f"segkit {__version__}")
        return 0
    command = arguments[0]
    if command not in COMMANDS:
        hint = did_you_mean(command, COMMANDS)
        raise InputError(f"no such command; {hint}the commands are {', '.join(COMMANDS)}")
    _check_working_folder()
    if os.getcwd() not in sys.path:  # last, so that it shadows no installed module
        sys.path.append(os.getcwd())  # a class path may name a user's own module, as under `python -m segkit`
    room = COMMANDS[command][0]
    module = importlib.import_module(f"segkit.cli.{room}")
    interrupts.check()  # a module may have swallowed KeyboardInterrupt while it was imported
    # The Lightning commands share one file, which needs the command's name.
    code: int = module.main(arguments if room == "lightning" else arguments[1:])
    return code


def _check_working_folder() -> None:
    try:
        os.getcwd()
    except FileNotFoundError:
        raise InputError("the working folder no longer exists; change to one that does") from None


def _help() -> str:
    rows = "\n".join(f"  {name:<11} {what}" for name, (_, what) in COMMANDS.items())
    return f"usage: segkit COMMAND ...\n\n{rows}\n\n`segkit COMMAND --help` lists its options. segkit {__version__}"
