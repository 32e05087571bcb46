"""`segkit data cache`: decode a data set once; verify and list existing caches."""

import argparse
import sys
from pathlib import Path

from segkit.bars import Bar
from segkit.cli.words import say, say_above_bar
from segkit.data.cache.cache import Cache, find_cache, other_caches
from segkit.data.cache.writing import make_cache
from segkit.data.layout.base import Layout, Sample
from segkit.errors import InputError

OWN_DATA_OPTIONS = ()


def check_options(options: argparse.Namespace) -> None:
    """Do nothing: the parser has already checked all options."""


def run(options: argparse.Namespace, layout: Layout) -> int:
    """Make the missing caches, or verify or list the existing ones.

    Returns:
        0: done. 1: a cache is missing or damaged (with --verify or --list).

    Raises:
        InputError: The command or an image is wrong, or the disk is full.
    """
    code = 0
    for split in options.split or ["train", "val"]:
        samples = layout.find_samples(split)
        if options.verify:
            code |= _verify(options.cache_dir, layout, split, samples)
        elif options.list:
            cache = find_cache(options.cache_dir, layout, split, samples)
            code |= _show(cache, f"{layout.title} {split}", options.cache_dir)
        else:
            cache = make_cache(options.cache_dir, layout, split, samples, options.workers, say_above_bar)
            _show(cache, f"{layout.title} {split}", options.cache_dir)
        for folder, size in other_caches(options.cache_dir, layout, split, samples).items():
            kind = "unfinished cache" if folder.suffix == ".part" else "cache"
            say(f"{folder}: {size / 1e9:.2f} GB, {kind} of other files, labels or options of this data; may be removed")
    return code


def _verify(cache_dir: Path, layout: Layout, split: str, samples: list[Sample]) -> int:
    """Compare all checksums and name every damaged image."""
    try:
        cache = find_cache(cache_dir, layout, split, samples)
    except InputError as error:
        say(error)
        return 1
    if cache is None:
        say(f"{cache_dir}: no cache of {layout.title} {split} as it is now; `segkit data cache` makes one")
        return 1
    damaged = 0
    for position in Bar(range(len(samples)), f"verify {layout.title} {split}", unit="image"):
        try:
            cache.verify([position])
        except InputError as error:
            say_above_bar(error, sys.stdout)
            damaged += 1
    say(f"{cache.folder}: {len(samples)} images, {damaged or 'none'} damaged")
    return 1 if damaged else 0


def _show(cache: Cache | None, title: str, cache_dir: Path) -> int:
    if cache is None:
        say(f"{title}: no complete cache in {cache_dir}")
        return 1
    say(f"{title}: {len(cache.index.names)} images, {cache.index.num_bytes / 1e9:.2f} GB in {cache.folder}")
    return 0
