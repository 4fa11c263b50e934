"""Named colours, eight vivid ones for sprites and nine muted ones for backgrounds, and styles that change all colours.

All sprite colours are far from all background colours, so every sprite is visible on every background and every colour
can be named from an image; tests check the distances.
"""

from collections.abc import Callable
from functools import cache

import numpy as np

RGB = tuple[int, int, int]

SPRITE_COLOURS: dict[str, RGB] = {
    "red": (224, 40, 44),
    "orange": (246, 138, 30),
    "yellow": (248, 220, 48),
    "green": (52, 172, 66),
    "cyan": (44, 206, 214),
    "blue": (30, 92, 232),
    "purple": (150, 44, 178),
    "pink": (246, 120, 190),
}

BACKGROUND_COLOURS: dict[str, RGB] = {
    "white": (255, 255, 255),
    "grey": (136, 136, 140),
    "black": (20, 20, 24),
    "brown": (104, 72, 46),
    "beige": (216, 198, 164),
    "navy": (26, 36, 82),
    "maroon": (84, 22, 38),
    "dark green": (24, 66, 46),
    "lavender": (204, 196, 232),
}

# Minimum distance in CIELAB between the two colours of a background, so that its texture is visible.
MIN_TEXTURE_CONTRAST = 38.0

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # Rec. 601
_SEPIA = np.array([[0.393, 0.769, 0.189], [0.349, 0.686, 0.168], [0.272, 0.534, 0.131]], np.float32)
# Number of values per channel that posterising keeps.
_LEVELS = 3


def lab_distance(first: RGB, second: RGB) -> float:
    """Distance between two sRGB colours (0..255) in CIELAB (D65); about 2 is just noticeable, black to white is 100."""
    return float(np.linalg.norm(to_lab(np.array(first)) - to_lab(np.array(second))))


@cache
def contrasting_colours(colour: str) -> tuple[str, ...]:
    """Names of the background colours that make a texture visible together with the background colour `colour`."""
    own_rgb = BACKGROUND_COLOURS[colour]
    return tuple(name for name, rgb in BACKGROUND_COLOURS.items() if lab_distance(rgb, own_rgb) >= MIN_TEXTURE_CONTRAST)


def to_lab(colours: np.ndarray) -> np.ndarray:
    """Convert sRGB colours (0..255, in the last axis) to CIELAB (D65), float32 of the same shape."""
    srgb = np.asarray(colours, np.float32) / 255.0
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]], np.float32)
    xyz = linear @ to_xyz.T / np.array([0.9505, 1.0, 1.089], np.float32)
    x, y, z = np.moveaxis(np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116), -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def round_to_uint8(values: np.ndarray) -> np.ndarray:
    """Round pixel values to the nearest level and clip them to 0..255."""
    return np.clip(values + 0.5, 0, 255).astype(np.uint8)


def grey(video: np.ndarray) -> np.ndarray:
    """Replace each colour with its luma, repeated in all three channels."""
    return np.repeat(round_to_uint8(video @ _LUMA)[..., None], 3, axis=-1)


def sepia(video: np.ndarray) -> np.ndarray:
    """Apply the common sepia matrix and clip."""
    return round_to_uint8(video @ _SEPIA.T)


def invert(video: np.ndarray) -> np.ndarray:
    """Return the photographic negative."""
    return 255 - video


def posterise(video: np.ndarray) -> np.ndarray:
    """Round each channel to 0, 127 or 255."""
    nearest = np.round(np.arange(256) / 255 * (_LEVELS - 1)) / (_LEVELS - 1) * 255
    return nearest.astype(np.uint8)[video]


# Functions from uint8 RGB to uint8 RGB, in the last axis. Each name is also a key of kiwi.sandbox.grammar.WORDINGS.
STYLES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "grey": grey,
    "sepia": sepia,
    "invert": invert,
    "posterise": posterise,
}
