import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from segkit.errors import InputError
from segkit.formats.files import below, parsing, read_json, ring_of, write_listing


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe", b'{"a":' * 99_999])
def test_a_file_that_holds_no_json_object_is_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"a\.json: .*export .* again"):
        read_json(path, "export")


@pytest.mark.parametrize(
    ("error", "why"), [(KeyError("id"), "'id' is missing"), (TypeError("a\nb"), "a b"), (IndexError(), "IndexError")]
)
def test_data_of_another_form_is_one_line(error: Exception, why: str) -> None:
    with pytest.raises(InputError) as found, parsing("a.json", "export"):
        raise error
    assert str(found.value) == f"a.json: damaged, or no export ({why}); export it again"
    with pytest.raises(InputError, match="itself"), parsing("a.json", "export"):
        raise InputError("itself")


def test_rings_are_pairs_closed_or_not() -> None:
    for numbers in ([0, 0, 2, 0, 2, 2], [[0, 0], [2, 0], [2, 2]], [0, 0, 2, 0, 2, 2, 0, 0]):
        assert ring_of(numbers, "x").tolist() == [[0, 0], [2, 0], [2, 2]]
    for wrong in ([], [1, 2, 3], "abc", [[1, 2], [3]], [1, float("nan")], [1, 1e30], None, {"a": 1}, [1, None]):
        with pytest.raises(InputError, match=r"^x: a polygon is no list of pairs x, y in pixels"):
            ring_of(wrong, "x")


def test_a_listing_grows_while_it_is_written(tmp_path: Path) -> None:
    images: list[int] = []

    def items() -> Iterator[str]:
        for number in range(3):
            images.append(number)
            yield f"item {number}"

    path = tmp_path / "new" / "a.json"
    write_listing(path, "items", items(), {"images": images})
    assert json.loads(path.read_text()) == {"items": ["item 0", "item 1", "item 2"], "images": [0, 1, 2]}
    write_listing(path, "items", [], {})
    assert json.loads(path.read_text()) == {"items": []}


def test_a_listing_that_breaks_off_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError):
        write_listing(path, "items", (1 // number for number in (1, 0)), {})
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_nothing_is_placed_outside_the_folder(tmp_path: Path) -> None:
    assert below(tmp_path, "town/a.b.jpg", ".txt") == tmp_path / "town" / "a.b.txt"
    with pytest.raises(InputError, match="leads out of the folder"):
        below(tmp_path, "../a.jpg", ".txt")
