"""Scenes of moving sprites over a drifting background, rendered into video with exact masks.

A `Scene` is a few numbers and names, which kiwi.sandbox.sampling samples; `draw` renders it to pixels, and edits
(kiwi.sandbox.edits) map one scene to another.

Positions are per axis, -1 (left, top) to 1 (right, bottom); sizes are in halves of the frame's short side;
velocities are in positions per frame. A scene therefore has no resolution or length: fewer frames are a prefix, and
every size shows the same scene. Arrays: F frames, H height, W width, C = 3 (RGB), N sprites.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kiwi.errors import InputError
from kiwi.sandbox.drawing import PATTERNS, REACH, SHAPES, coverage, texture
from kiwi.sandbox.palette import BACKGROUND_COLOURS, SPRITE_COLOURS

# A mark on a sprite is the sprite's colour multiplied by this.
MARK_SHADE = 0.35
# Marks keep this distance from the outline (in radii), so that they do not cut up a shape on a dark background.
RIM = 0.1

# Pixels in all frames of a video; rendering more would take gigabytes.
MAX_PIXELS = 100_000_000

Vector = tuple[float, float]

Pixels = NDArray[np.uint8]
"""uint8 RGB: frames (FHWC), or one image (HWC) where the text says so."""


@dataclass(frozen=True, kw_only=True)
class Background:
    """A texture in two colours, seen by a drifting camera.

    Args:
        texture: a name in TEXTURES.
        ground, figure: names in BACKGROUND_COLOURS; `plain` shows the ground alone.
        phase: where the camera appearance in frame 0, in half short sides.
        drift: camera motion per frame, in half short sides.
    """

    texture: str
    ground: str
    figure: str
    phase: Vector = (0.0, 0.0)
    drift: Vector = (0.0, 0.0)


@dataclass(frozen=True, kw_only=True)
class Appearance:
    """What an object looks like, wherever it is: names in SHAPES, SPRITE_COLOURS and PATTERNS."""

    shape: str
    colour: str
    pattern: str = "plain"

    @property
    def kind(self) -> tuple[str, str]:
        """Colour and shape, in which an edited or added sprite differs from all others of its scene."""
        return self.colour, self.shape


@dataclass(frozen=True, kw_only=True)
class Sprite:
    """A flat object that moves in a straight line and bounces off the frame's border.

    Args:
        appearance: shape, colour and pattern.
        size: radius, in half short sides.
        start: centre in frame 0.
        velocity: positions per frame.
    """

    appearance: Appearance
    size: float
    start: Vector
    velocity: Vector = (0.0, 0.0)


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A background and the sprites in front of it, from back to front."""

    background: Background
    sprites: tuple[Sprite, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Drawing:
    """A rendered scene.

    Args:
        scene: the scene.
        video: FHWC uint8.
        sprites: NFHW float32, the share of each pixel in which each sprite is visible, occlusion included.
        background: FHW float32, the same for the background; it and the sprites sum to 1.
    """

    scene: Scene
    video: np.ndarray
    sprites: np.ndarray
    background: np.ndarray


def centre_limit(size: float) -> float:
    """The largest coordinate of a sprite's centre at which nearly all of the sprite is in view."""
    return 0.95 - size


def centres(sprite: Sprite, frames: int) -> np.ndarray:
    """The sprite's centre in each frame, F2 float32 (x, y), bouncing between the borders."""
    reach = centre_limit(sprite.size)
    straight = np.array(sprite.start) + np.arange(frames)[:, None] * np.array(sprite.velocity)
    return (reach - np.abs((straight + reach) % (4 * reach) - 2 * reach)).astype(np.float32)


def draw(scene: Scene, frames: int, height: int, width: int) -> Drawing:
    """Render a scene with its visibility masks.

    Raises:
        InputError: no frames or no pixels, or more than MAX_PIXELS.
    """
    if min(frames, height, width) < 1 or frames * height * width > MAX_PIXELS:
        raise InputError(
            "a scene cannot be rendered at this size",
            code="out-of-range",
            got=f"{frames} frames of {width}x{height}",
            expected=f"at least one frame and one pixel, at most {MAX_PIXELS:,} pixels in all frames",
        )
    half = min(height, width) / 2  # pixels per unit
    x_W = _pixel_centres(width, half)
    y_H = _pixel_centres(height, half)
    canvas_FHWC = _background(scene.background, frames, x_W, y_H, half)
    alphas_NFHW = np.zeros((len(scene.sprites), frames, height, width), np.float32)
    for sprite, alpha_FHW in zip(scene.sprites, alphas_NFHW, strict=True):
        _paint(sprite, x_W, y_H, half, canvas_FHWC, alpha_FHW)
    visible_NFHW, rest_FHW = alphas_NFHW, np.ones((frames, height, width), np.float32)
    for alpha_FHW in visible_NFHW[::-1]:  # from front to back: each sprite shows in what those in front leave free
        transmitted_FHW = 1.0 - alpha_FHW
        alpha_FHW *= rest_FHW
        rest_FHW *= transmitted_FHW
    video_FHWC = (canvas_FHWC + 0.5).astype(np.uint8)
    return Drawing(scene=scene, video=video_FHWC, sprites=visible_NFHW, background=rest_FHW)


def render(scene: Scene, frames: int, height: int, width: int) -> np.ndarray:
    """The scene as FHWC uint8. Raises InputError as `draw`."""
    return draw(scene, frames, height, width).video


def _pixel_centres(count: int, half: float) -> np.ndarray:
    return ((np.arange(count, dtype=np.float32) + 0.5) - count / 2) / half


def _background(background: Background, frames: int, x_W: np.ndarray, y_H: np.ndarray, half: float) -> np.ndarray:
    """FHWC float32, 0..255."""
    time_F = np.arange(frames, dtype=np.float32)
    x_F1W = x_W + (background.phase[0] + time_F * background.drift[0])[:, None, None]
    y_FH1 = y_H[:, None] + (background.phase[1] + time_F * background.drift[1])[:, None, None]
    weight = texture(background.texture, x_F1W, y_FH1, half)[..., None]
    ground, figure = (np.array(BACKGROUND_COLOURS[c], np.float32) for c in (background.ground, background.figure))
    colour = ground + weight * (figure - ground)
    return np.broadcast_to(colour, (frames, len(y_H), len(x_W), 3)).copy()


def _paint(
    sprite: Sprite, x_W: np.ndarray, y_H: np.ndarray, half: float, canvas_FHWC: np.ndarray, alpha_FHW: np.ndarray
) -> None:
    """Paint a sprite over the canvas and write its coverage, inside the bounding box of its track."""
    aspect = (len(x_W) / (2 * half), len(y_H) / (2 * half))
    centre_F2 = centres(sprite, len(canvas_FHWC)) * np.array(aspect, np.float32)
    reach = REACH * sprite.size + 1.0 / half
    columns, rows = (
        slice(int(np.searchsorted(axis, low)), int(np.searchsorted(axis, high, side="right")))
        for axis, low, high in zip(
            (x_W, y_H), centre_F2.min(axis=0) - reach, centre_F2.max(axis=0) + reach, strict=True
        )
    )
    x_F1W = (x_W[columns] - centre_F2[:, :1])[:, None, :] / sprite.size
    y_FH1 = (y_H[rows] - centre_F2[:, 1:])[:, :, None] / sprite.size
    pixels = half * sprite.size
    distance = SHAPES[sprite.appearance.shape](x_F1W, y_FH1)
    alpha = coverage(distance, pixels)
    colour = np.array(SPRITE_COLOURS[sprite.appearance.colour], np.float32)
    marks = coverage(np.maximum(PATTERNS[sprite.appearance.pattern](x_F1W, y_FH1), distance + RIM), pixels)[..., None]
    painted = colour * (1.0 - (1.0 - MARK_SHADE) * marks)
    # Written so that coverage 0 keeps the canvas and coverage 1 replaces it exactly, as the masks promise.
    box = canvas_FHWC[:, rows, columns]
    box *= 1.0 - alpha[..., None]
    box += alpha[..., None] * painted
    alpha_FHW[:, rows, columns] = alpha
