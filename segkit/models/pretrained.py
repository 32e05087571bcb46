"""ImageNet weights of encoders, for `encoder_weights: imagenet`: timm's safetensors, downloaded once and checked.

A file is kept as `CACHE/<repository>/model.safetensors`, CACHE being $SEGKIT_CACHE or ~/.cache/segkit, so that it can
also be put there by hand. Its SHA-256 must be the one the hub declares; it is recorded in `model.safetensors.sha256`
(in the format of `sha256sum -c`) and compared on each later use. The hub's answer to HEAD gives hash and size of the
stored file in X-Linked-Etag and X-Linked-Size, as huggingface_hub reads them.
"""

import http.client
import os
import re
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urljoin
from urllib.request import HTTPRedirectHandler, build_opener

from segkit.errors import InputError
from segkit.files import write_text
from segkit.models.download import TIMEOUT, fill, once, reason, refuse_offline, request
from segkit.models.resnest import RESNEST_VARIANTS
from segkit.models.segmentation import SegmentationModel
from segkit.models.weight_files import file_sha256
from segkit.paths import cache_folder

FILE = "model.safetensors"
HUB = "https://huggingface.co"  # $HF_ENDPOINT overrides it

# encoder                 its weights on the hub (timm converted the authors' and GluonCV's files)
REPOSITORIES = {
    "resnest14":              "timm/resnest14d.gluon_in1k",
    "resnest26":              "timm/resnest26d.gluon_in1k",
    "resnest50":              "timm/resnest50d.in1k",
    "resnest101":             "timm/resnest101e.in1k",
    "resnest200":             "timm/resnest200e.in1k",
    "resnest269":             "timm/resnest269e.in1k",
    "resnest50_fast_4s2x40d": "timm/resnest50d_4s2x40d.in1k",
    "resnest50_fast_1s4x24d": "timm/resnest50d_1s4x24d.in1k",
}  # fmt: skip

HARMLESS = {"dropblock_prob", "final_drop", "zero_init_last_gamma"}  # encoder_args that leave the features as they are


def imagenet_repository(network: SegmentationModel) -> str:
    """Name the hub repository with the ImageNet weights of a network's encoder; nothing is downloaded.

    Raises:
        InputError: There are no weights for this encoder or its arguments.
    """
    arguments: dict[str, Any] = dict(network.config.get("init_args", {}))
    name = str(arguments.get("encoder"))
    repository = REPOSITORIES.get(name) if name in RESNEST_VARIANTS else _timm_repository(network.encoder)
    if repository is None:
        raise InputError(
            f"encoder_weights: there are no ImageNet weights for {name}, only for {', '.join(REPOSITORIES)} and most "
            "timm encoders; use one of them, or give a file of your own"
        )
    check_arguments(name, arguments.get("encoder_args") or {})
    return repository


def timm_name(encoder: str) -> str:
    """timm's name of an encoder, with that of its weights."""
    return REPOSITORIES.get(encoder, encoder.removeprefix("tu-")).removeprefix("timm/")


def imagenet_weights_path(repository: str) -> Path:
    """Return the local path of a repository's weights, downloading them if they are not there yet.

    If several processes ask, one downloads and the others wait.

    Raises:
        InputError: There is no network or no such repository, the hash is not the declared or recorded one, or the
            cache folder cannot be written.
    """
    path = cache_folder() / repository / FILE
    once(path, lambda path: _download(repository, path))
    _check_recorded(path)
    return path


def _download(repository: str, path: Path) -> None:
    url = f"{os.environ.get('HF_ENDPOINT', HUB).rstrip('/')}/{repository}/resolve/main/{FILE}"
    cure = (
        f"download that file on a machine with a network and put it at {path}, or set encoder_weights to a file with "
        "the encoder's weights"
    )
    sha256 = _fetch(url, path, cure)
    write_text(_record(path), f"{sha256}  {FILE}\n")


def _check_recorded(path: Path) -> None:
    """Compare the file with the hash recorded at its download; a file put there by hand may have none."""
    record = _record(path)
    if not record.is_file():
        return
    words, found = record.read_text(encoding="utf-8").split(), file_sha256(path)
    if not words or words[0].lower() != found:
        raise InputError(
            f"{path}: its SHA-256 is {found}, not the one in {record.name}: it was damaged or replaced; remove both "
            "files to download it again, or only the latter if you want to use these weights"
        )


def check_arguments(name: str, given: dict[str, Any]) -> None:
    """Refuse arguments of a ResNeSt that change what its published weights compute.

    Raises:
        InputError: There is such an argument.
    """
    variant = RESNEST_VARIANTS.get(name, {})
    changed = [key for key in sorted(given.keys() - HARMLESS) if _plain(given[key]) != _plain(variant.get(key))]
    if changed:
        raise InputError(
            f"encoder_weights: there are no ImageNet weights for {name} with {changed[0]}: {given[changed[0]]}; "
            f"leave that out of encoder_args, or give a file with weights for that encoder"
        )


def _timm_repository(encoder: Any) -> str | None:
    """The repository that timm itself would use; a `TimmEncoder` holds smp's wrapper, which holds timm's model."""
    model = getattr(getattr(encoder, "encoder", None), "model", None)
    config: dict[str, Any] = getattr(model, "pretrained_cfg", None) or {}
    repository = config.get("hf_hub_id")
    return str(repository) if repository and not config.get("hf_hub_filename") else None


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, (list, tuple)) else value


def _record(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _fetch(url: str, path: Path, cure: str) -> str:
    """Download to a temporary name, check and rename; return the SHA-256. Only one process may do so at a time.

    Args:
        url: The file on the hub.
        path: The destination. Until it is complete, it is `<name>.<hash>.part`, which a later call resumes.
        cure: What to do without a network, for error messages.

    Raises:
        InputError: There is no network or no such file, the connection keeps breaking, or the hash is wrong.
    """
    try:
        refuse_offline()
        sha256, size = _declared(url)
    except (OSError, http.client.HTTPException) as error:
        raise InputError(f"{url}: cannot be fetched ({reason(error)}); {cure}") from error
    part = path.with_name(f"{path.name}.{sha256[:12]}.part")  # another version's part is another file
    fill(part, url, size, cure, label=path.parent.name)
    found = file_sha256(part)
    if found != sha256:
        part.unlink()
        raise InputError(
            f"{url}: the download's SHA-256 is {found}, not {sha256} as declared; it was removed: run again, and if "
            f"that does not help, {cure}"
        )
    os.replace(part, path)
    return sha256


def _declared(url: str) -> tuple[str, int]:
    """SHA-256 and size in bytes of a file, from the first answer in a chain of redirects that describes it.

    Raises:
        OSError: There is no answer, or none that has them.
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
    """Leaves redirects to the caller, who needs their headers."""

    def redirect_request(self, *_: Any) -> None:
        """Follow no redirect."""
