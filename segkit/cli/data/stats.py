"""`segkit data stats`: how often each class occurs, and the class weights that follow from it."""

import argparse

from segkit.cli.words import say
from segkit.data.band_statistics import band_statistics, band_table
from segkit.data.layout.base import Layout
from segkit.data.statistics import statistics, statistics_path, statistics_table
from segkit.errors import InputError
from segkit.files import check_new_file

OWN_DATA_OPTIONS = ()


def check_options(options: argparse.Namespace) -> None:
    """Refuse an output file that cannot be written, or that would have to hold several splits."""
    if options.output is not None:
        check_new_file(options.output, force=True)
        if len(options.split or ()) > 1:
            splits = " ".join(options.split)
            raise InputError(f"--output {options.output}: keeps one split; give one --split, not {splits}")


def run(options: argparse.Namespace, layout: Layout) -> int:
    """Print the statistics, counted now or read from an earlier count.

    Returns:
        0.

    Raises:
        InputError: The command or a mask is wrong.
    """
    for split in options.split or ["train"]:
        said: list[str] = []
        found = statistics(layout, split, options.output, options.workers, said.append)
        path = statistics_path(layout, split) if options.output is None else options.output
        say(f"{layout.title} {split}: {len(found.by_image)} masks")
        say(statistics_table(found))
        note = layout.label_space.note_of_absence(found.ids)
        if note is not None:
            say(f"warning: {note}")
        say(said[-1] if said else f"kept from an earlier count: {path}")
    if options.images or layout.bands is not None:
        say(f"bands of {layout.title} train, by which `--model.normalization data` normalises")
        say(band_table(band_statistics(layout, layout.bands, layout.bands, options.workers)))
    return 0
