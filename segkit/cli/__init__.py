"""The command line: `segkit COMMAND ...`. It imports neither torch nor Lightning; a command imports what it needs."""

import importlib
import sys
from collections.abc import Sequence
from contextlib import suppress

from segkit import __version__
from segkit.cli.words import flush_streams, open_streams, say
from segkit.errors import InputError, did_you_mean, printable

# command      its file in segkit/cli    what it does
COMMANDS = {
    "fit":        ("lightning", "train a network on a data set"),
    "validate":   ("lightning", "score a checkpoint on the validation split"),
    "test":       ("lightning", "score a checkpoint on the test split, by a named protocol"),
    "predict":    ("lightning", "write label maps of a split as PNGs"),
    "infer":      ("infer", "segment pictures or folders of pictures"),
    "benchmark":  ("benchmark.command", "compare models in one table; score or compare folders of label PNGs"),
    "weights":    ("weights.command", "look into, or convert, any toolkit's checkpoint; recalibrate its batch norms"),
    "export":     ("export", "write a checkpoint as safetensors with a card that says all about it"),
    "data":       ("data.command", "check a data set, count its classes, decode it once, look at it"),
    "submission": ("submission", "make and check uploads for Cityscapes and ADE20K; official Cityscapes scores"),
    "demo":       ("demo", "make a small data set, train, test and draw the results, in minutes"),
}  # fmt: skip


def main(args: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code.

    0 done, 1 partly failed, 2 wrong input or an output that cannot be written, 130 interrupted, 141 nobody reads on.
    """
    arguments = list(sys.argv[1:] if args is None else args)
    open_streams()
    try:
        return _run(arguments)
    except InputError as error:
        return _refuse(arguments, error)
    except KeyboardInterrupt:
        say(f"segkit {arguments[0]}: interrupted", to=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever read our output (`head`, a pager) has seen enough
        return 141
    except OSError as error:  # of a library's file: a log, a figure
        from segkit.files import write_refusal  # only here, as what it imports takes time

        refusal = write_refusal(error)
        if refusal is None:
            raise
        return _refuse(arguments, refusal)
    finally:
        flush_streams()


def _refuse(arguments: list[str], error: InputError) -> int:
    with suppress(InputError, BrokenPipeError):  # standard error may be full, too
        say(f"segkit {' '.join(arguments[:1])}: error: {printable(str(error))}", to=sys.stderr)
    return 2


def _run(arguments: list[str]) -> int:
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
    room = COMMANDS[command][0]
    module = importlib.import_module(f"segkit.cli.{room}")
    # The Lightning commands share one file, which is told which of them it is.
    code: int = module.main(arguments if room == "lightning" else arguments[1:])
    return code


def _help() -> str:
    rows = "\n".join(f"  {name:<11} {what}" for name, (_, what) in COMMANDS.items())
    return f"usage: segkit COMMAND ...\n\n{rows}\n\n`segkit COMMAND --help` lists its options. segkit {__version__}"
