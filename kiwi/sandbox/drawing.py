"""Shapes, patterns and textures as pure functions of coordinates, anti-aliased with signed distances.

Coordinates broadcast, so a whole video is rendered at once; y points down, as in images. For shapes and patterns their
unit is the radius of the sprite, for textures half the shorter side of the frame. Signed distances are negative inside.
"""

from collections.abc import Callable

import numpy as np

SignedDistance = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Function from x and y to signed distances."""

# No shape extends farther from its centre along x or y, in radii.
MAX_EXTENT = 1.25


def coverage(distance: np.ndarray, pixels_per_unit: float) -> np.ndarray:
    """Convert signed distances to the share of each pixel that is inside, 0..1, with an edge one pixel wide."""
    return np.clip(0.5 - distance * pixels_per_unit, 0.0, 1.0)


def _circle(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.sqrt(x * x + y * y) - 0.96


def _square(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.maximum(np.abs(x), np.abs(y)) - 0.84


def _triangle(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    inradius = 0.6
    y = y - inradius / 2  # the centroid is below the middle of the height
    return np.maximum(y - inradius, 0.8660254 * np.abs(x) - 0.5 * y - inradius)


def _ring(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.abs(np.sqrt(x * x + y * y) - 0.74) - 0.25


def _cross(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    x, y, length, half_width = np.abs(x), np.abs(y), 0.98, 0.33
    horizontal, vertical = np.maximum(x - length, y - half_width), np.maximum(x - half_width, y - length)
    return np.minimum(horizontal, vertical)


def _star(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    # Exact distance to a five-pointed star: the plane is folded onto half of one point (I. Quilez, 2D SDF functions).
    radius, depth, cos36, sin36 = 1.18, 0.46, 0.80901699, 0.58778525
    x, y = np.abs(x), 0.06 - y
    fold = 2.0 * np.maximum(cos36 * x - sin36 * y, 0.0)
    x, y = x - fold * cos36, y + fold * sin36
    fold = 2.0 * np.maximum(-cos36 * x - sin36 * y, 0.0)
    x, y = np.abs(x + fold * cos36), y + fold * sin36 - radius
    edge_x, edge_y = depth * sin36, depth * cos36 - 1.0
    position = np.clip((x * edge_x + y * edge_y) / (edge_x**2 + edge_y**2), 0.0, radius)
    offset_x, offset_y = x - edge_x * position, y - edge_y * position
    return np.sqrt(offset_x**2 + offset_y**2) * np.sign(y * edge_x - x * edge_y)


# Signed distance to the outline of each shape.
SHAPES: dict[str, SignedDistance] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "ring": _ring,
    "cross": _cross,
}

_DIAGONAL = 0.70710678

# Share of a texture's period that the stripes in the pattern colour cover: clearly less than half, because with equal
# stripes the pattern and base colours could not be distinguished.
STRIPE_SHARE = 0.34

# Signed distance to the marks of each pattern.
PATTERNS: dict[str, SignedDistance] = {
    "plain": lambda x, y: np.full_like(y, np.inf),
    "stripes": lambda x, y: _stripes((x - y) * _DIAGONAL, 0.6, 0.36),
    "dots": lambda x, y: _dots(x, y, 0.8, 0.25),
}


def _stripes(position: np.ndarray, period: float, share: float = STRIPE_SHARE) -> np.ndarray:
    """Signed distance to the nearest stripe of width share * period; one stripe is centred on 0."""
    return np.abs(_wrap(position, period)) - share * period / 2


def _dots(x: np.ndarray, y: np.ndarray, period: float, radius: float) -> np.ndarray:
    """Signed distance to the nearest disc of a square lattice; one disc is centred on 0."""
    x, y = _wrap(x, period), _wrap(y, period)
    return np.sqrt(x * x + y * y) - radius


def _wrap(position: np.ndarray, period: float) -> np.ndarray:
    """Offset from the nearest multiple of the period."""
    return position - period * np.round(position / period)


def _grid(x: np.ndarray, y: np.ndarray, pixels_per_unit: float) -> np.ndarray:
    vertical = coverage(_stripes(x, 0.72, 0.25), pixels_per_unit)
    horizontal = coverage(_stripes(y, 0.72, 0.25), pixels_per_unit)
    return vertical + horizontal - vertical * horizontal  # their union, also for partly covered pixels


def _diagonal_stripes(x: np.ndarray, y: np.ndarray, pixels_per_unit: float) -> np.ndarray:
    return coverage(_stripes((x + y) * _DIAGONAL, 0.56), pixels_per_unit)


def _clouds(x: np.ndarray, y: np.ndarray, pixels_per_unit: float) -> np.ndarray:
    # The periods of the waves are unrelated, so that no lattice appears.
    waves = np.sin(4.1 * x + 0.3) * np.cos(3.3 * y - 0.8) + 0.7 * np.sin(6.7 * y + 1.9) * np.cos(5.3 * x + 0.4)
    return np.clip(0.25 + 0.9 * waves, 0.0, 1.0)


# Weight of the pattern colour over the base colour, 0..1, as a function of x, y and the number of pixels per unit.
# Textures that vary along one axis are computed along that axis only, and broadcast. There are no further parameters,
# so "brown dots on beige" is a single image and an instruction determines its target.
TEXTURES: dict[str, Callable[[np.ndarray, np.ndarray, float], np.ndarray]] = {
    "plain": lambda x, y, scale: np.zeros_like(y),
    "gradient": lambda x, y, scale: 0.5 + 0.5 * np.sin(1.5707963 * y),
    "horizontal stripes": lambda x, y, scale: coverage(_stripes(y, 0.56), scale),
    "vertical stripes": lambda x, y, scale: coverage(_stripes(x, 0.56), scale),
    "diagonal stripes": _diagonal_stripes,
    "grid": _grid,
    "dots": lambda x, y, scale: coverage(_dots(x, y, 0.56, 0.17), scale),
    "clouds": _clouds,
}
