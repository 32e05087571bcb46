from itertools import pairwise

import numpy as np
import pytest
import shapely
from label_maps import boundary_distance, label_map

from segkit.arrays import UInt8Array
from segkit.formats.shapes import Polygon, bridged, filled, outlines


def repainted(found: list[tuple[int, Polygon]], size: tuple[int, int]) -> UInt8Array:
    """The label map of outlines, checked that no pixel is painted twice or left out."""
    labels, count = np.zeros(size, np.uint8), np.zeros(size, int)
    for value, polygon in found:
        box, inside = filled(polygon, size)
        labels[box][inside] = value
        count[box] += inside
    assert (count == 1).all()
    return labels


def corners(found: list[tuple[int, Polygon]]) -> int:
    return sum(len(ring) for _, rings in found for ring in rings)


def shapes_of(found: list[tuple[int, Polygon]]) -> list[shapely.Polygon]:
    return [shapely.Polygon(rings[0], rings[1:]) for _, rings in found]


@pytest.mark.parametrize("seed", range(3))
def test_exact_outlines_give_every_pixel_back(seed: int) -> None:
    labels = label_map(seed)
    found = outlines(labels)
    assert np.array_equal(repainted(found, labels.shape), labels)
    assert shapely.is_valid(shapes_of(found)).all()
    assert any(len(rings) > 1 for _, rings in found)  # holes are holes
    assert {value for value, _ in found} == set(np.unique(labels))


@pytest.mark.slow
@pytest.mark.parametrize("tolerance", [0.75, 1.0, 2.0, 4.0])
def test_simplified_outlines_change_only_pixels_near_a_boundary(tolerance: float) -> None:
    labels = label_map(5, 128, 256)
    found = outlines(labels, tolerance)
    shapes = shapes_of(found)
    assert shapely.is_valid(shapes).all() and shapely.coverage_is_valid(shapes)  # neighbours touch, nothing overlaps
    assert corners(found) < 0.8 * corners(outlines(labels))
    changed = repainted(found, labels.shape) != labels
    assert boundary_distance(labels)[changed].max(initial=0) <= tolerance


def test_outlines_that_go_too_far_are_not_simplified(monkeypatch: pytest.MonkeyPatch) -> None:
    real = shapely.coverage_simplify
    monkeypatch.setattr(shapely, "coverage_simplify", lambda shapes, far, **options: real(shapes, 30 * far, **options))
    labels = label_map(4)
    assert np.array_equal(repainted(outlines(labels, 1.0), labels.shape), labels)


def test_a_tolerance_below_what_moves_a_pixel_changes_none() -> None:
    labels = label_map(1)
    assert np.array_equal(repainted(outlines(labels, 0.5), labels.shape), labels)


@pytest.mark.parametrize("labels", [np.zeros((1, 1), np.uint8), np.full((3, 5), 255, np.uint8)])
@pytest.mark.parametrize("tolerance", [0.0, 3.0])
def test_one_region_is_the_whole_image(labels: UInt8Array, tolerance: float) -> None:
    [(value, (ring,))] = outlines(labels, tolerance)
    height, width = labels.shape
    assert value == labels[0, 0]
    assert sorted(map(tuple, ring.tolist())) == [(0, 0), (0, height), (width, 0), (width, height)]


def test_noise_survives_any_tolerance_as_valid_polygons() -> None:
    labels = np.random.default_rng(0).integers(0, 3, (24, 24)).astype(np.uint8)
    found = outlines(labels, 2.0)
    assert shapely.is_valid(shapes_of(found)).all()
    assert np.array_equal(repainted(outlines(labels), labels.shape), labels)


def test_a_polygon_covers_the_pixels_whose_centres_shapely_finds_inside() -> None:
    size, rng = (40, 60), np.random.default_rng(3)
    rows, columns = np.indices(size) + 0.5
    for _ in range(20):
        angles = np.sort(rng.uniform(0, 2 * np.pi, 9))
        radius = rng.uniform(8, 30, 9)
        star = np.stack([30 + radius * np.cos(angles), 20 + radius * np.sin(angles)], 1)
        hole = 0.2 * (star - (30, 20)) + (30, 20)
        box, inside = filled((star, hole), size)
        mask = np.zeros(size, bool)
        mask[box] = inside
        assert np.array_equal(mask, shapely.contains_xy(shapely.Polygon(star, [hole]), columns, rows))


@pytest.mark.parametrize("shift", [(-1000, 0), (0, 1000), (1e6, -1e6)])
def test_a_polygon_outside_covers_nothing(shift: tuple[float, float]) -> None:
    ring = np.array([(0, 0), (5, 0), (5, 5)], float) + shift
    assert filled((ring,), (8, 8))[1].sum() == 0


@pytest.mark.parametrize("points", [[(1, 1)], [(1, 1), (5, 5)], [(1, 1), (5, 5), (3, 3)]])
def test_a_polygon_without_area_covers_nothing(points: list[tuple[int, int]]) -> None:
    assert filled((np.array(points, float),), (8, 8))[1].sum() == 0


def test_a_ring_with_seams_covers_what_the_polygon_with_holes_covers() -> None:
    labels = label_map(2)
    polygons = [polygon for _, polygon in outlines(labels) if len(polygon) > 2]
    assert polygons
    for polygon in polygons:
        ring = bridged(polygon)
        assert len(ring) == sum(map(len, polygon)) + 2 * (len(polygon) - 1)
        assert np.array_equal(filled((ring,), labels.shape)[1], filled(polygon, labels.shape)[1])
        steps = {frozenset((tuple(a), tuple(b))) for a, b in pairwise([*ring.tolist(), ring[0].tolist()])}
        own = [frozenset((tuple(a), tuple(b))) for r in polygon for a, b in pairwise([*r.tolist(), r[0].tolist()])]
        assert steps.issuperset(own)
