"""The world: scenes of moving sprites over a drifting background, drawn into video with exact masks.

The start of the sandbox: a `Scene` is a few numbers and names, `sample_scene` draws one from (seed, index),
and `draw` turns it into pixels. Edits (kiwi.sandbox.edits) turn one scene into another.

Positions are per axis, -1 (left, top) to 1 (right, bottom); sizes are in halves of the frame's short side;
velocities are positions a frame. A scene therefore has no resolution or length of its own: fewer frames
are a prefix, and any size shows the same scene. Arrays: F frames, H height, W width, C = 3 (RGB), N sprites.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from kiwi.errors import InputError
from kiwi.sandbox.drawing import PATTERNS, REACH, SHAPES, TEXTURES, coverage, texture
from kiwi.sandbox.palette import BACKGROUND_COLOURS, SPRITE_COLOURS, figures_for

# A mark on a sprite is its own colour made this much darker.
MARK_SHADE = 0.35
# Marks keep this far from the outline (in radii), so that no shape is cut up on a dark background.
RIM = 0.1
# Chance that a scene of two or three holds two sprites that only their places tell apart.
TWINS = 0.15
STILL_CAMERA = 0.4

T = TypeVar("T")
Vector = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Background:
    """A texture in two colours, seen by a camera that drifts.

    Args:
        texture: a name in TEXTURES.
        ground, figure: names in BACKGROUND_COLOURS; `plain` shows the ground alone.
        phase: where the camera looks in frame 0, in half short sides.
        drift: camera motion a frame, in half short sides.
    """

    texture: str
    ground: str
    figure: str
    phase: Vector = (0.0, 0.0)
    drift: Vector = (0.0, 0.0)


@dataclass(frozen=True, kw_only=True)
class Looks:
    """What tells an object from others wherever it is: names in SHAPES, SPRITE_COLOURS and PATTERNS."""

    shape: str
    colour: str
    pattern: str = "plain"


@dataclass(frozen=True, kw_only=True)
class Sprite:
    """A flat object that moves in a straight line and bounces off the frame's border.

    Args:
        looks: shape, colour and pattern.
        size: radius, in half short sides.
        start: centre in frame 0.
        velocity: positions a frame.
    """

    looks: Looks
    size: float
    start: Vector
    velocity: Vector = (0.0, 0.0)


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A background and the sprites over it, from the back to the front."""

    background: Background
    sprites: tuple[Sprite, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Drawing:
    """A scene as pixels.

    Args:
        scene: what was drawn.
        video: FHWC uint8.
        sprites: NFHW float32, the share of each pixel in which each sprite is seen (what is in front is taken off).
        background: FHW float32, likewise; it and the sprites sum to 1.
    """

    scene: Scene
    video: np.ndarray
    sprites: np.ndarray
    background: np.ndarray


def stream(seed: int, index: int, *keys: int) -> np.random.Generator:
    """A random generator of its own for (seed, index, keys): what one item draws moves no other item.

    Raises:
        InputError: a negative seed or index.
    """
    if seed < 0 or index < 0:
        raise InputError("The world is indexed by whole numbers from 0", got=f"seed {seed}, index {index}")
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(index, *keys)))


def scene_at(seed: int, index: int) -> Scene:
    """Scene number `index` of the world `seed`. Raises InputError as `stream`."""
    return sample_scene(stream(seed, index))


def sample_scene(rng: np.random.Generator) -> Scene:
    """Draw a scene: one to three sprites, well in view and not hidden at the start, over a background."""
    count = int(rng.integers(1, 4))
    looks = [sample_looks(rng)]
    while len(looks) < count:
        twin = len(looks) == 1 and rng.random() < TWINS
        new = looks[0] if twin else sample_looks(rng)
        if twin or all((new.colour, new.shape) != (old.colour, old.shape) for old in looks):
            looks.append(new)
    sprites: list[Sprite] = []
    for look in looks:
        size = float(rng.uniform(0.3, 0.44))
        angle, speed = float(rng.uniform(0, 2 * math.pi)), float(rng.uniform(0.015, 0.06))
        sprites.append(
            Sprite(
                looks=look,
                size=size,
                start=_free_place(rng, size, sprites),
                velocity=(speed * math.cos(angle), speed * math.sin(angle)),
            )
        )
    order = rng.permutation(count)
    return Scene(background=sample_background(rng), sprites=tuple(sprites[i] for i in order))


def sample_looks(rng: np.random.Generator) -> Looks:
    """Draw the looks of a sprite; half of all sprites are plain."""
    pattern = "plain" if rng.random() < 0.5 else pick(rng, [name for name in PATTERNS if name != "plain"])
    return Looks(shape=pick(rng, SHAPES), colour=pick(rng, SPRITE_COLOURS), pattern=pattern)


def sample_background(rng: np.random.Generator) -> Background:
    """Draw a background whose two colours can be told apart, with a slow drift or a still camera."""
    ground = pick(rng, BACKGROUND_COLOURS)
    still = rng.random() < STILL_CAMERA
    angle, speed = float(rng.uniform(0, 2 * math.pi)), 0.0 if still else float(rng.uniform(0.01, 0.03))
    return Background(
        texture=pick(rng, TEXTURES),
        ground=ground,
        figure=pick(rng, figures_for(ground)),
        phase=(float(rng.uniform(-1, 1)), float(rng.uniform(-1, 1))),
        drift=(speed * math.cos(angle), speed * math.sin(angle)),
    )


def pick(rng: np.random.Generator, names: Iterable[T]) -> T:
    """One of `names`, all equally likely."""
    choices = list(names)
    return choices[int(rng.integers(len(choices)))]


def gap(a: Sprite, b: Sprite) -> float:
    """How far two sprites stand apart in frame 0: 0 is one on the other, 1 is just touching."""
    return math.dist(a.start, b.start) / (a.size + b.size)


def _free_place(rng: np.random.Generator, size: float, others: list[Sprite]) -> Vector:
    """A start inside the frame that overlaps `others` a little at most; the freest of some tries in a full scene."""
    room = _room(size)
    best, freest = (0.0, 0.0), -1.0
    for x, y in rng.uniform(-room, room, size=(24, 2)).tolist():
        free = min((math.dist((x, y), other.start) / (size + other.size) for other in others), default=math.inf)
        if free >= 0.9:
            return x, y
        if free > freest:
            best, freest = (x, y), free
    return best


def _room(size: float) -> float:
    """How far from the middle a sprite's centre may go, so that nearly all of it stays in view."""
    return 0.95 - size


def centres(sprite: Sprite, frames: int) -> np.ndarray:
    """Where the sprite's centre is: F2 float32 (x, y), bouncing between the borders."""
    room = _room(sprite.size)
    straight = np.array(sprite.start) + np.arange(frames)[:, None] * np.array(sprite.velocity)
    return (room - np.abs((straight + room) % (4 * room) - 2 * room)).astype(np.float32)


def draw(scene: Scene, frames: int, height: int, width: int) -> Drawing:
    """Draw a scene with its visibility masks.

    Raises:
        InputError: no frames or no pixels.
    """
    if min(frames, height, width) < 1:
        raise InputError("A video has at least one frame and one pixel", got=f"{frames} x {height} x {width}")
    half = min(height, width) / 2  # pixels in a unit
    x_W = _pixel_centres(width, half)
    y_H = _pixel_centres(height, half)
    canvas_FHWC = _background(scene.background, frames, x_W, y_H, half)
    alphas_NFHW = np.zeros((len(scene.sprites), frames, height, width), np.float32)
    for sprite, alpha_FHW in zip(scene.sprites, alphas_NFHW, strict=True):
        _paint(sprite, x_W, y_H, half, canvas_FHWC, alpha_FHW)
    visible_NFHW, rest_FHW = alphas_NFHW, np.ones((frames, height, width), np.float32)
    for alpha_FHW in visible_NFHW[::-1]:  # from the front: what a sprite leaves over is what the next one can show
        through_FHW = 1.0 - alpha_FHW
        alpha_FHW *= rest_FHW
        rest_FHW *= through_FHW
    video_FHWC = (canvas_FHWC + 0.5).astype(np.uint8)
    return Drawing(scene=scene, video=video_FHWC, sprites=visible_NFHW, background=rest_FHW)


def render(scene: Scene, frames: int, height: int, width: int) -> np.ndarray:
    """The scene as FHWC uint8. Raises InputError as `draw`."""
    return draw(scene, frames, height, width).video


def sprite_masks(scene: Scene, frames: int, height: int, width: int) -> np.ndarray:
    """Share of each pixel in which each sprite is seen: NFHW float32, 0..1. Raises InputError as `draw`."""
    return draw(scene, frames, height, width).sprites


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
    """Paint a sprite over the canvas and note its coverage, inside the box that it ever touches."""
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
    distance = SHAPES[sprite.looks.shape](x_F1W, y_FH1)
    alpha = coverage(distance, pixels)
    colour = np.array(SPRITE_COLOURS[sprite.looks.colour], np.float32)
    marks = coverage(np.maximum(PATTERNS[sprite.looks.pattern](x_F1W, y_FH1), distance + RIM), pixels)[..., None]
    painted = colour * (1.0 - (1.0 - MARK_SHADE) * marks)
    # Written so that coverage 0 keeps the canvas, and 1 replaces it, to the last bit: masks promise exactness.
    box = canvas_FHWC[:, rows, columns]
    box *= 1.0 - alpha[..., None]
    box += alpha[..., None] * painted
    alpha_FHW[:, rows, columns] = alpha
