"""Sampling of scenes: levels of difficulty, and splits that hold out objects, backgrounds and wordings.

A level limits how complex a scene is. A split selects objects and wordings: `train` has five sixths of all pairs of
colour and shape, seven eighths of all pairs of texture and base colour, and all but the last wordings of every kind.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal, TypeVar, cast, get_args

import numpy as np

from kiwi.errors import InputError, format_choices
from kiwi.sandbox.drawing import PATTERNS, SHAPES, TEXTURES
from kiwi.sandbox.palette import BACKGROUND_COLOURS, SPRITE_COLOURS, contrasting_colours
from kiwi.sandbox.world import Appearance, Background, Scene, Sprite, Vector, centre_limit

T = TypeVar("T")

TWIN_PROBABILITY = 0.15
"""Probability that the first two sprites of a scene have the same appearance and differ only in place and motion."""

HELD_OUT_WORDINGS = 2
"""Number of wordings at the end of each kind's list that training never uses."""


@dataclass(frozen=True, kw_only=True)
class Level:
    """Limits on the complexity of scenes.

    Args:
        sprites: minimum and maximum number of sprites.
        size: minimum and maximum radius of sprites, in half short sides.
        speed: minimum and maximum speed of sprites, in positions per frame.
        patterns, textures: names of the patterns of sprites and the textures of backgrounds.
        moving_camera_share: share of scenes in which the camera moves.
    """

    sprites: tuple[int, int] = (1, 3)
    size: tuple[float, float] = (0.3, 0.44)
    speed: tuple[float, float] = (0.015, 0.06)
    patterns: tuple[str, ...] = tuple(PATTERNS)
    textures: tuple[str, ...] = tuple(TEXTURES)
    moving_camera_share: float = 0.6


_EASY = Level(
    sprites=(1, 2),
    size=(0.38, 0.5),
    speed=(0.0, 0.03),
    patterns=("plain",),
    textures=("plain", "gradient"),
    moving_camera_share=0.0,
)

LevelName = Literal["single", "easy", "middle", "full"]
SplitName = Literal["train", "test", "new_words", "new_things", "new_both"]

LEVELS: dict[LevelName, Level] = {
    "single": replace(_EASY, sprites=(1, 1)),
    "easy": _EASY,
    "middle": Level(sprites=(1, 2), size=(0.34, 0.46), patterns=("plain", "stripes"), moving_camera_share=0.3),
    "full": Level(),
}
"""Levels in order of complexity. A vision-language model is first trained on single sprites; an editor of a million
parameters learns the easy level in minutes."""

SPLITS: tuple[SplitName, ...] = get_args(SplitName)
"""Subsets of items; two splits never share an item. `test` has new scenes with the objects, backgrounds and wordings of
training, `new_words` has held-out wordings, `new_things` held-out objects and backgrounds, `new_both` all of these."""


def is_held_out_object(colour: str, shape: str) -> bool:
    """Whether training never shows a sprite of this colour and shape: one shape of each colour."""
    return (list(SPRITE_COLOURS).index(colour) + list(SHAPES).index(shape)) % len(SHAPES) == 0


def is_held_out_background(texture: str, base_colour: str) -> bool:
    """Whether training never shows this texture on this base colour: one or two base colours of each texture."""
    return (list(TEXTURES).index(texture) + list(BACKGROUND_COLOURS).index(base_colour)) % len(TEXTURES) == 0


@dataclass(frozen=True)
class ItemSampler:
    """Samples the scene, the edit and the wording of one item, within the limits of a level and a split."""

    rng: np.random.Generator
    level: Level
    split: SplitName

    @property
    def introduces_held_out(self) -> bool:
        """Whether every scene has a held-out object, and every edit introduces one or a held-out background."""
        return self.split in ("new_things", "new_both")

    def choose(self, values: Iterable[T]) -> T:
        """Sample one of `values` uniformly."""
        candidates = list(values)
        return candidates[int(self.rng.integers(len(candidates)))]

    def uniform(self, bounds: tuple[float, float]) -> float:
        """Sample a number between two bounds uniformly."""
        return float(self.rng.uniform(*bounds))

    def choose_wording(self, wordings: Sequence[str]) -> str:
        """Sample one of the wordings that the split uses."""
        training, held_out = wordings[:-HELD_OUT_WORDINGS], wordings[-HELD_OUT_WORDINGS:]
        return self.choose(held_out if self.split in ("new_words", "new_both") else training)

    def allows(self, colour: str, shape: str) -> bool:
        """Whether an edit may introduce a sprite of this colour and shape."""
        return is_held_out_object(colour, shape) == self.introduces_held_out

    def sample_appearance(self, *, subject: bool = False) -> Appearance:
        """Sample the appearance of a sprite; half of all sprites are plain, or all if the level has no other pattern.

        Args:
            subject: whether a split with held-out objects must give a held-out one.
        """
        patterns = [name for name in self.level.patterns if name != "plain"]
        pattern = "plain" if not patterns or self.rng.random() < 0.5 else self.choose(patterns)
        allowed = self._allowed_held_out_flags(subject)
        kinds = [kind for kind in product(SPRITE_COLOURS, SHAPES) if is_held_out_object(*kind) in allowed]
        colour, shape = self.choose(kinds)
        return Appearance(shape=shape, colour=colour, pattern=pattern)

    def sample_background(self, *, subject: bool = False) -> Background:
        """Sample a background with two distinguishable colours and a camera that is still or slowly drifts."""
        allowed = self._allowed_held_out_flags(subject)
        texture = self.choose(self.level.textures)
        base_colours = [name for name in BACKGROUND_COLOURS if is_held_out_background(texture, name) in allowed]
        base_colour = self.choose(base_colours)
        is_moving = self.rng.random() < self.level.moving_camera_share
        angle, speed = self.uniform((0, 2 * math.pi)), self.uniform((0.01, 0.03)) if is_moving else 0.0
        # Both ends of a gradient must be visible.
        max_phase = 0.35 if texture == "gradient" else 1.0
        return Background(
            texture=texture,
            base_colour=base_colour,
            pattern_colour=self.choose(contrasting_colours(base_colour)),
            phase=(self.uniform((-max_phase, max_phase)), self.uniform((-max_phase, max_phase))),
            drift=(speed * math.cos(angle), speed * math.sin(angle)),
        )

    def _allowed_held_out_flags(self, subject: bool) -> tuple[bool, ...]:
        """Values that `is_held_out_object` and `is_held_out_background` may have."""
        if not self.introduces_held_out:
            return (False,)
        return (True,) if subject else (False, True)


def item_sampler(seed: int, index: int, *keys: int, level: str = "full", split: str = "train") -> ItemSampler:
    """Create the sampler of one item; each has its own random generator, so that items do not depend on each other.

    Args:
        seed: random seed.
        index: index of the item.
        keys: further integers that distinguish independent samplers of the same item.
        level, split: names in LEVELS and SPLITS.

    Raises:
        InputError: if the seed or index is negative, or the level or split is unknown.
    """
    if seed < 0 or index < 0:
        raise InputError("seed and index must not be negative", code="out-of-range", got=f"seed {seed}, index {index}")
    for field, name, names in (("level", level, tuple(LEVELS)), ("split", split, SPLITS)):
        if name not in names:
            raise InputError(
                f"there is no {field} {name!r}", code=f"unknown-{field}", expected=format_choices(names, name)
            )
    known_level, known_split = cast(LevelName, level), cast(SplitName, split)
    sequence = np.random.SeedSequence(seed, spawn_key=(SPLITS.index(known_split), index, *keys))
    return ItemSampler(np.random.default_rng(sequence), LEVELS[known_level], known_split)


def scene_at(seed: int, index: int, level: str = "full", split: str = "train") -> Scene:
    """Sample scene `index` of a seed. Raises InputError like `item_sampler`."""
    return sample_scene(item_sampler(seed, index, level=level, split=split))


def sample_scene(sampler: ItemSampler) -> Scene:
    """Sample a background and sprites that are in view and hardly occluded in the first frame."""
    rng, level = sampler.rng, sampler.level
    count = int(rng.integers(level.sprites[0], level.sprites[1] + 1))
    appearances = [sampler.sample_appearance(subject=True)]
    while len(appearances) < count:
        is_twin = len(appearances) == 1 and rng.random() < TWIN_PROBABILITY
        new = appearances[0] if is_twin else sampler.sample_appearance()
        if is_twin or all(new.kind != old.kind for old in appearances):
            appearances.append(new)
    sprites: list[Sprite] = []
    for appearance in appearances:
        size = sampler.uniform(level.size)
        angle, speed = sampler.uniform((0, 2 * math.pi)), sampler.uniform(level.speed)
        start = _sample_free_position(rng, size, sprites)
        velocity = (speed * math.cos(angle), speed * math.sin(angle))
        sprites.append(Sprite(appearance=appearance, size=size, start=start, velocity=velocity))
    order = rng.permutation(count)
    return Scene(background=sampler.sample_background(), sprites=tuple(sprites[i] for i in order))


def relative_distance(first: Sprite, second: Sprite) -> float:
    """Distance between two sprites in frame 0 relative to their sizes: 0 if they coincide, 1 if they just touch."""
    return math.dist(first.start, second.start) / (first.size + second.size)


def _sample_free_position(rng: np.random.Generator, size: float, others: list[Sprite]) -> Vector:
    """Sample a start that hardly overlaps with `others`; in a crowded scene, the best of 24 candidates."""
    limit = centre_limit(size)
    best, largest_distance = (0.0, 0.0), -1.0
    for x, y in rng.uniform(-limit, limit, size=(24, 2)).tolist():
        distance = min((math.dist((x, y), other.start) / (size + other.size) for other in others), default=math.inf)
        if distance >= 0.9:
            return x, y
        if distance > largest_distance:
            best, largest_distance = (x, y), distance
    return best
