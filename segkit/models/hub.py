"""One file from a model hub: resumed where it broke off, and checked against the SHA-256 that the hub declares.

The hub's answer to HEAD has hash and size of the stored file in X-Linked-Etag and X-Linked-Size, as huggingface_hub
reads them.
"""

import hashlib
import http.client
import os
import re
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urljoin
from urllib.request import HTTPRedirectHandler, build_opener

from segkit.download import TIMEOUT, fill, reason, request
from segkit.errors import InputError


def fetch(url: str, path: Path, cure: str) -> str:
    """Download to a name of its own, check, rename; return the SHA-256. One process at a time.

    Args:
        url: The file on the hub.
        path: Where it goes. Until it is complete it is `<name>.<hash>.part`, which a later call goes on with.
        cure: What to do without a network, for the errors.

    Raises:
        InputError: No network, no such file, a connection that keeps breaking, or other bytes than declared.
    """
    try:
        if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
            raise URLError("HF_HUB_OFFLINE is set")
        sha256, size = _declared(url)
    except (OSError, http.client.HTTPException) as error:
        raise InputError(f"{url}: cannot be fetched ({reason(error)}); {cure}") from error
    part = path.with_name(f"{path.name}.{sha256[:12]}.part")  # another version's part is another file
    fill(part, url, size, cure, label=path.parent.name)
    found = file_sha256(part)
    if found != sha256:
        part.unlink()
        raise InputError(
            f"{url}: what arrived has SHA-256 {found}, declared is {sha256}; it was removed: run again, and if that "
            f"does not help, {cure}"
        )
    os.replace(part, path)
    return sha256


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _declared(url: str) -> tuple[str, int]:
    """SHA-256 and bytes of a file, from the first answer on the way of redirections that speaks of the stored file.

    Raises:
        OSError: No answer, or one without them.
    """
    opener = build_opener(_NoRedirect)
    for _ in range(5):
        try:
            with opener.open(request(url, "HEAD"), timeout=TIMEOUT) as response:
                headers = response.headers
        except HTTPError as error:
            if error.code not in (301, 302, 303, 307, 308):
                raise
            headers = error.headers
        if "X-Linked-Etag" in headers or "Location" not in headers:
            break
        url = urljoin(url, headers["Location"])
    sha256 = str(headers.get("X-Linked-Etag") or headers.get("ETag")).removeprefix("W/").strip('"')
    size = headers.get("X-Linked-Size") or headers.get("Content-Length") or ""
    if re.fullmatch("[0-9a-f]{64}", sha256) and size.isdecimal():
        return sha256, int(size)
    raise URLError("the server declares no SHA-256; is HF_ENDPOINT a copy of the hub?")


class _NoRedirect(HTTPRedirectHandler):
    """Leaves a redirection to the caller: its headers are what is asked for."""

    def redirect_request(self, *_: Any) -> None:
        """Follow nothing."""
