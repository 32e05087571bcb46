"""Protocols: the authors' numbers, sizes as each toolkit rounds them, and refusals."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from segkit.errors import InputError
from segkit.inference import protocols
from segkit.inference.engine import forwards
from segkit.inference.protocols import Protocol, get
from segkit.inference.views import view_size, window_grid

SIX = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)


@pytest.mark.parametrize(
    "name, size, windows",
    [
        ("encoding-ms", (512, 683), [1, 1, 2, 4, 4, 6]),
        ("encoding-ms-cityscapes", (1024, 2048), [3, 8, 10, 18, 21, 32, 36]),
    ],
)
def test_the_authors_number_of_windows(name, size, windows):
    protocol = get(name)
    grids = [window_grid(protocol, view_size(protocol, scale, size)) for scale in protocol.scales]
    assert [len(grid.windows) for grid in grids] == windows
    assert forwards(protocol, size) == 2 * sum(windows)


@pytest.mark.parametrize(
    "protocol, scale, size, expected",
    [
        (get("encoding-ms"), 0.5, (512, 683), (195, 260)),  # 512 * 260 / 683 = 194.9
        (get("encoding-ms"), 1.0, (683, 512), (520, 390)),
        (replace(get("encoding-ms"), base_size=101), 0.75, (50, 40), (76, 61)),  # ceil(75.75); 40 * 76 / 50 = 60.8
        (Protocol("short", resize_to="short_side", base_size=100), 1.0, (200, 150), (133, 100)),
        (Protocol("short", resize_to="short_side", base_size=100), 0.5, (7, 9), (50, 64)),
        (get("ms-flip"), 0.5, (5, 3), (3, 2)),  # halves go up
        (get("ms-flip"), 1.25, (97, 65), (121, 81)),
        (get("ms-flip"), 0.5, (1, 1), (1, 1)),
        (get("mmseg-ss"), 1.0, (512, 683), (512, 683)),
        (get("mmseg-ss"), 1.0, (375, 1500), (512, 2048)),
        (get("mmseg-ss"), 1.0, (100, 1000), (205, 2048)),  # the long side is the limit; 204.8
        (get("mmseg-ms"), 0.5, (61, 45), (31, 23)),
        (get("mmseg-ms"), 0.5, (375, 499), (188, 250)),  # 187.5 and 249.5 go up, and then 188 is the limit
        (get("csail-ms"), 0.5, (512, 683), (304, 400)),  # 300 and 400.2, up to multiples of 8
        (get("csail-ms"), 1.0, (400, 1000), (400, 1000)),  # 600 would make the long side 1500
        (get("csail-ms"), 0.5, (1, 999), (8, 1000)),
    ],
)
def test_scaled_sizes(protocol, scale, size, expected):
    assert view_size(protocol, scale, size) == expected


def test_truncated_and_shifted_windows():
    truncated = window_grid(Protocol("t", window=30, window_rule="truncate"), (25, 75))
    assert truncated.shape == (30, 30) and truncated.rows == ((0, 25),)
    assert truncated.columns == ((0, 30), (20, 30), (40, 30), (60, 15))
    shifted = window_grid(Protocol("s", window=30), (25, 75))
    assert shifted.shape == (25, 30) and shifted.columns == ((0, 30), (20, 30), (40, 30), (45, 30))


def test_plain_data_and_back():
    protocol = get("encoding-ms").resolved(align_corners=False)
    assert protocol.align_corners is True and protocol.stride == 320
    assert Protocol(**json.loads(json.dumps(protocol.to_dict()))) == protocol
    assert get("whole").resolved(align_corners=False).align_corners is False


@pytest.mark.parametrize(
    "fields",
    [
        {"scales": ()},
        {"scales": (0.0,)},
        {"scales": (float("nan"),)},
        {"name": ""},
        {"fusion": "mean"},
        {"resize_to": "width"},
        {"window_rule": "wrap"},
        {"base_size": 520},
        {"resize_to": "long_side"},
        {"stride": 20},
        {"window": 1},
        {"window": 30, "stride": 31},
        {"resample": "nearest"},
        {"upsample_to": "window"},
        {"upsample_to": "output", "window": 30},
        {"long_limit": 1000},
        {"resize_to": "mmcv_image", "base_size": 512},
        {"resize_to": "mmcv_limits", "base_size": 512},
        {"resize_to": "mmcv_limits", "base_size": 512, "long_limit": 511},
        {"resize_to": "csail", "long_limit": 1000},
    ],
)
def test_wrong_protocols_are_refused(fields):
    with pytest.raises(InputError, match="protocol") as caught:
        Protocol(**({"name": "mine"} | fields))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", protocols.NAMED)
def test_every_named_protocol_survives_a_result_file(name):
    protocol = get(name).resolved(align_corners=True)
    assert Protocol(**json.loads(json.dumps(protocol.to_dict()))) == protocol


def test_result_files_of_before_the_size_and_resample_fields_still_read():
    old = {"name": "encoding-ms", "scales": list(SIX), "flip": True, "fusion": "exp_sum", "resize_to": "long_side"}
    old |= {"base_size": 520, "window": 480, "stride": None, "window_rule": "truncate", "align_corners": True}
    assert Protocol(**old) == get("encoding-ms")


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(InputError, match="whole, ms-flip, window, encoding-ms, encoding-ms-cityscapes, mmseg-ss"):
        get("ms")


def test_a_protocol_of_ones_own_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("scales: [0.5, 1]\nflip: true\n")
    assert get(str(path)) == Protocol(name="mine", scales=(0.5, 1.0), flip=True)
    path.write_text("resize_to: mmcv_limits\nbase_size: 640\nlong_limit: 2560\nresample: opencv\nfusion: logit_mean\n")
    assert get(str(path)) == replace(get("mmseg-ss"), name="mine", base_size=640, long_limit=2560)
    path.write_text("scale: [0.5]\n")
    with pytest.raises(InputError, match="no field of a protocol; did you mean scales"):
        get(str(path))
    for text, words in (
        ("scales: [\n", "line 2, column 1: not valid YAML"),
        ("scales: much\n", "of another type than its field"),
        ("flip: 3\n", "flip is 3; allowed are true and false"),
        ("[1, 2]\n", "is not a protocol; its fields are name"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=words):
            get(str(path))
    with pytest.raises(InputError, match="no such file"):
        get(str(tmp_path / "absent.yaml"))
