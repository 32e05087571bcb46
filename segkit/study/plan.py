"""Reads study files: variants and seeds, and the folder of each run.

recipe: camvid/fcn_resnest14_tiny          # for variants that name none
overrides: {trainer.max_epochs: 12}        # options of `segkit fit` for all variants
seeds: [0, 1, 2]
baseline: resnet
variants:
  resnet: {recipe: camvid/fcn_resnet14_tiny}
  radix4: {overrides: {model.network.init_args.encoder_args: {radix: 4}}}
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segkit.errors import InputError, did_you_mean
from segkit.files import parse_json, write_text
from segkit.plain_data import read_yaml
from segkit.recipes import read_recipe

RECORD, RESULT = "study.json", "result.json"


@dataclass(frozen=True)
class Run:
    """One training and its test: a variant's recipe, with options of `segkit fit` by dotted name, and a seed."""

    variant: str
    recipe: str
    overrides: Mapping[str, Any]
    seed: int

    def folder(self, output: Path) -> Path:
        """The run's folder in that of the study."""
        return output / self.variant / f"seed{self.seed}"

    def options(self) -> list[str]:
        """The options of `segkit fit`."""
        words = {key: value if isinstance(value, str) else json.dumps(value) for key, value in self.overrides.items()}
        return ["--config", self.recipe, f"--seed_everything={self.seed}", *(f"--{k}={v}" for k, v in words.items())]

    def claim(self, output: Path) -> None:
        """Record in the run's folder which run it is.

        Raises:
            InputError: The folder belongs to another run.
        """
        folder, recipe = self.folder(output), read_recipe(self.recipe)
        content = {"recipe": recipe.content, "data": recipe.data, "overrides": self.overrides, "seed": self.seed}
        text, record = json.dumps(content, indent=1, sort_keys=True, default=str), folder / RECORD
        there = parse_json(record.read_text(encoding="utf-8")) if record.is_file() else None
        if (folder / "config.yaml").is_file() and there != parse_json(text):  # before its start a run may still change
            raise InputError(
                f"{folder}: a run of another study, or of another recipe, override or seed; give another --output, or "
                "remove the folder to run it again"
            )
        write_text(record, text)


@dataclass(frozen=True)
class Study:
    """A study file.

    Attributes:
        name: The file's name without its ending.
        baseline: The variant that the others are compared with.
        variants: Names, in the file's order.
        runs: All runs; each seed for every variant before the next seed, so that an unfinished study can be compared.
    """

    name: str
    baseline: str
    variants: tuple[str, ...]
    runs: tuple[Run, ...]


def read_study(path: Path) -> Study:
    """Read a study file.

    Raises:
        InputError: It is not a study, a key is unknown, or a recipe or the baseline does not exist.
    """
    content = _checked(read_yaml(path), ("recipe", "overrides", "seeds", "baseline", "variants"), str(path))
    variants, seeds = content.get("variants"), content.get("seeds", [0, 1, 2])
    if not isinstance(variants, Mapping) or len(variants) < 2:
        raise InputError(f"{path}: variants: two or more are needed, as in `variants: {{wide: {{overrides: ...}}}}`")
    whole = isinstance(seeds, list) and all(type(seed) is int and seed >= 0 for seed in seeds)
    if not whole or not seeds or len(set(seeds)) != len(seeds):
        raise InputError(f"{path}: seeds: {seeds!r}; a list of different whole numbers from 0 is needed: [0, 1, 2]")
    names = tuple(map(str, variants))
    baseline = str(content.get("baseline", names[0]))
    if baseline not in names:
        hint = did_you_mean(baseline, names)
        raise InputError(f"{path}: baseline: no variant {baseline!r}; {hint}the variants are {', '.join(names)}")
    made = [_variant(f"{path}: variant {name}", content, str(name), given) for name, given in variants.items()]
    return Study(path.stem, baseline, names, tuple(Run(*variant, seed) for seed in seeds for variant in made))


def share(runs: Sequence[Run], shard: str) -> Sequence[Run]:
    """The runs of share `i/n`, of which i is 1 to n: every n-th from the i-th on.

    Raises:
        InputError: It is not such a pair of numbers.
    """
    found = re.fullmatch(r"([0-9]+)/([0-9]+)", shard)
    i, n = map(int, found.groups()) if found else (0, 0)
    if not 1 <= i <= n:
        raise InputError(f"--shard {shard}: not i/n with i from 1 to n, such as 2/4, the second of four shares")
    return runs[i - 1 :: n]


def _variant(where: str, study: Mapping[str, Any], name: str, given: Any) -> tuple[str, str, dict[str, Any]]:
    """The variant's name, recipe and overrides."""
    if not re.fullmatch(r"\w[\w.+-]*", name):
        raise InputError(f"{where}: a folder gets this name; use letters, digits and . + - _")
    given = _checked(given or {}, ("recipe", "overrides"), where)
    recipe = given.get("recipe") or study.get("recipe")
    if not isinstance(recipe, str):
        raise InputError(f"{where}: no recipe; name one for it, or for all variants at the top of the file")
    try:
        read_recipe(recipe)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    overrides = [one.get("overrides") or {} for one in (study, given)]
    if not all(isinstance(one, Mapping) for one in overrides):
        raise InputError(f"{where}: overrides: names and values are needed, as in {{trainer.max_epochs: 12}}")
    return name, recipe, {str(key): value for one in overrides for key, value in one.items()}


def _checked(given: Any, known: tuple[str, ...], where: str) -> Mapping[str, Any]:
    if not isinstance(given, Mapping):
        raise InputError(f"{where}: names and values are needed, of {', '.join(known)}")
    for key in given:
        if key not in known:
            raise InputError(f"{where}: no key {key!r}; {did_you_mean(str(key), known)}allowed: {', '.join(known)}")
    return given
