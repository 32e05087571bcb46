"""A message about a path names it once, whatever characters are in its name."""

from pathlib import Path

import pytest

from segkit.errors import InputError, about


@pytest.mark.parametrize(
    ("path", "error", "said"),
    [
        ("photo.png", InputError("photo.png: is empty"), "photo.png: is empty"),
        ("photo.png", InputError("is empty"), "photo.png: is empty"),
        ("photo.png", FileNotFoundError(2, "no such file", "photo.png"), "[Errno 2] no such file: 'photo.png'"),
        ("photo.png", OSError(28, "no space left"), "photo.png: [Errno 28] no space left"),
        ("a\nb.png", InputError("a\nb.png: is empty"), r"a\nb.png: is empty"),
        (
            "https:/host/a.png",
            InputError("https:/host/a.png: no such file"),
            "https://host/a.png: no such file; a URL is not read: download the file, and give its path",
        ),
    ],
)
def test_a_message_names_its_path_once(path: str, error: Exception, said: str) -> None:
    assert str(about(Path(path), error)) == said


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("rtsp:/me:p4ss:w@camera:554/1", "rtsp:/me:***@camera:554/1"),
        ("rtsp://:p4ss@camera/1", "rtsp://:***@camera/1"),
        ("s3://bucket/a:b/c@d.png", "s3://bucket/a:b/c@d.png"),
        ("a:/b:c@d.png", "a:/b:c@d.png"),
    ],
)
def test_a_message_has_no_password(address: str, said: str) -> None:
    assert str(InputError(f"{address}: cannot be opened")) == f"{said}: cannot be opened"
