"""The authors' own files by name: their ImageNet encoders and segmentation networks, fetched once and checked.

A file has the name of the recipe that trained it: `imagenet/resnest50`, `ade20k/deeplabv3_resnest50`. It is kept as
`CACHE/authors/<name>.pth`, so that it can also be put there by hand. It is checked by the published digits: the
first 8 digits of the SHA-256 of an ImageNet file (zhanghang1989/ResNeSt, resnest/torch/models/{resnest,ablation}.py),
the whole SHA-1 of a segmentation network, of the .pth in its zip (PyTorch-Encoding, encoding/models/model_store.py).
"""

import hashlib
import http.client
import os
import shutil
import zipfile
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from segkit.errors import InputError, did_you_mean
from segkit.metadata.ade20k import ADE20K
from segkit.metadata.pascal_context import CONTEXT_59
from segkit.models.download import TIMEOUT, fill, once, reason, refuse_offline, request
from segkit.models.pretrained import check_arguments
from segkit.models.segmentation import SegmentationModel
from segkit.paths import cache_folder

PREFIX = "authors/"  # of `init_from`
RELEASES = "https://github.com/zhanghang1989/ResNeSt/releases/download/weights_step1"
STORE = "https://s3.us-west-1.wasabisys.com/encoding/models"

# name                                  its file                        published digits of the hash
_FILES = {
    "imagenet/resnest50":                   ("resnest50",                   "528c19ca"),
    "imagenet/resnest101":                  ("resnest101",                  "22405ba7"),
    "imagenet/resnest200":                  ("resnest200",                  "75117900"),
    "imagenet/resnest269":                  ("resnest269",                  "0cc87c48"),
    "imagenet/resnest50_fast_1s1x64d":      ("resnest50_fast_1s1x64d",      "d8fbf808"),
    "imagenet/resnest50_fast_2s1x64d":      ("resnest50_fast_2s1x64d",      "44938639"),
    "imagenet/resnest50_fast_4s1x64d":      ("resnest50_fast_4s1x64d",      "f74f3fc3"),
    "imagenet/resnest50_fast_1s2x40d":      ("resnest50_fast_1s2x40d",      "32830b84"),
    "imagenet/resnest50_fast_2s2x40d":      ("resnest50_fast_2s2x40d",      "9d126481"),
    "imagenet/resnest50_fast_4s2x40d":      ("resnest50_fast_4s2x40d",      "41d14ed0"),
    "imagenet/resnest50_fast_1s4x24d":      ("resnest50_fast_1s4x24d",      "d4a4f76f"),
    "ade20k/fcn_resnest50":                 ("fcn_resnest50_ade",           "4aba491aaf8e4866a9c9981b210e3e3266ac1f2a"),
    "ade20k/deeplabv3_resnest50":           ("deeplab_resnest50_ade",       "2225f09d0f40b9a168d9091652194bc35ec2a5a9"),
    "ade20k/deeplabv3_resnest101":          ("deeplab_resnest101_ade",      "06ca799c8cc148fe0fafb5b6d052052935aa3cc8"),
    "ade20k/deeplabv3_resnest200":          ("deeplab_resnest200_ade",      "7b9e7d3e6f0e2c763c7d77cad14d306c0a31fe05"),
    "ade20k/deeplabv3_resnest269":          ("deeplab_resnest269_ade",      "0074dd10a6e6696f6f521653fb98224e75955496"),
    "pascal_context/fcn_resnest50":         ("fcn_resnest50_pcontext",      "77a2161deeb1564e8b9c41a4bb7a3f33998b00ad"),
    "pascal_context/deeplabv3_resnest50":   ("deeplab_resnest50_pcontext",  "08dccbc4f4694baab631e037a374d76d8108c61f"),
    "pascal_context/deeplabv3_resnest101":  ("deeplab_resnest101_pcontext", "faf5841853aae64bd965a7bdc2cdc6e7a2b5d898"),
    "pascal_context/deeplabv3_resnest200":  ("deeplab_resnest200_pcontext", "fe76a26551dd5dcf2d474fd37cba99d43f6e984e"),
    "pascal_context/deeplabv3_resnest269":  ("deeplab_resnest269_pcontext", "b661fd26c49656e01e9487cd9245babb12f37449"),
}  # fmt: skip

NAMES = tuple(_FILES)

_CLASSES = {"ade20k": ADE20K.class_names, "pascal_context": CONTEXT_59.class_names}  # by what a name begins with


def class_names(name: str) -> tuple[str, ...]:
    """Names of the classes of an authors' network, which its file lacks, in their order; none of an encoder."""
    return _CLASSES.get(name.partition("/")[0], ())


def encoder_name(network: SegmentationModel) -> str:
    """The name of the authors' file for a network's encoder; nothing is fetched.

    Raises:
        InputError: The authors publish none for this encoder or its arguments.
    """
    arguments = dict(network.config.get("init_args", {}))
    encoder = str(arguments.get("encoder"))
    if f"imagenet/{encoder}" not in _FILES:
        known = [name.removeprefix("imagenet/") for name in NAMES if name.startswith("imagenet/")]
        raise InputError(
            f"encoder_weights: the authors publish no weights of {encoder}; {did_you_mean(encoder, known)}they do of "
            f"{', '.join(known)}; or take timm's: --encoder_weights imagenet"
        )
    check_arguments(encoder, arguments.get("encoder_args") or {})
    return f"imagenet/{encoder}"


def local_path(name: str) -> Path:
    """The local path of a name's file, whether it exists or not.

    Raises:
        InputError: The authors publish no file of that name.
    """
    if name not in _FILES:
        raise InputError(
            f"{PREFIX}{name}: the authors publish no such file; {did_you_mean(name, NAMES)}allowed behind {PREFIX}: "
            f"{', '.join(NAMES)}"
        )
    return cache_folder() / "authors" / f"{name}.pth"


def authors_weights_path(name: str) -> Path:
    """The local path of one of the authors' files, fetched if it is absent; its hash is checked each time.

    Raises:
        InputError: There is no such name, no network, the hash differs, or the cache folder cannot be written.
    """
    path = local_path(name)
    once(path, lambda path: _fetch(name, path))
    if not _has_hash(path, name):
        raise InputError(
            f"{path}: its hash does not begin with {_FILES[name][1]}, which the authors publish: it was damaged or "
            "replaced; remove it to fetch it again, or give a file of your own by its path"
        )
    return path


def address(name: str) -> str:
    """Where the authors publish the file: a .pth, or a zip with one."""
    file, digits = _FILES[name]
    if len(digits) == 8:
        return f"{RELEASES}/{file}-{digits}.pth"
    return f"{STORE}/{file}-{digits[:8]}.zip"


def _fetch(name: str, path: Path) -> None:
    url = address(name)
    packed = "the .pth in that zip" if url.endswith(".zip") else "that file"
    cure = f"download it on a machine with a network and put {packed} at {path}, or give a file of your own"
    try:
        refuse_offline()
        size = _size(url)
    except (OSError, http.client.HTTPException) as error:
        raise InputError(f"{url}: cannot be fetched ({reason(error)}); {cure}") from error
    part = path.with_name(f"{path.name}.part")
    fill(part, url, size, cure, label=path.stem)
    if url.endswith(".zip"):
        _unpack(part, url, cure)
    if not _has_hash(part, name):
        part.unlink()
        raise InputError(
            f"{url}: the hash of the download does not begin with {_FILES[name][1]}, which the authors publish; it "
            f"was removed: run again, and if that does not help, {cure}"
        )
    os.replace(part, path)


def _size(url: str) -> int:
    """The size in bytes that the server gives; by GET, because signed addresses of releases allow no HEAD."""
    with urlopen(request(url, "GET"), timeout=TIMEOUT) as answer:
        size = answer.headers.get("Content-Length") or ""
    if size.isdecimal():
        return int(size)
    raise URLError("the server gives no size")


def _unpack(part: Path, url: str, cure: str) -> None:
    """Replace a zip by the one .pth in it.

    Raises:
        InputError: It is no zip, or has no .pth.
    """
    unpacked = part.with_suffix(".unpacked")
    try:
        with zipfile.ZipFile(part) as archive:
            member = next(name for name in archive.namelist() if name.endswith(".pth"))
            with archive.open(member) as source, unpacked.open("wb") as target:
                shutil.copyfileobj(source, target)
    except (zipfile.BadZipFile, StopIteration) as error:
        part.unlink()
        raise InputError(f"{url}: is no zip with a .pth; it was removed: run again, or {cure}") from error
    os.replace(unpacked, part)


def _has_hash(path: Path, name: str) -> bool:
    digits = _FILES[name][1]
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256" if len(digits) == 8 else "sha1").hexdigest().startswith(digits)
