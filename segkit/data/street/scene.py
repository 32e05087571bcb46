"""Procedural street scenes with exact labels: a data set that needs no download, drawn from a random generator.

A scene is drawn from far to near: sky, skyline, ground, then everything that stands on it, sorted by distance.
Nearly every scene holds every class; posts are at least six pixels wide at a height of 128.
"""

from collections.abc import Callable
from functools import partial

import cv2
import numpy as np

from segkit.arrays import UInt8Array
from segkit.data.street import objects as things
from segkit.data.street.canvas import Canvas, Light

Painter = Callable[[], None]

_CURB, _WALL = 3.7, 7.2  # metres from the middle of the road to the curb and to the houses
_NEAR, _FAR = 1.3, 70.0

_WEATHER = (
    # sky top, sky at the horizon, gain of surfaces, strength of shadows
    ((66, 122, 196), (186, 214, 236), (1.06, 1.04, 0.98), 0.42),  # clear noon
    ((96, 146, 204), (214, 226, 232), (1.00, 1.00, 0.98), 0.34),  # fair
    ((150, 160, 172), (206, 210, 214), (0.86, 0.88, 0.92), 0.16),  # overcast
    ((86, 104, 160), (248, 202, 150), (1.08, 0.94, 0.80), 0.40),  # evening
    ((104, 136, 190), (236, 214, 206), (0.92, 0.92, 1.00), 0.28),  # morning
)


def draw_scene(rng: np.random.Generator, height: int, width: int) -> tuple[UInt8Array, UInt8Array]:
    """Draw one scene.

    Args:
        rng: Every choice comes from it: the same state gives the same scene.
        height: Pixels.
        width: Pixels.

    Returns:
        The image, uint8 RGB (H, W, 3), and its Cityscapes label ids, uint8 (H, W).
    """
    sky_top, sky_bottom, gain, shadow = _WEATHER[rng.integers(len(_WEATHER))]
    light = Light(sky_top, sky_bottom, gain, shadow, int(rng.choice((-1, 1))))
    middle = 0.5 * width / height + rng.uniform(-0.12, 0.12)
    canvas = Canvas((height, width), light, rng.uniform(0.40, 0.47), middle)
    _paint_sky(canvas, rng)
    _paint_skyline(canvas, rng)
    _paint_ground(canvas, rng)
    _paint_far_to_near(_houses(canvas, rng))  # walls stand behind everything on the pavements, at any distance
    _paint_far_to_near(_furniture(canvas, rng) + _cars(canvas, rng) + _people(canvas, rng))
    _paint_hood(canvas, rng)
    image, labels = canvas.finish()
    return _photograph(image, rng), labels


def _paint_far_to_near(items: list[tuple[float, Painter]]) -> None:
    for _, paint in sorted(items, key=lambda item: -item[0]):
        paint()


def _paint_sky(canvas: Canvas, rng: np.random.Generator) -> None:
    """A vertical gradient, the sun with its glow, and soft clouds; composed small, as nothing in it is sharp."""
    rows = int(canvas.horizon * canvas.height) + 2
    height, width = max(rows // 6, 8), max(canvas.width // 6, 16)
    ramp = np.linspace(0.0, 1.0, height)[:, None, None] ** 0.8
    column = np.array(canvas.light.sky_top) * (1 - ramp) + np.array(canvas.light.sky_bottom) * ramp
    sky = np.broadcast_to(column, (height, width, 3)).astype(np.float32)
    ys, xs = np.mgrid[:height, :width].astype(np.float32)
    sun = (width * (0.5 + canvas.light.sun_side * rng.uniform(0.12, 0.34)), height * rng.uniform(0.12, 0.45))
    distance = np.hypot(xs - sun[0], ys - sun[1]) / height
    strength = 1.6 * canvas.light.shadow
    glow = np.clip(strength * np.exp(-distance * 5.0) + (distance < 0.085) * strength, 0, 1)[..., None]
    sky = sky * (1 - glow) + np.array((255, 248, 222), np.float32) * glow
    clouds = np.zeros((height, width), np.float32)
    for _ in range(rng.integers(3, 8)):
        centre = (rng.uniform(0, width), rng.uniform(0.05, 0.75) * height)
        for _ in range(5):
            spot = (int(centre[0] + rng.normal(0, 0.05) * width), int(centre[1] + rng.normal(0, 0.04) * height))
            axes = (int(width * rng.uniform(0.03, 0.09)) + 1, int(height * rng.uniform(0.03, 0.08)) + 1)
            cv2.ellipse(clouds, spot, axes, 0, 0, 360, (rng.uniform(0.5, 0.9),), -1)
    cover = cv2.GaussianBlur(clouds, (0, 0), 0.035 * height)[..., None]
    white = np.array(canvas.lit((246, 246, 250)), np.float32)
    sky = sky * (1 - cover) + white * cover
    large = cv2.resize(sky, (canvas.width, rows), interpolation=cv2.INTER_LINEAR)
    canvas.image[:rows] = np.clip(large, 0, 255).astype(np.uint8)
    canvas.labels[:rows] = things.SKY


def _paint_skyline(canvas: Canvas, rng: np.random.Generator) -> None:
    """Hazy houses and trees where the street ends."""
    x = -95.0
    while x < 95.0:
        width, top = rng.uniform(6, 14), rng.uniform(5, 15)
        grey = things.pick(rng, ((150, 146, 140), (130, 132, 140), (160, 140, 124)))
        canvas.quad([(x, 0, 95), (x + width, 0, 95), (x + width, top, 95), (x, top, 95)], grey, things.BUILDING)
        x += width
    for x in rng.uniform(-30, 30, 6):
        things.foliage(canvas, rng, (x, 2.0, 90), (rng.uniform(3, 5), rng.uniform(2.5, 4)), (70, 110, 52))


def _paint_ground(canvas: Canvas, rng: np.random.Generator) -> None:
    """Pavements to both sides of a road with kerbs, edge lines and a dashed middle line."""
    slab = things.pick(rng, ((172, 164, 156), (158, 156, 158), (184, 172, 156)), 8)
    asphalt = things.pick(rng, ((84, 84, 88), (98, 96, 96), (70, 72, 78)), 6)
    for near, far in ((_NEAR, 6.0), (6.0, 12.0), (12.0, 30.0), (30.0, 95.0)):  # in pieces, for the haze
        canvas.quad([(-90, 0, near), (90, 0, near), (90, 0, far), (-90, 0, far)], slab, things.SIDEWALK)
    for z in np.geomspace(3.0, 40.0, 16):
        for side in (-1, 1):
            canvas.quad([(side * _CURB, 0, z), (side * _WALL, 0, z), (side * _WALL, 0, z * 1.012),
                         (side * _CURB, 0, z * 1.012)], slab, things.SIDEWALK, 0.86)  # fmt: skip
    for near, far in ((_NEAR, 6.0), (6.0, 12.0), (12.0, 30.0), (30.0, 95.0)):
        canvas.quad([(-_CURB, 0, near), (_CURB, 0, near), (_CURB, 0, far), (-_CURB, 0, far)], asphalt, things.ROAD)
    for side in (-1, 1):
        edge = side * _CURB
        _stripe(canvas, (edge, side * (_CURB + 0.22)), (_NEAR, 95.0), (206, 202, 194), things.SIDEWALK)
        _stripe(canvas, (side * 3.3, side * 3.42), (_NEAR, 95.0), (216, 214, 206), things.ROAD)
    start = rng.uniform(0.0, 4.0)
    for z in np.arange(_NEAR + start, 60.0, 5.0):
        _stripe(canvas, (-0.08, 0.08), (z, z + 2.4), (228, 226, 216), things.ROAD)
    if rng.random() < 0.4:
        z = rng.uniform(7.0, 11.0)
        for x in np.arange(-3.2, 3.0, 0.95):
            _stripe(canvas, (x, x + 0.5), (z, z + 2.6), (226, 224, 216), things.ROAD)


def _stripe(
    canvas: Canvas, x: tuple[float, float], z: tuple[float, float], colour: tuple[float, float, float], label: int
) -> None:
    canvas.quad([(x[0], 0, z[0]), (x[1], 0, z[0]), (x[1], 0, z[1]), (x[0], 0, z[1])], colour, label, 0.95)


def _houses(canvas: Canvas, rng: np.random.Generator) -> list[tuple[float, Painter]]:
    """Two rows of houses with gaps, in which hedges grow."""
    items: list[tuple[float, Painter]] = []
    for side in (-1, 1):
        z = rng.uniform(2.0, 6.0)
        while z < _FAR:
            length, top, x = rng.uniform(7, 13), rng.uniform(6, 15), side * (_WALL + rng.uniform(0, 1.2))
            items.append((z, partial(things.building, canvas, rng, x, (z, z + length), top)))
            z += length
            if rng.random() < 0.45:
                gap = rng.uniform(2.0, 4.5)
                spot = (side * (_WALL + 2.0), 1.4, z + 0.5 * gap)
                items.append((z + 0.5 * gap, partial(things.foliage, canvas, rng, spot, (3.0, 2.2), (66, 104, 48))))
                z += gap
    return items


def _furniture(canvas: Canvas, rng: np.random.Generator) -> list[tuple[float, Painter]]:
    """Trees, lamps, signs and traffic lights along both kerbs, in places of their own."""
    items: list[tuple[float, Painter]] = []
    for side in (-1, 1):
        kinds = rng.permutation(["tree", "lamp", "sign" if side < 0 or rng.random() < 0.5 else "light", "tree"])
        z = rng.uniform(5.0, 7.0)
        for kind in kinds:
            x = side * (_CURB + (1.9 if kind == "tree" else rng.uniform(0.5, 0.8)))
            if kind == "tree":
                items.append((z, partial(things.tree, canvas, rng, x, z, rng.uniform(1.2, 1.9))))
            else:
                painter = {"lamp": things.lamp, "sign": things.sign, "light": things.traffic_light}[str(kind)]
                items.append((z, partial(painter, canvas, rng, x, z)))
            z += rng.uniform(1.8, 3.6)
    return items


def _cars(canvas: Canvas, rng: np.random.Generator) -> list[tuple[float, Painter]]:
    """One car ahead, one coming towards us, some parked."""
    places = [(1.75, rng.uniform(6.5, 11.0), False), (-1.75, rng.uniform(6.0, 13.0), True)]
    if rng.random() < 0.6:
        places.append((-1.75, places[1][1] + rng.uniform(7.0, 12.0), True))
    if rng.random() < 0.5:
        places.append((1.75, places[0][1] + rng.uniform(7.0, 12.0), False))
    keep = places if rng.random() < 0.7 else places[rng.integers(2) :][:1] + places[2:]
    return [(z, partial(things.car, canvas, rng, x, z, front)) for x, z, front in keep]


def _people(canvas: Canvas, rng: np.random.Generator) -> list[tuple[float, Painter]]:
    """Two to five people on the pavements, now and then one who crosses."""
    places = [
        (float(rng.choice((-1, 1))) * rng.uniform(_CURB + 0.8, _WALL - 0.5), rng.uniform(4.6, 7.8))
        for _ in range(rng.integers(2, 6))
    ]
    if rng.random() < 0.35:
        places.append((rng.uniform(-2.5, 2.5), rng.uniform(5.5, 6.8)))
    return [(z, partial(things.person, canvas, rng, x, z)) for x, z in places]


def _paint_hood(canvas: Canvas, rng: np.random.Generator) -> None:
    """In some scenes a sliver of our own car, which is ignored."""
    if rng.random() < 0.5:
        return
    centre = (canvas.vanishing_x * canvas.scale, 1.02 * canvas.height)
    rise = rng.uniform(0.04, 0.06) * canvas.height
    paint = things.pick(rng, ((38, 40, 46), (70, 74, 82), (90, 30, 32)))
    canvas.disc(centre, (0.62 * canvas.width, rise), canvas.lit(paint), things.EGO)
    shine = (centre[0], centre[1] + 0.25 * rise)
    canvas.disc(shine, (0.56 * canvas.width, rise), canvas.lit(paint, 0, 1.25), things.EGO)


def _photograph(image: UInt8Array, rng: np.random.Generator) -> UInt8Array:
    """What a camera adds: uneven surfaces, exposure, a little blur and noise."""
    height, width = image.shape[:2]
    coarse = rng.normal(1.0, 0.035, (height // 8 + 2, width // 8 + 2)).astype(np.float32)
    fine = rng.normal(1.0, 0.022, (height // 2 + 1, width // 2 + 1)).astype(np.float32)
    texture = np.asarray(cv2.resize(coarse, (width, height))) * np.asarray(cv2.resize(fine, (width, height)))
    photo = image.astype(np.float32) * (texture * rng.uniform(0.88, 1.1))[..., None]
    noise = rng.standard_normal(photo.shape, np.float32) * rng.uniform(1.5, 4.0)
    photo = cv2.GaussianBlur(photo, (0, 0), rng.uniform(0.3, 0.6)) + noise
    return np.asarray(np.clip(photo, 0, 255), np.uint8)
