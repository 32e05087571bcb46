"""A long list of images in parts of one size, and the manifest of those that are done, so that any stop is resumed.

The manifest is the folder `manifest` of the output: `run.json` says how the results are made, and each part that is
done has a line of JSON in a file of its own, `000000.json`, since a bucket cannot append to one. `cat manifest/0*`
is the whole of it. A line is written after the results of its part: what has no line does not count, and is made again.
"""

import json
import re
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice

from segkit.errors import InputError
from segkit.files import parse_json
from segkit.io.buckets import Bucket

FOLDER = "manifest"
RUN = f"{FOLDER}/run.json"

_LINE = re.compile(r"(\d{6,})\.json")


@dataclass(frozen=True)
class Part:
    """Neighbours in a list of images.

    Attributes:
        number: Its number among the parts.
        start: The number of its first image in the list.
        images: Their addresses.
    """

    number: int
    start: int
    images: tuple[str, ...]

    @property
    def name(self) -> str:
        """Its number in six digits or more."""
        return f"{self.number:06d}"

    @property
    def mark(self) -> str:
        """What tells its images from others."""
        return blake2b("\n".join(self.images).encode("utf-8", "surrogateescape"), digest_size=10).hexdigest()


def parts(images: Iterable[str], size: int) -> Iterator[Part]:
    """The parts of a list, of which one at a time is held; the last may be smaller than `size`."""
    rest, number = iter(images), 0
    while some := tuple(islice(rest, size)):
        yield Part(number, number * size, some)
        number += 1


class Manifest:
    """Which parts are done.

    Any number of processes with the same settings may write to one output: a part that two of them do is the same.

    Args:
        output: Where the results are.
        settings: Whatever they depend on.
        overwrite: Whether to begin anew.

    Raises:
        InputError: The output has results of other settings.
    """

    def __init__(self, output: Bucket, settings: Mapping[str, object], overwrite: bool = False) -> None:
        self._output = output
        mine = {"run": uuid.uuid4().hex, "settings": json.loads(json.dumps(settings, default=str))}
        text = json.dumps(mine, ensure_ascii=False, indent=2).encode("utf-8", "surrogateescape") + b"\n"
        if not output.write(RUN, text, only_new=not overwrite):
            theirs = self._run()
            other = sorted(k for k, v in mine["settings"].items() if theirs["settings"].get(k) != v)
            if other:
                raise InputError(
                    f"{output.address}: has results of other settings ({', '.join(other)}); give another --output, the "
                    "same settings, or --overwrite"
                )
            mine = theirs
        self._mine = mine["run"]

    def _run(self) -> dict[str, dict[str, object]]:
        data = self._output.get(RUN) or b""
        try:
            run = parse_json(data)
            if isinstance(run, dict) and isinstance(run.get("settings"), dict) and "run" in run:
                return run
        except ValueError:
            pass
        raise InputError(f"{self._output.at(RUN)}: damaged; begin anew with --overwrite, or give another --output")

    def failures(self, part: Part) -> Mapping[str, str] | None:
        """Why images of a part could not be done; None if the part is not done, or had other images."""
        data = self._output.get(f"{FOLDER}/{part.name}.json") or b""
        try:
            line = parse_json(data)
        except ValueError:
            return None
        is_done = isinstance(line, dict) and (line.get("run"), line.get("mark")) == (self._mine, part.mark)
        return line["failures"] if is_done and isinstance(line.get("failures"), dict) else None

    def add(self, part: Part, failures: Mapping[str, str]) -> None:
        """Note that the results of a part are written.

        Args:
            part: The part.
            failures: Why some of its images could not be done, by address.

        Raises:
            InputError: Another process has begun anew in this output.
        """
        if self._run()["run"] != self._mine:
            raise InputError(
                f"{self._output.address}: another process has begun anew in this output; let one of them work there"
            )
        ends = {"first": part.images[0], "last": part.images[-1], "count": len(part.images)}
        line = {"part": part.number, "run": self._mine, **ends, "mark": part.mark, "failures": dict(failures)}
        self._output.write(f"{FOLDER}/{part.name}.json", f"{json.dumps(line)}\n".encode())

    def beyond(self, last: int) -> list[str]:
        """The numbers of parts after the last one, of which a longer list has left lines."""
        found = (_LINE.fullmatch(name) for name in self._output.names(FOLDER))
        return [line[1] for line in found if line is not None and int(line[1]) > last]
