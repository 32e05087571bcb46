"""Pages of TIFFs and frames of animated images (GIF, APNG, WebP), each as an image of its own."""

from collections.abc import Iterable
from pathlib import Path
from threading import Lock

from PIL import Image, ImageSequence

from segkit.arrays import UInt8Array
from segkit.errors import InputError
from segkit.io import read_header
from segkit.io.decoding import decoder_words, rgb_from_pillow
from segkit.io.header import DECODER_ERRORS
from segkit.paths import check_regular

_SUBFILE, _NO_PAGE = 254, 1 | 4  # TIFF's tag, and its flags of a preview and of a mask of another page


class Pages:
    """Images that are pages of files; paths of their own, `scan.tif#page=2`, stand for them.

    Pages are read in turn from one open file, since a frame of an animation changes the one before it.
    """

    def __init__(self) -> None:
        self._of: dict[Path, tuple[Path, int]] = {}
        self._lock = Lock()
        self._open: tuple[Path, Image.Image] | None = None

    def __contains__(self, path: Path) -> bool:
        """Whether a path stands for a page."""
        return path in self._of

    def file(self, path: Path) -> Path:
        """The file that a page is in; any other path itself."""
        return self._of.get(path, (path, 0))[0]

    def expanded(self, images: Iterable[tuple[Path, Path]]) -> list[tuple[Path, Path]]:
        """Replace each file of several pages by these.

        Args:
            images: (image, name of its results).

        Returns:
            The same, of pages with the names `NAME_p0001`, ..., and `NAME__p0001` where another image has that one.
        """
        given = list(images)
        names = {str(name).casefold() for _, name in given}
        found: list[tuple[Path, Path]] = []
        for path, name in given:
            pages = _pages(path)
            while any(f"{name}_p{number:04d}".casefold() in names for number in range(1, len(pages) + 1)):
                name = name.with_name(f"{name.name}_")
            for number, index in enumerate(pages, 1):
                page = path.with_name(f"{path.name}#page={number}")
                self._of[page] = path, index
                found.append((page, name.with_name(f"{name.name}_p{number:04d}")))
            if not pages:
                found.append((path, name))
        return found

    def read(self, path: Path) -> UInt8Array:
        """A page as uint8 RGB (H, W, 3).

        Raises:
            InputError: The file is damaged there.
        """
        file, index = self._of[path]
        with self._lock:
            try:
                return rgb_from_pillow(self._at(file, index))
            except InputError as error:
                raise InputError(f"{path}: {error}") from error
            except DECODER_ERRORS as error:
                raise InputError(f"{path}: cannot be read ({decoder_words(error)}); copy the file again") from error

    def _at(self, file: Path, index: int) -> Image.Image:
        if self._open is None or self._open[0] != file or self._open[1].tell() > index:
            self._open = file, Image.open(file)
        image = self._open[1]
        steps = (index,) if image.format == "TIFF" else range(image.tell(), index + 1)
        for step in steps:  # Pillow passes over no frame of a PNG without drawing it
            image.seek(step)
            image.load()
        return image


def _pages(path: Path) -> list[int]:
    """The numbers of a file's pages; none if there is one, or if it cannot be read, which its reader reports."""
    try:
        check_regular(path)
        if read_header(path).frames == 1:
            return []
        with Image.open(path) as image:
            return [
                index
                for index, page in enumerate(ImageSequence.Iterator(image))
                if not getattr(page, "tag_v2", {}).get(_SUBFILE, 0) & _NO_PAGE
            ]
    except (InputError, *DECODER_ERRORS):
        return []
