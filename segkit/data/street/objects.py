"""What stands on a street: buildings, trees, lamps, signs, cars and people, each painted by one function.

Positions and sizes are metres (see canvas.py); labels are Cityscapes label ids.
"""

from collections.abc import Sequence

import numpy as np

from segkit.data.street.canvas import CIRCLE, Canvas, Colour

ROAD, SIDEWALK, BUILDING, POLE, LIGHT, SIGN, VEGETATION, SKY, PERSON, CAR, EGO = 7, 8, 11, 17, 19, 20, 21, 23, 24, 26, 1

_WALLS: Sequence[Colour] = (
    (176, 132, 104), (198, 176, 142), (150, 86, 70), (205, 196, 180), (142, 140, 138), (188, 158, 120), (160, 168, 172),
)  # fmt: skip
_PAINTS: Sequence[Colour] = (
    (188, 30, 36), (32, 62, 128), (222, 222, 226), (52, 54, 60), (168, 172, 178), (28, 96, 84), (214, 160, 40),
)  # fmt: skip
_CLOTHES: Sequence[Colour] = (
    (200, 50, 60), (40, 60, 140), (230, 200, 60), (50, 120, 90), (150, 70, 140), (240, 240, 235), (40, 40, 46),
)  # fmt: skip
_SKINS: Sequence[Colour] = ((236, 188, 160), (198, 140, 106), (128, 84, 60))
_SIGNS: Sequence[tuple[int, float, float, Colour, Colour]] = (
    # corners, turn, size, rim, face
    (18, 0.0, 1.00, (200, 24, 32), (246, 246, 242)),
    (3, -np.pi / 2, 1.25, (200, 24, 32), (250, 222, 60)),
    (4, np.pi / 4, 1.20, (240, 240, 240), (26, 84, 176)),
)
_STEELS: Sequence[Colour] = ((38, 74, 64), (48, 62, 70), (56, 82, 84))  # painted: unlike walls, road and trunks
_GLASS: Colour = (58, 76, 92)


def pick(rng: np.random.Generator, colours: Sequence[Colour], spread: float = 14.0) -> Colour:
    """One of `colours`, each channel moved by up to `spread`."""
    red, green, blue = colours[int(rng.integers(len(colours)))]
    dr, dg, db = rng.uniform(-spread, spread, 3).tolist()
    return min(max(red + dr, 0.0), 255.0), min(max(green + dg, 0.0), 255.0), min(max(blue + db, 0.0), 255.0)


def building(canvas: Canvas, rng: np.random.Generator, x: float, depths: tuple[float, float], height: float) -> None:
    """A house along the street from depths[0] to depths[1], its wall at `x` (negative: left side)."""
    near, far = depths
    side = 1 if x > 0 else -1
    wall = pick(rng, _WALLS)
    sunny = 1.08 if side != canvas.light.sun_side else 0.84
    outer = x + side * 14.0
    roof = tuple(0.55 * value for value in wall)
    canvas.quad([(x, 0, near), (outer, 0, near), (outer, height, near), (x, height, near)], wall, BUILDING, 0.93)
    canvas.quad([(x, 0, near), (x, 0, far), (x, height, far), (x, height, near)], wall, BUILDING, sunny)
    base, eaves = height * 0.965, height * 1.02
    for line in ([(x, base, near), (x, base, far), (x, eaves, far), (x, eaves, near)],
                 [(x, base, near), (outer, base, near), (outer, eaves, near), (x, eaves, near)]):  # fmt: skip
        canvas.quad(line, (roof[0], roof[1], roof[2]), BUILDING)
    glass = pick(rng, (_GLASS, (40, 48, 58), (96, 122, 146), (214, 186, 120)), 10)
    storey = height / max(2, round(height / 3.2))
    _windows(canvas, rng, [(x, z) for z in np.arange(near + 0.7, far - 1.2, 2.6)], (0.0, 1.3), (height, storey), glass)
    front = [(x + side * step, near) for step in np.arange(0.9, 11.0, 2.8)]
    _windows(canvas, rng, front, (side * 1.4, 0.0), (height, storey), glass)


def _windows(
    canvas: Canvas,
    rng: np.random.Generator,
    columns: Sequence[tuple[float, float]],
    width: tuple[float, float],
    storeys: tuple[float, float],
    glass: Colour,
) -> None:
    """Rows of windows with frames; columns are the (x, z) of left edges, `width` the step to the right edge."""
    height, storey = storeys
    floors = np.arange(0.0, height - 0.8 * storey, storey)
    if not columns or not len(floors):
        return
    x, z = np.asarray(columns, np.float64).T
    bottom, left = np.meshgrid(floors + 0.28 * storey, np.arange(len(columns)), indexing="ij")
    bottom[0] = 0.1 * storey  # shop windows and doors on the ground floor
    top = np.broadcast_to((floors + 0.8 * storey)[:, None], bottom.shape)

    def corners(margin: float) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
        x0, z0 = x[left] - margin * np.sign(width[0]), z[left] - margin * np.sign(width[1])
        x1, z1 = x0 + width[0] + 2 * margin * np.sign(width[0]), z0 + width[1] + 2 * margin * np.sign(width[1])
        low, high = bottom - margin, top + margin
        points = [(x0, low, z0), (x1, low, z1), (x1, high, z1), (x0, high, z0)]
        world = np.stack([np.stack(point, -1) for point in points], -2)  # (floors, columns, 4, 3)
        return canvas.project(world.reshape(-1, 4, 3))

    distance = float(z.mean())
    panes = corners(0.0)
    shaded = rng.random(len(panes)) < 0.5
    canvas.polygons(corners(0.14), canvas.lit((226, 222, 212), distance, 0.92), BUILDING)
    for chosen, brightness in ((shaded, 0.8), (~shaded, 1.15)):
        if chosen.any():
            canvas.polygons(panes[chosen], canvas.lit(glass, distance, brightness), BUILDING)


def tree(canvas: Canvas, rng: np.random.Generator, x: float, z: float, size: float) -> None:
    """A trunk and a crown of many clumps of leaves; `size` is the crown's radius."""
    canvas.shadow(x - canvas.light.sun_side * 0.8 * size, z, 1.1 * size, 0.7 * size)
    stem = 0.75 * size + 1.0
    half = 0.12 * size
    trunk = [(x - half, 0, z), (x + half, 0, z), (x + 0.7 * half, stem, z), (x - 0.7 * half, stem, z)]
    canvas.quad(trunk, pick(rng, ((92, 70, 50),)), VEGETATION)
    foliage(canvas, rng, (x, stem + 0.75 * size, z), (size, 0.9 * size), pick(rng, ((62, 108, 44), (84, 124, 40))))


def foliage(
    canvas: Canvas, rng: np.random.Generator, centre: Sequence[float], radii: tuple[float, float], green: Colour
) -> None:
    """A cloud of leaf clumps around a point, dark ones below, bright ones towards the sun."""
    middle = canvas.project(centre)
    width, height = (canvas.pixels(radius, centre[2]) for radius in radii)
    for layer, brightness in enumerate((0.62, 0.85, 1.08, 1.3)):
        angle, part, radius = rng.uniform(0.0, 1.0, (3, 8))
        distance = (0.75 - 0.12 * layer) * np.sqrt(0.1 + 0.9 * part)
        spots = np.stack([np.cos(2 * np.pi * angle), np.sin(2 * np.pi * angle)], -1) * distance[:, None]
        spots += (canvas.light.sun_side * 0.09 * layer, -0.09 * layer)
        clumps = spots[:, None] + CIRCLE * ((0.24 + 0.2 * radius) * (1.0 - 0.14 * layer))[:, None, None]  # (8, 20, 2)
        canvas.polygons(middle + clumps * (width, height), canvas.lit(green, centre[2], brightness), VEGETATION)


def _post(canvas: Canvas, x: float, z: float, height: float, colour: Colour) -> float:
    """A vertical post, at least six final pixels of 128 wide; returns its half width in metres."""
    half = max(0.13, 0.5 * 0.048 * z / canvas.focal)
    canvas.shadow(x - canvas.light.sun_side * 0.8, z, 0.8, 0.15)
    canvas.quad([(x - half, 0, z), (x + half, 0, z), (x + half, height, z), (x - half, height, z)], colour, POLE)
    edge = x + canvas.light.sun_side * half
    inner = x + canvas.light.sun_side * 0.35 * half
    canvas.quad([(inner, 0, z), (edge, 0, z), (edge, height, z), (inner, height, z)], colour, POLE, 1.3)
    return half


def lamp(canvas: Canvas, rng: np.random.Generator, x: float, z: float) -> None:
    """A street lamp whose arm reaches over the road."""
    grey = pick(rng, _STEELS, 6)
    height = rng.uniform(4.6, 5.6)
    half = _post(canvas, x, z, height, grey)
    arm = x - np.sign(x) * rng.uniform(1.2, 1.7)
    low = height - 2 * half
    canvas.quad([(x, low, z), (x, height, z), (arm, height + 0.25, z), (arm, low + 0.3, z)], grey, POLE)
    tip = arm - np.sign(x) * 0.7
    canvas.quad([(arm, low + 0.1, z), (arm, height + 0.3, z), (tip, height + 0.25, z), (tip, low + 0.2, z)],
                grey, POLE, 0.8)  # fmt: skip
    canvas.quad([(arm, low + 0.1, z), (tip, low + 0.2, z), (tip, low + 0.3, z), (arm, low + 0.2, z)],
                (255, 244, 200), POLE, 1.1)  # fmt: skip


def sign(canvas: Canvas, rng: np.random.Generator, x: float, z: float) -> None:
    """A round, triangular or square traffic sign on a post."""
    _post(canvas, x, z, 2.5, pick(rng, _STEELS, 6))
    middle = canvas.project((x, 2.75, z))
    radius = canvas.pixels(max(0.55, 0.068 * z / canvas.focal), z)
    kind = int(rng.integers(len(_SIGNS)))
    corners, turn, size, rim, face = _SIGNS[kind]
    angles = np.arange(corners) * 2 * np.pi / corners + turn
    shape = np.stack([np.cos(angles), np.sin(angles)], -1) * radius * size
    canvas.polygons(middle + shape, canvas.lit(rim, z), SIGN)
    canvas.polygons(middle + 0.68 * shape, canvas.lit(face, z), SIGN)
    bar = np.array([(-0.3, -0.1), (0.3, -0.1), (0.3, 0.1), (-0.3, 0.1)]) * radius
    canvas.polygons(middle + (bar if kind else bar[:, ::-1]), canvas.lit((36, 36, 40), z), SIGN)


def traffic_light(canvas: Canvas, rng: np.random.Generator, x: float, z: float) -> None:
    """A post with a box of three lamps, one of them on."""
    _post(canvas, x, z, 2.7, pick(rng, _STEELS, 6))
    half = max(0.36, 0.048 * z / canvas.focal)
    low, high = 2.4, 2.4 + 5.2 * half
    canvas.quad([(x - half, low, z), (x + half, low, z), (x + half, high, z), (x - half, high, z)], (34, 36, 38), LIGHT)
    on = rng.integers(3)
    for index, colour in enumerate(((255, 54, 40), (255, 190, 40), (60, 240, 120))):
        spot = canvas.project((x, high - half * (1.0 + 1.6 * index), z))
        radius = canvas.pixels(0.62 * half, z)
        shown = colour if index == on else tuple(0.3 * value for value in colour)
        canvas.disc(spot, (radius, radius), (shown[0], shown[1], shown[2]), LIGHT)


def car(canvas: Canvas, rng: np.random.Generator, x: float, z: float, facing_us: bool) -> None:
    """A car seen along the street, its near end at `z`."""
    paint = pick(rng, _PAINTS, 18)
    half, length = 0.95, 4.2
    roof, belt, sill = rng.uniform(1.45, 1.75), rng.uniform(0.88, 1.0), 0.28
    end = z + length
    canvas.shadow(x - canvas.light.sun_side * 0.25, z + 0.45 * length, 1.3, 0.62 * length)
    flank = x + half if x < 0 else x - half  # the side that the camera sees
    inset = 0.17 * (1 if x < 0 else -1)
    bright = 0.78 if (x < 0) == (canvas.light.sun_side < 0) else 0.95
    for wheel_z in (z + 0.85, end - 0.85):
        tyre = [(flank, 0.34 + 0.34 * up, wheel_z + 0.36 * along) for along, up in CIRCLE]
        canvas.quad(tyre, (22, 22, 24), CAR)
    for wheel_x in (x - half + 0.16, x + half - 0.16):
        canvas.quad([(wheel_x - 0.15, 0, z + 0.1), (wheel_x + 0.15, 0, z + 0.1), (wheel_x + 0.15, 0.5, z + 0.1),
                     (wheel_x - 0.15, 0.5, z + 0.1)], (20, 20, 22), CAR)  # fmt: skip
    canvas.quad([(flank, sill, z), (flank, sill, end), (flank, belt, end), (flank, belt, z)], paint, CAR, bright)
    slope = 1.3 if facing_us else 0.45
    top = flank - inset
    cabin = [(flank, belt, z + 0.1), (flank, belt, end - 0.3), (top, roof, end - 1.0), (top, roof, z + slope)]
    canvas.quad(cabin, paint, CAR, bright)
    glass = [(flank, belt + 0.05, z + 0.45), (flank, belt + 0.05, end - 0.7), (top, roof - 0.12, end - 1.15),
             (top, roof - 0.12, z + slope + 0.15)]  # fmt: skip
    canvas.quad(glass, _GLASS, CAR, 0.8)
    _car_end(canvas, (x, z, half), (sill, belt, roof), paint, slope if facing_us else 0.0)


def _car_end(
    canvas: Canvas, place: tuple[float, float, float], heights: tuple[float, float, float], paint: Colour, bonnet: float
) -> None:
    """The end that the camera sees: a rear, or a front with its bonnet (metres) before the windscreen."""
    x, z, half = place
    sill, belt, roof = heights
    top = half - 0.17
    screen = z + bonnet
    canvas.quad([(x - half, belt, z + 0.1), (x + half, belt, z + 0.1), (x + top, roof, screen + 0.4),
                 (x - top, roof, screen + 0.4)], paint, CAR, 1.05)  # fmt: skip
    low = belt + 0.06 + 0.12 * bonnet
    canvas.quad([(x - half + 0.12, low, z + 0.1), (x + half - 0.12, low, z + 0.1), (x + top - 0.08, roof - 0.1, screen),
                 (x - top + 0.08, roof - 0.1, screen)], _GLASS, CAR, 1.2)  # fmt: skip
    canvas.quad([(x - half, sill, z), (x + half, sill, z), (x + half, belt, z), (x - half, belt, z)], paint, CAR, 0.92)
    canvas.quad([(x - half, sill, z), (x + half, sill, z), (x + half, sill + 0.2, z), (x - half, sill + 0.2, z)],
                (40, 40, 42), CAR)  # fmt: skip
    lamps: Colour = (250, 246, 216) if bonnet else (214, 26, 26)
    for sign_x in (-1, 1):
        outer, inner = x + sign_x * (half - 0.04), x + sign_x * (half - 0.36)
        canvas.quad([(outer, belt - 0.3, z), (inner, belt - 0.3, z), (inner, belt - 0.1, z), (outer, belt - 0.1, z)],
                    lamps, CAR, 1.1)  # fmt: skip
    canvas.quad([(x - 0.27, 0.5, z), (x + 0.27, 0.5, z), (x + 0.27, 0.64, z), (x - 0.27, 0.64, z)],
                (236, 236, 224), CAR)  # fmt: skip


def person(canvas: Canvas, rng: np.random.Generator, x: float, z: float) -> None:
    """A walking person: legs, trunk, arms, head and hair."""
    top, legs, skin = pick(rng, _CLOTHES), pick(rng, ((44, 52, 84), (60, 56, 52), (120, 104, 84))), pick(rng, _SKINS, 8)
    size = rng.uniform(0.93, 1.08)
    stride = rng.uniform(0.12, 0.28)
    lean = rng.choice((-1.0, 1.0))
    canvas.shadow(x - canvas.light.sun_side * 0.5, z, 0.7, 0.2)

    def limb(start: tuple[float, float], stop: tuple[float, float], width: float, colour: Colour, shade: float) -> None:
        (x0, y0), (x1, y1) = start, stop
        canvas.quad([(x + size * (x0 - width), size * y0, z), (x + size * (x0 + width), size * y0, z),
                     (x + size * (x1 + 0.8 * width), size * y1, z), (x + size * (x1 - 0.8 * width), size * y1, z)],
                    colour, PERSON, shade)  # fmt: skip

    for foot, shade in ((-stride, 0.8), (stride, 1.0)):
        limb((0.4 * foot, 0.92), (foot, 0.06), 0.16, legs, shade)
        limb((foot, 0.1), (foot + 0.08 * lean, 0.0), 0.17, (30, 26, 26), 1.0)
    limb((0.33, 1.4), (0.33 + 0.5 * stride, 0.85), 0.1, top, 0.8)
    limb((0.0, 1.52), (0.0, 0.82), 0.32, top, 1.0)
    limb((-0.33, 1.4), (-0.33 - 0.5 * stride, 0.85), 0.1, top, 0.9)
    radius = canvas.pixels(0.18 * size, z)
    hair = canvas.lit(pick(rng, ((50, 36, 28), (24, 22, 22), (150, 110, 60), (120, 120, 120))), z)
    head = canvas.project((x, 1.7 * size, z))
    canvas.disc(head - (0.0, 0.25 * radius), (1.05 * radius, 1.15 * radius), hair, PERSON)
    face = head + np.array((0.2 * lean * radius, 0.15 * radius))
    canvas.disc(face, (0.85 * radius, 1.0 * radius), canvas.lit(skin, z), PERSON)
