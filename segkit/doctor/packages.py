"""Checks versions: of Python, of segkit's requirements (by its own metadata), and those known to be bad."""

import importlib
import os
import platform
import sys
import warnings
from collections.abc import Iterator
from importlib import metadata

from segkit import __version__
from segkit.doctor.finding import Finding, in_one_line
from segkit.errors import DISTRIBUTION

_MALWARE = "malware that steals credentials when it is imported (GHSA-w37p-236h-pfx3)"

# distribution         versions           what is wrong with them
BAD = {
    "pytorch-lightning": ("==2.6.2,==2.6.3", _MALWARE),
    "lightning":         ("==2.6.2,==2.6.3", _MALWARE),
    "jsonargparse":      (">=5",             "without what Lightning 2.6 calls"),
    "albumentations":    ("!=2.0.8",         "not the release whose crops and seeds segkit is made for"),
    "albucore":          ("!=0.0.24",        "not the release that albumentations 2.0.8 works with"),
}  # fmt: skip

OPENCV = ("opencv-python", "opencv-python-headless", "opencv-contrib-python", "opencv-contrib-python-headless")

_MODULES = {
    "opencv-python-headless": "cv2",
    "pillow": "PIL",
    "pyyaml": "yaml",
}  # whose names differ by more than a dash
_FIRST = ("torch", "torchvision", "pytorch-lightning", "timm", "segmentation-models-pytorch", "albumentations")


def python() -> Iterator[Finding]:
    """Check the versions of Python and of segkit itself."""
    here = f"{platform.python_version()} on {platform.system()} {platform.machine()}, {sys.executable}"
    allowed = "" if _version(DISTRIBUTION) is None else metadata.metadata(DISTRIBUTION)["Requires-Python"]
    if allowed and not _within(platform.python_version(), allowed):
        yield Finding("python", "wrong", here, f"install Python {allowed}")
    else:
        yield Finding("python", "ok", here)
    yield Finding("segkit", "ok", f"{__version__} in {os.path.dirname(os.path.dirname(__file__))}")


def packages() -> Iterator[Finding]:
    """Check that each requirement of segkit is installed, has an allowed version, and can be imported."""
    bounds = _bounds()
    if not bounds:
        yield Finding("packages", "note", "segkit is not installed: versions are not compared with its bounds",
                      "pip install . in the repository")  # fmt: skip
    ordered = [name for name in _FIRST if name in bounds or not bounds]
    for name in [*ordered, *sorted(bounds.keys() - {*ordered})]:
        yield _package(name, bounds.get(name, ""))
    if _version("lightning") is not None:
        yield _package("lightning", "", imported=False)


def opencv() -> Iterator[Finding]:
    """Check OpenCV's wheels, which all own the folder cv2, so that the last one installed is the one that runs."""
    there = {name: found for name in OPENCV if (found := _version(name)) is not None}
    listed = ", ".join(f"{name} {found}" for name, found in there.items())
    if len(there) > 1:
        cure = f"pip uninstall -y {' '.join(there)} && pip install opencv-python-headless"
        yield Finding("opencv", "wrong", f"{listed}: side by side, they write over each other's files", cure)
    elif not there:
        yield Finding("opencv", "wrong", "none of its wheels is installed", "pip install opencv-python-headless")
    elif "opencv-python-headless" not in there:
        cure = f"pip uninstall -y {' '.join(there)} && pip install opencv-python-headless"
        yield Finding("opencv", "wrong", f"{listed}: needs libraries of a desktop, which servers lack", cure)
    else:
        yield Finding("opencv", "ok", f"{listed}, alone")


def _package(name: str, bound: str, imported: bool = True) -> Finding:
    found = _version(name)
    needed = f"'{name}{bound}'"
    if found is None:
        return Finding(name, "wrong", "not installed", f"pip install {needed}")
    versions, why = BAD.get(name, ("", ""))
    if versions and any(_within(found, one) for one in versions.split(",")):
        cure = f"pip install {needed}"
        if why == _MALWARE:  # and it is not imported here
            cure = f"pip uninstall -y {name}; replace all passwords and tokens of this machine; then {cure}"
        return Finding(name, "wrong", f"{found}: {why}", cure)
    if bound and not _within(found, bound):
        return Finding(name, "wrong", f"{found}, and segkit needs {bound}", f"pip install {needed}")
    if imported and (fault := _import_fault(_MODULES.get(name, name.replace("-", "_")))) is not None:
        return Finding(name, "wrong", f"{found} cannot be imported: {fault}", f"pip install --force-reinstall {needed}")
    return Finding(name, "ok", found)


def _import_fault(module: str) -> str | None:
    """Why a module cannot be imported; None if it can."""
    # Else albumentations 2.0.8 asks for a newer version over the network.
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    try:
        with warnings.catch_warnings(action="ignore"):
            importlib.import_module(module)
    except Exception as error:
        return in_one_line(error)
    return None


def _bounds() -> dict[str, str]:
    """Names and versions that segkit's metadata requires, without extras; empty if segkit is not installed."""
    from packaging.requirements import Requirement

    try:
        needed = [Requirement(text) for text in metadata.requires(DISTRIBUTION) or ()]
    except metadata.PackageNotFoundError:
        return {}
    return {one.name: str(one.specifier) for one in needed if one.marker is None or one.marker.evaluate({"extra": ""})}


def _within(version: str, bound: str) -> bool:
    from packaging.specifiers import SpecifierSet

    return SpecifierSet(bound).contains(version, prereleases=True)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
