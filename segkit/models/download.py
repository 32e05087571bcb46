"""Downloads a file of known size from an HTTP server; a broken download resumes, in this run or a later one.

huggingface_hub is not used even for its own hub: since 2.x it removes a broken partial download, so that the next run
starts from the beginning.
"""

import http.client
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from filelock import FileLock

from segkit.bars import Bar
from segkit.errors import InputError

TIMEOUT = 30.0  # seconds without an answer

_ATTEMPTS = 5  # without a single new byte, before a download is given up
_PAUSE = 1.0  # seconds between them
_CHUNK = 1 << 20  # bytes


def once(path: Path, fetch: Callable[[Path], None]) -> None:
    """Call `fetch(path)` if there is no such file; if several processes ask, one fetches and the others wait.

    Raises:
        InputError: The cache folder cannot be written.
    """
    if path.is_file():
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(f".{path.name}.lock")):
            if not path.is_file():
                fetch(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error}); set SEGKIT_CACHE to another folder") from error


def refuse_offline() -> None:
    """Refuse to ask a server if the user has declared that there is none.

    Raises:
        URLError: HF_HUB_OFFLINE is set.
    """
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        raise URLError("HF_HUB_OFFLINE is set")


def fill(part: Path, url: str, size: int, cure: str, label: str) -> None:
    """Append to `part` until it has `size` bytes, over as many connections as that takes; one process at a time.

    Args:
        part: The partial file, if it exists. The caller checks and renames it when it is complete.
        url: The file's address.
        size: The file's size in bytes.
        cure: What to do if this server does not provide it, for error messages.
        label: The progress bar's label.

    Raises:
        InputError: The connection keeps breaking, or the server's file has another size.
    """
    if bytes_of(part) > size:
        part.unlink()
    attempts, have = 0, bytes_of(part)
    with Bar(total=size, initial=have, unit="B", unit_scale=True, desc=label) as bar:
        while have < size:
            why = "the connection was closed"
            try:
                _append(part, url, size, cure, bar)
            except (OSError, http.client.HTTPException) as error:
                why = reason(error)
            before, have = have, bytes_of(part)
            attempts = 0 if have > before else attempts + 1
            if attempts == _ATTEMPTS:
                so_far = f"{have} of {size} bytes"
                raise InputError(f"{url}: broke off after {so_far} ({why}); run again to resume from there, or {cure}")
            if have < size:
                time.sleep(_PAUSE)


def request(url: str, method: str) -> Request:
    """A request for the stored bytes, not a compressed form of them."""
    return Request(url, method=method, headers={"User-Agent": "segkit", "Accept-Encoding": "identity"})


def bytes_of(path: Path) -> int:
    """Size of a file; 0 if there is none."""
    return path.stat().st_size if path.is_file() else 0


def reason(error: Exception) -> str:
    """The reason why a request failed, in one short line."""
    told = getattr(error, "reason", None) or error
    code = f"{error.code} " if isinstance(error, HTTPError) else ""
    return code + (" ".join(str(told).split()) or type(error).__name__)[:160]


def _append(part: Path, url: str, size: int, cure: str, bar: Any) -> None:
    """Read one answer to its end, from the first missing byte on, or from the start if the server cannot skip."""
    asked, have = request(url, "GET"), bytes_of(part)
    if have:
        asked.add_header("Range", f"bytes={have}-")
    with urlopen(asked, timeout=TIMEOUT) as response:
        _check_total(response, url, size, cure)
        with part.open("ab" if response.status == 206 else "wb") as file:
            bar.n = file.tell()
            while chunk := response.read(_CHUNK):
                file.write(chunk)
                bar.update(len(chunk))


def _check_total(response: Any, url: str, size: int, cure: str) -> None:
    """Refuse a different file, such as a login page, before it overwrites the partial one."""
    total = response.headers.get("Content-Length") or ""
    if response.status == 206:
        total = (response.headers.get("Content-Range") or "").rpartition("/")[2]
    if total.isdecimal() and int(total) != size:
        raise InputError(f"{url}: the server has {total} bytes there, the file has {size}: it is another one; {cure}")
