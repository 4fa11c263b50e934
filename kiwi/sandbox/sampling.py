"""Sampling of scenes: levels of difficulty, and splits that hold out objects, backgrounds and wordings.

A level limits how complex a scene is. A split selects objects and wordings: a sixth of all pairs of colour and shape,
an eighth of all pairs of texture and ground, and the last wordings of every kind are never in `train`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import product
from typing import Literal, TypeVar, cast

import numpy as np

from kiwi.errors import InputError, format_choices
from kiwi.sandbox.drawing import PATTERNS, SHAPES, TEXTURES
from kiwi.sandbox.palette import BACKGROUND_COLOURS, SPRITE_COLOURS, figures_for
from kiwi.sandbox.world import Appearance, Background, Scene, Sprite, Vector, centre_limit

T = TypeVar("T")

TWIN_PROBABILITY = 0.15
"""Probability that two sprites of a scene of two or three have the same appearance and differ by place only."""

HELD_OUT_WORDINGS = 2
"""The number of wordings of every kind of edit, the last ones, that training never uses."""


@dataclass(frozen=True, kw_only=True)
class Level:
    """The complexity of scenes.

    Args:
        sprites: minimum and maximum number of sprites.
        size: minimum and maximum radius of sprites, in half short sides.
        speed: minimum and maximum speed of sprites, in positions per frame.
        patterns, textures: names of the patterns of sprites and textures of backgrounds.
        camera: share of scenes with a drifting camera.
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
"""From a single sprite, with which a vision-language model starts to learn, to all variety; an editor of a million
parameters learns the easy level in minutes."""


class Split(StrEnum):
    """Which items are sampled; two splits never share an item."""

    train = "train"
    test = "test"
    """New scenes of objects, backgrounds and wordings that training has."""
    new_words = "new_words"
    """As test, with wordings that training never uses."""
    new_things = "new_things"
    """As test, with objects and backgrounds that training never shows."""
    new_both = "new_both"
    """With held-out objects, backgrounds and wordings."""

    @property
    def has_new_things(self) -> bool:
        """Whether every scene has, and every edit introduces, an object or background that training never shows."""
        return self in (Split.new_things, Split.new_both)

    @property
    def has_new_words(self) -> bool:
        """Whether instructions use only wordings that training never uses."""
        return self in (Split.new_words, Split.new_both)


def is_new_thing(colour: str, shape: str) -> bool:
    """Whether training never shows a sprite of this colour and shape: one shape of each colour."""
    return (list(SPRITE_COLOURS).index(colour) + list(SHAPES).index(shape)) % len(SHAPES) == 0


def is_new_background(texture: str, ground: str) -> bool:
    """Whether training never shows this texture on this ground: one or two grounds of each texture."""
    return (list(TEXTURES).index(texture) + list(BACKGROUND_COLOURS).index(ground)) % len(TEXTURES) == 0


@dataclass(frozen=True)
class ItemSampler:
    """Samples the scene, the edit and the wording of one item.

    Args:
        rng: the item's own generator.
        level: complexity of the scene.
        split: which objects and wordings are sampled.
    """

    rng: np.random.Generator
    level: Level
    split: Split

    def choose(self, names: Iterable[T]) -> T:
        """One of `names`, uniformly."""
        choices = list(names)
        return choices[int(self.rng.integers(len(choices)))]

    def uniform(self, bounds: tuple[float, float]) -> float:
        """A number between two bounds."""
        return float(self.rng.uniform(*bounds))

    def choose_wording(self, wordings: Sequence[str]) -> str:
        """One of the wordings that the split uses."""
        return self.choose(wordings[-HELD_OUT_WORDINGS:] if self.split.has_new_words else wordings[:-HELD_OUT_WORDINGS])

    def allows(self, colour: str, shape: str) -> bool:
        """Whether an edit may introduce a sprite of this colour and shape."""
        return is_new_thing(colour, shape) == self.split.has_new_things

    def sample_appearance(self, *, subject: bool = False) -> Appearance:
        """The appearance of a sprite; half of all sprites are plain.

        Args:
            subject: whether it must be a held-out one where the split has new things.
        """
        marks = [name for name in self.level.patterns if name != "plain"]
        pattern = "plain" if not marks or self.rng.random() < 0.5 else self.choose(marks)
        novelty = self._novelty(subject)
        pairs = [pair for pair in product(SPRITE_COLOURS, SHAPES) if is_new_thing(*pair) in novelty]
        colour, shape = self.choose(pairs)
        return Appearance(shape=shape, colour=colour, pattern=pattern)

    def sample_background(self, *, subject: bool = False) -> Background:
        """A background with two distinguishable colours and a slowly drifting or a still camera."""
        novelty = self._novelty(subject)
        texture = self.choose(self.level.textures)
        ground = self.choose(name for name in BACKGROUND_COLOURS if is_new_background(texture, name) in novelty)
        moves = self.rng.random() < self.level.camera
        angle, speed = self.uniform((0, 2 * math.pi)), self.uniform((0.01, 0.03)) if moves else 0.0
        # Both ends of a gradient must be visible.
        reach = 0.35 if texture == "gradient" else 1.0
        return Background(
            texture=texture,
            ground=ground,
            figure=self.choose(figures_for(ground)),
            phase=(self.uniform((-reach, reach)), self.uniform((-reach, reach))),
            drift=(speed * math.cos(angle), speed * math.sin(angle)),
        )

    def _novelty(self, subject: bool) -> tuple[bool, ...]:
        """The allowed values of `is_new_thing` and `is_new_background`."""
        if not self.split.has_new_things:
            return (False,)
        return (True,) if subject else (False, True)


def item_sampler(seed: int, index: int, *keys: int, level: str = "full", split: str = "train") -> ItemSampler:
    """The sampler of one item, with a random generator of its own, so that items do not depend on each other.

    Args:
        seed: seed of the world.
        index: index of the item.
        keys: tell independent samples of the same item apart.
        level: a name in LEVELS.
        split: a name in Split.

    Raises:
        InputError: a negative seed or index, an unknown level or split.
    """
    if seed < 0 or index < 0:
        raise InputError("seed and index must not be negative", code="out-of-range", got=f"seed {seed}, index {index}")
    for name, choice, choices in (("level", level, list(LEVELS)), ("split", split, [str(item) for item in Split])):
        if choice not in choices:
            raise InputError(
                f"there is no {name} {choice!r}", code=f"unknown-{name}", expected=format_choices(choices, choice)
            )
    sequence = np.random.SeedSequence(seed, spawn_key=(list(Split).index(Split(split)), index, *keys))
    return ItemSampler(np.random.default_rng(sequence), LEVELS[cast(LevelName, level)], Split(split))


def scene_at(seed: int, index: int, level: str = "full", split: str = "train") -> Scene:
    """Scene number `index` of a world. Raises InputError as `item_sampler`."""
    return sample_scene(item_sampler(seed, index, level=level, split=split))


def sample_scene(sampler: ItemSampler) -> Scene:
    """Sample a scene: sprites that are well in view and not occluded at the start, in front of a background."""
    rng, level = sampler.rng, sampler.level
    count = int(rng.integers(level.sprites[0], level.sprites[1] + 1))
    appearances = [sampler.sample_appearance(subject=True)]
    while len(appearances) < count:
        twin = len(appearances) == 1 and rng.random() < TWIN_PROBABILITY
        new = appearances[0] if twin else sampler.sample_appearance()
        if twin or all(new.kind != old.kind for old in appearances):
            appearances.append(new)
    sprites: list[Sprite] = []
    for appearance in appearances:
        size = sampler.uniform(level.size)
        angle, speed = sampler.uniform((0, 2 * math.pi)), sampler.uniform(level.speed)
        start = _free_position(rng, size, sprites)
        velocity = (speed * math.cos(angle), speed * math.sin(angle))
        sprites.append(Sprite(appearance=appearance, size=size, start=start, velocity=velocity))
    order = rng.permutation(count)
    return Scene(background=sampler.sample_background(), sprites=tuple(sprites[i] for i in order))


def relative_distance(a: Sprite, b: Sprite) -> float:
    """Distance of two sprites in frame 0 relative to their sizes: 0 is the same place, 1 is just touching."""
    return math.dist(a.start, b.start) / (a.size + b.size)


def _free_position(rng: np.random.Generator, size: float, others: list[Sprite]) -> Vector:
    """A start in the frame with little overlap with `others`; in a crowded scene the best of 24 tries."""
    reach = centre_limit(size)
    best, freest = (0.0, 0.0), -1.0
    for x, y in rng.uniform(-reach, reach, size=(24, 2)).tolist():
        free = min((math.dist((x, y), other.start) / (size + other.size) for other in others), default=math.inf)
        if free >= 0.9:
            return x, y
        if free > freest:
            best, freest = (x, y), free
    return best
