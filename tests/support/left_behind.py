"""What a process that was killed while it wrote a file leaves beside it."""

import multiprocessing
from pathlib import Path

from segkit.files import replacing


def left_behind(target: Path) -> Path:
    """The temporary name of a process that is dead."""
    process = multiprocessing.get_context("fork").Process(target=int)
    process.start()
    process.join()
    with replacing(target.with_name("own")) as temporary:
        temporary.touch()
        name = temporary.name
    target.with_name("own").unlink()
    place, _, letters = name.removeprefix(".own.").removesuffix(".tmp").split(".")
    return target.with_name(f".{target.name}.{place}.{process.pid}.{letters}.tmp")
