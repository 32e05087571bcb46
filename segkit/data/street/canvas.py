"""A canvas seen by a pinhole camera over a flat street: shapes given in metres, painted into image and labels.

Axes: X metres right of the camera, Y metres above the ground, Z metres ahead. Everything is painted at three times
the final size; the image is then averaged (smooth edges), and labels are taken at the middle pixel (crisp edges).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from segkit.arrays import Float64Array, UInt8Array

Colour = tuple[float, float, float]

SUPER = 3
_SHIFT = 4  # fractional bits of OpenCV's polygon corners
_VISIBILITY = 160.0  # metres until haze has taken 63 % of a colour
CIRCLE = np.array([(math.cos(step * math.pi / 10), math.sin(step * math.pi / 10)) for step in range(20)])
_LIMIT = 30000.0  # pixels: polygons close to the camera stay within OpenCV's integers


@dataclass(frozen=True)
class Light:
    """The weather: colours 0..255 RGB; `sun_side` is -1 (left) or 1 (right); `gain` multiplies every surface."""

    sky_top: Colour
    sky_bottom: Colour
    gain: Colour
    shadow: float
    sun_side: int


class Canvas:
    """Image and labels of `size` (H, W) under a light, with the horizon and the vanishing point in heights."""

    def __init__(self, size: tuple[int, int], light: Light, horizon: float, vanishing_x: float) -> None:
        self.light = light
        self.scale = float(size[0] * SUPER)  # pixels of one image height
        self.height, self.width = size[0] * SUPER, size[1] * SUPER
        self.horizon = horizon
        self.vanishing_x = vanishing_x
        self.focal = 0.85  # image heights
        self.eye = 2.0  # metres above the ground
        self.image = np.zeros((self.height, self.width, 3), np.uint8)
        self.labels = np.zeros((self.height, self.width), np.uint8)

    def project(self, points: Sequence[Sequence[float]] | Sequence[float] | Float64Array) -> Float64Array:
        """Metres (..., 3) to canvas pixels (..., 2)."""
        world = np.asarray(points, np.float64)
        factor = self.focal * self.scale / world[..., 2]
        pixels = np.empty((*world.shape[:-1], 2))
        pixels[..., 0] = self.vanishing_x * self.scale + world[..., 0] * factor
        pixels[..., 1] = self.horizon * self.scale + (self.eye - world[..., 1]) * factor
        return np.minimum(np.maximum(pixels, -_LIMIT), _LIMIT)

    def pixels(self, metres: float, distance: float) -> float:
        """Canvas pixels of a length at a distance."""
        return metres * self.focal * self.scale / distance

    def lit(self, colour: Colour, distance: float = 0.0, brightness: float = 1.0) -> Colour:
        """A surface's colour under this light, seen through the haze."""
        clear = math.exp(-distance / _VISIBILITY)
        gain, sky = self.light.gain, self.light.sky_bottom
        return (
            min(255.0, clear * brightness * gain[0] * colour[0] + (1.0 - clear) * sky[0]),
            min(255.0, clear * brightness * gain[1] * colour[1] + (1.0 - clear) * sky[1]),
            min(255.0, clear * brightness * gain[2] * colour[2] + (1.0 - clear) * sky[2]),
        )

    def polygons(self, corners: Float64Array, colour: Colour, label: int) -> None:
        """Fill convex polygons given in canvas pixels, (N, P, 2) or (P, 2); the colour is used as it is."""
        batch = corners if corners.ndim == 3 else corners[None]
        seen = (batch.max(1) > 0).all(-1) & (batch.min(1) < (self.width, self.height)).all(-1)
        for polygon in np.round(batch[seen] * (1 << _SHIFT)).astype(np.int32):
            cv2.fillConvexPoly(self.image, polygon, colour, shift=_SHIFT)
            cv2.fillConvexPoly(self.labels, polygon, (label,), shift=_SHIFT)

    def quad(self, points: Sequence[Sequence[float]], colour: Colour, label: int, brightness: float = 1.0) -> None:
        """Fill a polygon given in metres, lit at its mean distance."""
        distance = sum(point[2] for point in points) / len(points)
        self.polygons(self.project(points), self.lit(colour, distance, brightness), label)

    def disc(
        self, centre: Sequence[float] | Float64Array, radii: tuple[float, float], colour: Colour, label: int
    ) -> None:
        """Fill an upright ellipse with centre and radii in canvas pixels; the colour is used as it is."""
        self.polygons(CIRCLE * radii + np.asarray(centre), colour, label)

    def shadow(self, x: float, z: float, half_width: float, half_depth: float) -> None:
        """Darken an ellipse on the ground, in metres; labels stay."""
        ground = np.zeros((len(CIRCLE), 3))
        ground[:, 0] = x + half_width * CIRCLE[:, 0]
        ground[:, 2] = np.maximum(z + half_depth * CIRCLE[:, 1], 1.2)
        corners = self.project(ground)
        left, top = np.floor(corners.min(0)).astype(int).clip(0, (self.width, self.height))
        right, bottom = np.ceil(corners.max(0)).astype(int).clip(0, (self.width, self.height))
        if right <= left or bottom <= top:
            return
        mask = np.zeros((bottom - top, right - left), np.uint8)
        cv2.fillPoly(mask, [np.round(corners - (left, top)).astype(np.int32)], (255,))
        region = self.image[top:bottom, left:right]
        darker = cv2.convertScaleAbs(region, alpha=1.0 - self.light.shadow)
        region[mask > 0] = darker[mask > 0]

    def finish(self) -> tuple[UInt8Array, UInt8Array]:
        """Image (H, W, 3) and labels (H, W) at their final size."""
        size = (self.width // SUPER, self.height // SUPER)
        image = cv2.resize(self.image, size, interpolation=cv2.INTER_AREA)
        middle = SUPER // 2
        return np.asarray(image, np.uint8), np.ascontiguousarray(self.labels[middle::SUPER, middle::SUPER])
