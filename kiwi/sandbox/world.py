"""Scenes of moving sprites over a drifting background, rendered into video with exact masks.

A `Scene` consists of a few numbers and names, sampled by kiwi.sandbox.sampling. `draw` renders it to pixels, and edits
(kiwi.sandbox.edits) map one scene to another.

Positions run from -1 (left, top) to 1 (right, bottom) on each axis; sizes are in half short sides (half of the frame's
short side is 1); velocities are in positions per frame. A scene therefore has no resolution or length: every size shows
the same scene, and a shorter video is a prefix of a longer one.

Shapes: F frames, H height, W width, C = 3 (RGB), N sprites.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kiwi.errors import InputError
from kiwi.sandbox.drawing import MAX_EXTENT, PATTERNS, SHAPES, TEXTURES, coverage
from kiwi.sandbox.palette import BACKGROUND_COLOURS, SPRITE_COLOURS

# Colour of the stripes or dots on a sprite, relative to the colour of the sprite.
MARK_SHADE = 0.35
# Distance (in radii) between marks and the outline, so that marks do not cut up a shape on a dark background.
MARK_MARGIN = 0.1

# Maximum number of pixels in all frames of a video; rendering more would take gigabytes.
MAX_PIXELS = 100_000_000

Vector = tuple[float, float]

Pixels = NDArray[np.uint8]
"""uint8 RGB: a video (FHWC), or an image (HWC) where a docstring says so."""


@dataclass(frozen=True, kw_only=True)
class Background:
    """A texture in two colours, seen by a drifting camera.

    Args:
        texture: name in TEXTURES.
        base_colour, pattern_colour: names in BACKGROUND_COLOURS; `plain` shows the base colour alone.
        phase: camera position in frame 0, in half short sides.
        drift: camera motion per frame, in half short sides.
    """

    texture: str
    base_colour: str
    pattern_colour: str
    phase: Vector = (0.0, 0.0)
    drift: Vector = (0.0, 0.0)


@dataclass(frozen=True, kw_only=True)
class Appearance:
    """The look of a sprite as names in SHAPES, SPRITE_COLOURS and PATTERNS."""

    shape: str
    colour: str
    pattern: str = "plain"

    @property
    def kind(self) -> tuple[str, str]:
        """Colour and shape; no other sprite of the scene shares both with an edited or added sprite."""
        return self.colour, self.shape


@dataclass(frozen=True, kw_only=True)
class Sprite:
    """A flat object that moves in a straight line and bounces off the frame's border.

    Args:
        appearance: shape, colour and pattern.
        size: radius, in half short sides.
        start: centre in frame 0.
        velocity: motion per frame, in positions.
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
        scene: scene that was rendered.
        video: pixels, FHWC uint8.
        sprite_masks: visible share of each sprite in each pixel after occlusion, NFHW float32.
        background_mask: visible share of the background in each pixel, FHW float32; all masks sum to 1.
    """

    scene: Scene
    video: np.ndarray
    sprite_masks: np.ndarray
    background_mask: np.ndarray


def centre_limit(size: float) -> float:
    """Largest coordinate of a sprite's centre at which nearly the whole sprite is in view."""
    return 0.95 - size


def centres(sprite: Sprite, frames: int) -> np.ndarray:
    """Centre (x, y) of a sprite that bounces between the borders, in each frame: F2 float32."""
    limit = centre_limit(sprite.size)
    straight = np.array(sprite.start) + np.arange(frames)[:, None] * np.array(sprite.velocity)
    return (limit - np.abs((straight + limit) % (4 * limit) - 2 * limit)).astype(np.float32)


def draw(scene: Scene, frames: int, height: int, width: int) -> Drawing:
    """Render a scene with its visibility masks. Raises InputError for no pixels, or more than MAX_PIXELS in total."""
    if min(frames, height, width) < 1 or frames * height * width > MAX_PIXELS:
        expected = f"at least one frame and one pixel, and at most {MAX_PIXELS:,} pixels in all frames"
        raise InputError(
            f"{frames} frames of {width}x{height} cannot be rendered", code="out-of-range", expected=expected
        )
    scale = min(height, width) / 2  # pixels per half short side
    x_W, y_H = _pixel_coordinates(width, scale), _pixel_coordinates(height, scale)
    canvas_FHWC = _draw_background(scene.background, frames, x_W, y_H, scale)
    alphas_NFHW = np.zeros((len(scene.sprites), frames, height, width), np.float32)
    for sprite, alpha_FHW in zip(scene.sprites, alphas_NFHW, strict=True):
        _paint_sprite(sprite, x_W, y_H, scale, canvas_FHWC, alpha_FHW)
    visible_NFHW, unoccluded_FHW = alphas_NFHW, np.ones((frames, height, width), np.float32)
    for alpha_FHW in visible_NFHW[::-1]:  # from front to back: a sprite is visible where those in front of it are not
        transmitted_FHW = 1.0 - alpha_FHW
        alpha_FHW *= unoccluded_FHW
        unoccluded_FHW *= transmitted_FHW
    video_FHWC = (canvas_FHWC + 0.5).astype(np.uint8)
    return Drawing(scene=scene, video=video_FHWC, sprite_masks=visible_NFHW, background_mask=unoccluded_FHW)


def render(scene: Scene, frames: int, height: int, width: int) -> np.ndarray:
    """Render a scene as FHWC uint8. Raises InputError like `draw`."""
    return draw(scene, frames, height, width).video


def _pixel_coordinates(count: int, scale: float) -> np.ndarray:
    return ((np.arange(count, dtype=np.float32) + 0.5) - count / 2) / scale


def _draw_background(background: Background, frames: int, x_W: np.ndarray, y_H: np.ndarray, scale: float) -> np.ndarray:
    """Render a background as FHWC float32, 0..255."""
    time_F = np.arange(frames, dtype=np.float32)
    x_F1W = x_W + (background.phase[0] + time_F * background.drift[0])[:, None, None]
    y_FH1 = y_H[:, None] + (background.phase[1] + time_F * background.drift[1])[:, None, None]
    weight = TEXTURES[background.texture](x_F1W, y_FH1, scale)[..., None]
    base = np.array(BACKGROUND_COLOURS[background.base_colour], np.float32)
    pattern = np.array(BACKGROUND_COLOURS[background.pattern_colour], np.float32)
    colour = base + weight * (pattern - base)
    return np.broadcast_to(colour, (frames, len(y_H), len(x_W), 3)).copy()


def _paint_sprite(
    sprite: Sprite, x_W: np.ndarray, y_H: np.ndarray, scale: float, canvas_FHWC: np.ndarray, alpha_FHW: np.ndarray
) -> None:
    """Paint a sprite over the canvas and write its coverage to `alpha_FHW`, within the bounding box of its track."""
    aspect = (len(x_W) / (2 * scale), len(y_H) / (2 * scale))
    centre_F2 = centres(sprite, len(canvas_FHWC)) * np.array(aspect, np.float32)
    reach = MAX_EXTENT * sprite.size + 1.0 / scale
    columns, rows = (
        slice(int(np.searchsorted(axis, low)), int(np.searchsorted(axis, high, side="right")))
        for axis, low, high in zip(
            (x_W, y_H), centre_F2.min(axis=0) - reach, centre_F2.max(axis=0) + reach, strict=True
        )
    )
    x_F1W = (x_W[columns] - centre_F2[:, :1])[:, None, :] / sprite.size
    y_FH1 = (y_H[rows] - centre_F2[:, 1:])[:, :, None] / sprite.size
    pixels_per_radius = scale * sprite.size
    distance = SHAPES[sprite.appearance.shape](x_F1W, y_FH1)
    alpha = coverage(distance, pixels_per_radius)
    colour = np.array(SPRITE_COLOURS[sprite.appearance.colour], np.float32)
    mark_distance = np.maximum(PATTERNS[sprite.appearance.pattern](x_F1W, y_FH1), distance + MARK_MARGIN)
    marks = coverage(mark_distance, pixels_per_radius)[..., None]
    painted = colour * (1.0 - (1.0 - MARK_SHADE) * marks)
    # Coverage 0 keeps the canvas and coverage 1 replaces it, both bit by bit, which the masks rely on.
    box = canvas_FHWC[:, rows, columns]
    box *= 1.0 - alpha[..., None]
    box += alpha[..., None] * painted
    alpha_FHW[:, rows, columns] = alpha
