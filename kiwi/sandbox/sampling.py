"""What a world draws its scenes, edits and words from: how hard it is, and what training never shows.

Levels say how much a scene may hold. Splits say which things and wordings may be drawn: a sixth of all pairs of colour
and shape, an eighth of all pairs of texture and ground, and the last wordings of every kind are never in `train`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import product
from typing import Literal, TypeVar

import numpy as np

from kiwi.errors import InputError
from kiwi.sandbox.drawing import PATTERNS, SHAPES, TEXTURES
from kiwi.sandbox.palette import BACKGROUND_COLOURS, SPRITE_COLOURS, figures_for
from kiwi.sandbox.world import Background, Looks, Scene, Sprite, Vector, room

T = TypeVar("T")

TWINS = 0.15
"""Chance that a scene of two or three holds two sprites that only their places tell apart."""

NEW_WORDINGS = 2
"""The last wordings of every kind of edit, which training never says."""


@dataclass(frozen=True, kw_only=True)
class Level:
    """How much a scene may hold.

    Args:
        sprites: at least and at most.
        size: radius of sprites, at least and at most, in half short sides.
        speed: of sprites, at least and at most, in positions a frame.
        patterns, textures: names of what is drawn on sprites and behind them.
        camera: share of scenes in which it drifts.
    """

    sprites: tuple[int, int] = (1, 3)
    size: tuple[float, float] = (0.3, 0.44)
    speed: tuple[float, float] = (0.015, 0.06)
    patterns: tuple[str, ...] = tuple(PATTERNS)
    textures: tuple[str, ...] = tuple(TEXTURES)
    camera: float = 0.6


_EASY = Level(
    sprites=(1, 2),
    size=(0.38, 0.5),
    speed=(0.0, 0.03),
    patterns=("plain",),
    textures=("plain", "gradient"),
    camera=0.0,
)

LevelName = Literal["single", "easy", "middle", "full"]
SplitName = Literal["train", "test", "new_words", "new_things", "new_both"]

LEVELS: dict[LevelName, Level] = {
    "single": replace(_EASY, sprites=(1, 1)),
    "easy": _EASY,
    "middle": Level(sprites=(1, 2), size=(0.34, 0.46), patterns=("plain", "stripes"), camera=0.3),
    "full": Level(),
}
"""Upward from one thing in sight, what a reader learns to see first; an editor of a million parameters learns the easy
world in minutes."""


class Split(StrEnum):
    """Which items are drawn; items of two splits are never the same."""

    train = "train"
    test = "test"
    """New scenes of what training shows, in words that it says."""
    new_words = "new_words"
    """The same in wordings that training never says."""
    new_things = "new_things"
    """Scenes with, and edits to, things that training never shows."""
    new_both = "new_both"

    @property
    def holds_new_things(self) -> bool:
        """Whether what training never shows is in every scene, and is what edits bring in."""
        return self in (Split.new_things, Split.new_both)

    @property
    def says_new_words(self) -> bool:
        """Whether instructions are worded as training never words them."""
        return self in (Split.new_words, Split.new_both)


def is_new_thing(colour: str, shape: str) -> bool:
    """Whether training never shows a sprite of this colour and shape: one shape of each colour."""
    return (list(SPRITE_COLOURS).index(colour) + list(SHAPES).index(shape)) % len(SHAPES) == 0


def is_new_background(texture: str, ground: str) -> bool:
    """Whether training never shows this texture on this ground: one or two grounds of each texture."""
    return (list(TEXTURES).index(texture) + list(BACKGROUND_COLOURS).index(ground)) % len(TEXTURES) == 0


@dataclass(frozen=True)
class Dice:
    """Draws one item's scene, edit and words.

    Args:
        rng: of this item alone.
        level: how much a scene may hold.
        split: which things and wordings there are.
    """

    rng: np.random.Generator
    level: Level
    split: Split

    def pick(self, names: Iterable[T]) -> T:
        """One of `names`, all equally likely."""
        choices = list(names)
        return choices[int(self.rng.integers(len(choices)))]

    def between(self, bounds: tuple[float, float]) -> float:
        """A number between two."""
        return float(self.rng.uniform(*bounds))

    def wording(self, wordings: Sequence[str]) -> str:
        """One of a kind's wordings, of those that the split says."""
        return self.pick(wordings[-NEW_WORDINGS:] if self.split.says_new_words else wordings[:-NEW_WORDINGS])

    def may_have(self, colour: str, shape: str) -> bool:
        """Whether an edit may bring in a sprite of this colour and shape."""
        return is_new_thing(colour, shape) == self.split.holds_new_things

    def looks(self, *, subject: bool = False) -> Looks:
        """Looks of a sprite; half of all sprites are plain.

        Args:
            subject: that the split is about: where it holds new things, one of them.
        """
        marks = [name for name in self.level.patterns if name != "plain"]
        pattern = "plain" if not marks or self.rng.random() < 0.5 else self.pick(marks)
        wanted = self._wanted(subject)
        pairs = [pair for pair in product(SPRITE_COLOURS, SHAPES) if is_new_thing(*pair) in wanted]
        colour, shape = self.pick(pairs)
        return Looks(shape=shape, colour=colour, pattern=pattern)

    def background(self, *, subject: bool = False) -> Background:
        """A background whose two colours can be told apart, with a slow drift or a still camera."""
        wanted = self._wanted(subject)
        texture = self.pick(self.level.textures)
        ground = self.pick(name for name in BACKGROUND_COLOURS if is_new_background(texture, name) in wanted)
        moves = self.rng.random() < self.level.camera
        angle, speed = self.between((0, 2 * math.pi)), self.between((0.01, 0.03)) if moves else 0.0
        # Both ends of a gradient are to be seen.
        reach = 0.35 if texture == "gradient" else 1.0
        return Background(
            texture=texture,
            ground=ground,
            figure=self.pick(figures_for(ground)),
            phase=(self.between((-reach, reach)), self.between((-reach, reach))),
            drift=(speed * math.cos(angle), speed * math.sin(angle)),
        )

    def _wanted(self, subject: bool) -> tuple[bool, ...]:
        if not self.split.holds_new_things:
            return (False,)
        return (True,) if subject else (False, True)


def dice(seed: int, index: int, *keys: int, level: str = "full", split: str = "train") -> Dice:
    """What draws item `index` of a world: a generator of its own, so that what one item draws moves no other.

    Args:
        seed: which world.
        index: which item of it.
        keys: which of the item's draws.
        level: a name in LEVELS.
        split: a name in Split.

    Raises:
        InputError: a negative seed or index, an unknown level or split.
    """
    if seed < 0 or index < 0:
        raise InputError("The world is indexed by whole numbers from 0", got=f"seed {seed}, index {index}")
    if level not in LEVELS:
        raise InputError("The world has no such level", got=level, wanted=", ".join(LEVELS))
    if split not in list(Split):
        raise InputError("The world has no such split", got=split, wanted=", ".join(Split))
    sequence = np.random.SeedSequence(seed, spawn_key=(list(Split).index(Split(split)), index, *keys))
    return Dice(np.random.default_rng(sequence), LEVELS[level], Split(split))


def scene_at(seed: int, index: int, level: str = "full", split: str = "train") -> Scene:
    """Scene number `index` of a world. Raises InputError as `dice`."""
    return sample_scene(dice(seed, index, level=level, split=split))


def sample_scene(given: Dice) -> Scene:
    """Draw a scene: sprites that are well in view and not hidden at the start, over a background."""
    rng, level = given.rng, given.level
    count = int(rng.integers(level.sprites[0], level.sprites[1] + 1))
    looks = [given.looks(subject=True)]
    while len(looks) < count:
        twin = len(looks) == 1 and rng.random() < TWINS
        new = looks[0] if twin else given.looks()
        if twin or all((new.colour, new.shape) != (old.colour, old.shape) for old in looks):
            looks.append(new)
    sprites: list[Sprite] = []
    for look in looks:
        size = given.between(level.size)
        angle, speed = given.between((0, 2 * math.pi)), given.between(level.speed)
        start = _free_place(rng, size, sprites)
        velocity = (speed * math.cos(angle), speed * math.sin(angle))
        sprites.append(Sprite(looks=look, size=size, start=start, velocity=velocity))
    order = rng.permutation(count)
    return Scene(background=given.background(), sprites=tuple(sprites[i] for i in order))


def gap(a: Sprite, b: Sprite) -> float:
    """How far two sprites stand apart in frame 0: 0 is one on the other, 1 is just touching."""
    return math.dist(a.start, b.start) / (a.size + b.size)


def _free_place(rng: np.random.Generator, size: float, others: list[Sprite]) -> Vector:
    """A start inside the frame that overlaps `others` a little at most; the freest of some tries in a full scene."""
    reach = room(size)
    best, freest = (0.0, 0.0), -1.0
    for x, y in rng.uniform(-reach, reach, size=(24, 2)).tolist():
        free = min((math.dist((x, y), other.start) / (size + other.size) for other in others), default=math.inf)
        if free >= 0.9:
            return x, y
        if free > freest:
            best, freest = (x, y), free
    return best
