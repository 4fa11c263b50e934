"""Coverage: the share of every pixel that a shape, a pattern or a texture covers, anti-aliased by signed distance.

Pure functions of coordinates that broadcast, so a whole video is rendered at once. y points down, as in images.
Distances are negative inside. Coordinates are in units of the radius for sprites, and of half the frame's short side
for textures.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Field = Callable[[np.ndarray, np.ndarray], np.ndarray]

# The largest distance of a shape's outline from its centre, in radii (reached by the corner of the square).
REACH = 1.25


def coverage(distance: np.ndarray, pixels_per_unit: float) -> np.ndarray:
    """Signed distance -> share of the pixel that is inside, 0..1, with an edge one pixel wide."""
    return np.clip(0.5 - distance * pixels_per_unit, 0.0, 1.0)


def _circle(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.sqrt(x * x + y * y) - 0.96


def _square(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.maximum(np.abs(x), np.abs(y)) - 0.84


def _triangle(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    inradius = 0.6
    below = y - inradius / 2  # the centroid lies lower than the middle of the height
    return np.maximum(below - inradius, 0.8660254 * np.abs(x) - 0.5 * below - inradius)


def _ring(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.abs(np.sqrt(x * x + y * y) - 0.74) - 0.25


def _cross(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    x, y, length, half_width = np.abs(x), np.abs(y), 0.98, 0.33
    across, upright = np.maximum(x - length, y - half_width), np.maximum(x - half_width, y - length)
    return np.minimum(across, upright)


def _star(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    # Exact distance to a five-pointed star by folding the plane onto half of one point (I. Quilez's 2D distances).
    radius, depth, cos36, sin36 = 1.18, 0.46, 0.80901699, 0.58778525
    x, y = np.abs(x), 0.06 - y
    fold = 2.0 * np.maximum(cos36 * x - sin36 * y, 0.0)
    x, y = x - fold * cos36, y + fold * sin36
    fold = 2.0 * np.maximum(-cos36 * x - sin36 * y, 0.0)
    x, y = np.abs(x + fold * cos36), y + fold * sin36 - radius
    edge_x, edge_y = depth * sin36, depth * cos36 - 1.0
    along = np.clip((x * edge_x + y * edge_y) / (edge_x**2 + edge_y**2), 0.0, radius)
    off_x, off_y = x - edge_x * along, y - edge_y * along
    return np.sqrt(off_x**2 + off_y**2) * np.sign(y * edge_x - x * edge_y)


# name -> signed distance, in radii of the sprite.
SHAPES: dict[str, Field] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "ring": _ring,
    "cross": _cross,
}

_DIAGONAL = 0.70710678

# Share of a texture's period that its figure covers: clearly less than half, because with equal stripes figure and
# ground could not be told apart.
SHARE = 0.34

# name -> signed distance to the pattern's marks, in radii of the sprite.
PATTERNS: dict[str, Field] = {
    "plain": lambda x, y: np.full_like(y, np.inf),
    "stripes": lambda x, y: _stripes((x - y) * _DIAGONAL, 0.6, 0.36),
    "dots": lambda x, y: _dots(x, y, 0.8, 0.25),
}


def texture(name: str, x: np.ndarray, y: np.ndarray, pixels_per_unit: float) -> np.ndarray:
    """Weight of the figure colour over the ground colour, 0..1, at x, y (half short sides from the middle).

    The shape is what x and y broadcast to, or can be broadcast to it: textures that vary along one axis
    are computed along that axis only.
    """
    return TEXTURES[name](x, y, pixels_per_unit)


def _stripes(position: np.ndarray, period: float, share: float = SHARE) -> np.ndarray:
    """Distance to the nearest stripe of width share * period; one stripe is centred on 0."""
    return np.abs(_centred(position, period)) - share * period / 2


def _dots(x: np.ndarray, y: np.ndarray, period: float, radius: float) -> np.ndarray:
    """Distance to the nearest disc of a square lattice; one disc is centred on 0."""
    x, y = _centred(x, period), _centred(y, period)
    return np.sqrt(x * x + y * y) - radius


def _centred(position: np.ndarray, period: float) -> np.ndarray:
    return position - period * np.round(position / period)


def _grid(x: np.ndarray, y: np.ndarray, pixels: float) -> np.ndarray:
    a, b = coverage(_stripes(x, 0.72, 0.25), pixels), coverage(_stripes(y, 0.72, 0.25), pixels)
    return a + b - a * b  # either, for partly covered pixels


def _diagonal_stripes(x: np.ndarray, y: np.ndarray, pixels: float) -> np.ndarray:
    return coverage(_stripes((x + y) * _DIAGONAL, 0.56), pixels)


def _clouds(x: np.ndarray, y: np.ndarray, pixels: float) -> np.ndarray:
    # Products of waves with unrelated periods, so that no lattice appears.
    waves = np.sin(4.1 * x + 0.3) * np.cos(3.3 * y - 0.8) + 0.7 * np.sin(6.7 * y + 1.9) * np.cos(5.3 * x + 0.4)
    return np.clip(0.25 + 0.9 * waves, 0.0, 1.0)


# name -> weight of the figure colour. Textures have no further parameters, so that "brown dots on beige" is one image
# and an instruction determines its target.
TEXTURES: dict[str, Callable[[np.ndarray, np.ndarray, float], np.ndarray]] = {
    "plain": lambda x, y, pixels: np.zeros_like(y),
    "gradient": lambda x, y, pixels: 0.5 + 0.5 * np.sin(1.5707963 * y),
    "horizontal stripes": lambda x, y, pixels: coverage(_stripes(y, 0.56), pixels),
    "vertical stripes": lambda x, y, pixels: coverage(_stripes(x, 0.56), pixels),
    "diagonal stripes": _diagonal_stripes,
    "grid": _grid,
    "dots": lambda x, y, pixels: coverage(_dots(x, y, 0.56, 0.17), pixels),
    "clouds": _clouds,
}
