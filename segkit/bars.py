"""The progress bar of all commands and callbacks: redrawn on a terminal, one line at its end elsewhere."""

from typing import TYPE_CHECKING, Any

from tqdm import tqdm

if TYPE_CHECKING:  # its stubs are generic, it is not
    _Tqdm = tqdm[Any]
else:
    _Tqdm = tqdm


class Bar(_Tqdm):
    """tqdm's bar, on standard error; in a log file or a pipe it leaves its last line only, and none without `leave`."""

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Draw it; elsewhere than on a terminal only when it is closed, for which tqdm disables it first."""
        if self.fp.isatty():
            return super().display(msg, pos)  # which says whether it was drawn
        if self.disable and msg is None:
            self.fp.write(str(self))
        return None

    def clear(self, nolock: bool = False) -> None:
        """Make room for a line above it, where there is something to clear."""
        if self.fp.isatty():
            super().clear(nolock)
