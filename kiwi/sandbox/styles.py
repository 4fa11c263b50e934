"""Global styles: functions from pixel to pixel, with uint8 RGB in the last axis."""

from collections.abc import Callable

import numpy as np

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # Rec. 601
_SEPIA = np.array([[0.393, 0.769, 0.189], [0.349, 0.686, 0.168], [0.272, 0.534, 0.131]], np.float32)
# Number of values per channel that posterising keeps.
_LEVELS = 3


def grey(video: np.ndarray) -> np.ndarray:
    """Replace each colour with its luma, repeated in all three channels."""
    return np.repeat(_to_uint8(video @ _LUMA)[..., None], 3, axis=-1)


def sepia(video: np.ndarray) -> np.ndarray:
    """Apply the common sepia matrix and clip."""
    return _to_uint8(video @ _SEPIA.T)


def invert(video: np.ndarray) -> np.ndarray:
    """Return the photographic negative."""
    return 255 - video


def posterise(video: np.ndarray) -> np.ndarray:
    """Round each channel to 0, 127 or 255."""
    nearest = np.round(np.arange(256) / 255 * (_LEVELS - 1)) / (_LEVELS - 1) * 255
    return nearest.astype(np.uint8)[video]


# Each name is also a key of kiwi.sandbox.grammar.WORDINGS.
STYLES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "grey": grey,
    "sepia": sepia,
    "invert": invert,
    "posterise": posterise,
}


def _to_uint8(values: np.ndarray) -> np.ndarray:
    return np.clip(values + 0.5, 0, 255).astype(np.uint8)
