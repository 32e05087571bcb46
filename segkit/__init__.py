"""segkit: semantic segmentation with ResNeSt encoders. Importing it imports nothing heavy."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from segkit.inference.segmenter import load

__version__ = "0.1.0"

__all__ = ["__version__", "load"]


def __getattr__(name: str) -> Any:
    """Import `load` when it is first asked for: it needs torch."""
    if name == "load":
        from segkit.inference.segmenter import load

        return load
    raise AttributeError(f"module 'segkit' has no attribute {name!r}")
