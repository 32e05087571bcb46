"""Lets mmsegmentation 1.2.2 be imported beside `mmcv-lite`, which has no compiled operations: empty stand-ins for them.

For the scripts of this folder, which are run by hand in an environment of their own (each names its packages); the
tests read the files that they leave.
"""

import sys
import types


class _Stub(types.ModuleType):
    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (object,), {})


def install() -> None:
    """Put the stand-ins where `import mmseg` looks for `mmcv.ops`; call it first."""
    for name in ("", ".point_sample", ".modulated_deform_conv", ".deform_conv"):
        sys.modules[f"mmcv.ops{name}"] = _Stub(f"mmcv.ops{name}")
    sys.modules["mmcv.ops"].__path__ = []  # type: ignore[attr-defined]
