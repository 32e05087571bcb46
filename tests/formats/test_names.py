from pathlib import Path

import pytest

from segkit.errors import InputError
from segkit.formats.names import FORMATS, _module, read_annotations, writer_of


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_has_what_the_table_says(name: str) -> None:
    for does, function in (("reads", "read"), ("writes", "write")):
        if getattr(FORMATS[name], does):
            assert callable(getattr(_module(name, does), function))
    assert FORMATS[name].reads or FORMATS[name].writes


def test_an_unknown_format_is_one_line_with_those_that_exist(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"'cocoo' is no format for this: did you mean coco\? segkit reads .*yolo"):
        read_annotations("cocoo", tmp_path)
    with pytest.raises(InputError, match="segkit writes coco"):
        writer_of("png")
