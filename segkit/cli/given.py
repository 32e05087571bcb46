"""What is read from a Lightning command line before it is parsed: recipes, the run's folder, and a checkpoint."""

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from segkit.cli.data.source import data_value
from segkit.errors import InputError
from segkit.paths import is_exported
from segkit.plain_data import read_yaml
from segkit.recipes import find_recipe
from segkit.training.guards.checkpoints import newest_checkpoint
from segkit.training.run_folder import CHECKPOINTS, CONFIG, has_not_begun, newest_run, next_run


def named(args: Sequence[str], name: str) -> str | None:
    """The last value of an option on the command line or in the config files that it names.

    Args:
        args: The command and its options.
        name: Name of the option, without dashes.

    Raises:
        InputError: A config file is absent or not YAML.
    """
    found = None
    for option, following in zip(args, [*args[1:], ""], strict=False):  # if there are no args, the second one is longer
        given, equals, rest = option.partition("=")
        value = rest if equals else following
        if given == f"--{name}":
            found = value
        elif given in ("-c", "--config") and value:
            content = read_yaml(find_recipe(value))
            for part in name.split("."):
                content = content.get(part) if isinstance(content, dict) else None
            found = content or found
    return None if found in (None, "", "null") else found


def with_recipes(args: Sequence[str]) -> list[str]:
    """The command line with names of recipes replaced by paths, names of data sets by data modules, and `--model FILE`.

    Raises:
        InputError: `--config` names neither a file nor a recipe, or has no value, or `--data` names no data set.
    """
    found = list(args)
    for place, (option, following) in enumerate(zip(args, [*args[1:], ""], strict=False)):
        name, equals, rest = option.partition("=")
        value = rest if equals else following
        if name == "--network":  # the other commands' name of this option
            found[place] = f"--model.network{equals}{rest}"
        if name == "--model" and is_exported(
            value
        ):  # a file in place of a checkpoint; otherwise a config of the module
            found[place] = f"--ckpt_path{equals}{rest}"
        if name in ("-c", "--config") and (not value or value.startswith("--")):
            raise InputError(f"{name}: no recipe behind it; give a file or a name (`segkit recipes` lists them)")
        if value and name in ("-c", "--config", "--data"):
            resolved = data_value(value) if name == "--data" else str(find_recipe(value))
            found[place if equals else place + 1] = f"{name}={resolved}" if equals else resolved
            folder = str(Path(resolved).resolve().parent)
            if name != "--data" and folder not in sys.path:  # a recipe may name a module that lies beside it
                sys.path.append(folder)
    return found


def with_run(args: Sequence[str]) -> list[str]:
    """The command line of `fit` with the run's folder filled in, and `--ckpt_path last` replaced by a path.

    All processes of a run must write to one folder, so it is chosen before they start. `last` is the newest complete
    checkpoint in `--run_dir`, or in the newest run under runs/; without `--config`, that run's `config.yaml` is used. A
    run that was stopped before its first step starts again. A job that SLURM requeues resumes by itself.

    Raises:
        InputError: There is no run to resume from, or it has no checkpoint.
    """
    if not args or args[0] != "fit" or any(re.fullmatch(r"-h|--(.+\.)?help(=.*)?", arg) for arg in args):
        return list(args)
    checkpoint, given = named(args, "ckpt_path"), named(args, "run_dir")
    run = Path(given or (newest_run() if checkpoint == "last" else next_run()))
    # SLURM runs a job again with the same command line.
    again = os.environ.get("SLURM_RESTART_COUNT", "0") != "0" and any((run / CHECKPOINTS).glob("*.ckpt"))
    if checkpoint == "last" or (checkpoint is None and again):
        found = None if has_not_begun(run) else str(newest_checkpoint(run / CHECKPOINTS))
        config = [] if any(arg.split("=")[0] in ("-c", "--config") for arg in args) else [str(run / CONFIG)]
        options = [x for path in config for x in ("--config", path)]
        args = [args[0], *options, *args[1:], "--ckpt_path", found or "null"]
    return [*args, "--run_dir", str(run)]
