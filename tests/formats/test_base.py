import pickle
from collections import Counter
from functools import partial

import numpy as np
import pytest

from segkit.errors import InputError
from segkit.formats.base import (
    FLAT,
    OUTSIDE,
    OVERLAP,
    AnnotatedImage,
    Annotations,
    Lazy,
    Region,
    check_names,
    rasterized,
)

CLASSES = {"car": 0, "sky": 1, "background": 2}


def box(left: float, top: float, right: float, bottom: float) -> np.ndarray:
    return np.array([(left, top), (right, top), (right, bottom), (left, bottom)], float)


def image(*regions: Region, size: tuple[int, int] | None = (4, 6)) -> AnnotatedImage:
    return AnnotatedImage("town/a.jpg", size, regions, "export.json")


def test_regions_are_painted_by_their_order_and_a_crowd_is_ignored() -> None:
    mask, problems = rasterized(
        image(
            Region("sky", ((box(0, 0, 3, 3),),), order=1),
            Region("car", ((box(2, 0, 5, 1),),), order=0),
            Region("no class at all", ((box(0, 2, 2, 4),),), crowd=True, order=1),
        ),
        (4, 6),
        CLASSES,
    )
    expected = [[1, 1, 1, 0, 0, 2], [1, 1, 1, 2, 2, 2], [255, 255, 1, 2, 2, 2], [255, 255, 2, 2, 2, 2]]
    assert mask.tolist() == expected
    assert problems == Counter({OVERLAP: 3})


def test_pixels_without_a_region_are_ignored_where_no_class_is_the_background() -> None:
    assert rasterized(image(), None, {"car": 0})[0].tolist() == [[255] * 6] * 4


def test_polygons_are_cut_at_the_border_left_out_without_area_and_counted() -> None:
    mask, problems = rasterized(
        image(
            Region(
                "car",
                ((box(-9, -9, 2, 2),), (box(1, 1, 1, 3),), (box(4, 2, 6, 4)[[0, 2, 1, 3]],), (box(50, 50, 60, 60),)),
            ),
            Region("car", ((box(0, 0, 2, 2),),)),  # over its own class: no problem
        ),
        (4, 6),
        CLASSES,
    )
    assert np.argwhere(mask == 0).tolist() == [[0, 0], [0, 1], [1, 0], [1, 1], [2, 4], [3, 4]]  # the last two: a bow
    assert problems == Counter({OUTSIDE: 2, FLAT: 1})


def test_what_is_left_out_is_counted_in_its_own_words() -> None:
    regions = [Region("unheard of", left_out="boxes (left out)")] * 2
    mask, problems = rasterized(AnnotatedImage("a.jpg", (1, 1), lambda: regions), None, {"car": 0})
    assert mask.tolist() == [[255]] and problems == Counter({"boxes (left out)": 2})


def test_a_mask_may_be_made_when_it_is_painted() -> None:
    made = np.eye(4, 6, dtype=bool)
    for mask in (made, partial(np.eye, 4, 6, dtype=bool)):
        assert ((rasterized(image(Region("car", mask=mask)), None, CLASSES)[0] == 0) == made).all()


@pytest.mark.parametrize(
    ("one", "size", "words"),
    [
        (
            image(Region("cars", ())),
            None,
            "export.json: class 'cars' is unknown; did you mean car? known are car, sky,",
        ),
        (image(), (6, 4), "export.json: says that town/a.jpg is 6x4, but the image is 4x6"),
        (image(size=None), None, "export.json: does not say how large town/a.jpg is"),
        (image(size=(10**6, 10**6)), None, "export.json: is 1000000 x 1000000"),
        (image(Region("car", mask=np.ones((3, 3), bool))), None, "export.json: a mask of car is 3x3, its image 6x4"),
    ],
)
def test_what_makes_no_mask_is_one_line(one: AnnotatedImage, size: tuple[int, int] | None, words: str) -> None:
    with pytest.raises(InputError) as error:
        rasterized(one, size, CLASSES)
    assert str(error.value).startswith(words) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "names",
    [
        ["/etc/passwd"],
        ["../a.png"],
        ["a/../../b.png"],
        ["C:\\a.png"],
        ["a\ud800.png"],
        ["a\x1b[2J.png"],
        ["."],
        [""],
        ["a.png", "b.png", "a.jpg"],
    ],
)
def test_names_that_lead_out_or_occur_twice_are_refused(names: list[str]) -> None:
    with pytest.raises(InputError, match=r"^export\.json: image "):
        check_names(names, "export.json")
    check_names(["a.png", "b/a.png", "a.b.png"], "export.json")


def test_names_of_classes_can_be_printed() -> None:
    assert Annotations([], ("r\u00f3ad", "a\x1b[2J", "\ud800")).class_names == ("r\u00f3ad", "a\\x1b[2J", "\\ud800")


def test_a_lazy_sequence_makes_what_is_asked_for() -> None:
    lazy = Lazy(str, [1, 2, 3])
    assert (lazy[0], list(lazy[1:]), len(lazy)) == ("1", ["2", "3"], 3)
    assert list(pickle.loads(pickle.dumps(lazy))) == ["1", "2", "3"]
