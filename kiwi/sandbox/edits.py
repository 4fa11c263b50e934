"""Edits: functions from a scene to its target.

An `Edit` is a small frozen value that maps a scene to the target scene. It has a category, wordings, optionally a
reference image, and variants with one mistake. Source, instruction and reference determine the target, so every pair is
exact ground truth. A new kind of edit needs a class, its wordings, and a function that samples it (`PROPOSALS` in
kiwi.sandbox.pairs).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, TypeVar

import numpy as np

from kiwi.sandbox import grammar
from kiwi.sandbox.drawing import PATTERNS, SHAPES, TEXTURES
from kiwi.sandbox.palette import SPRITE_COLOURS, STYLES, contrasting_colours
from kiwi.sandbox.sampling import ItemSampler
from kiwi.sandbox.world import Appearance, Background, Scene, Sprite

T = TypeVar("T", bound="Edit | Appearance | Background")


@dataclass(frozen=True, kw_only=True)
class Edit(ABC):
    """Base class of all edits. Its own `apply` and `stylise` change nothing."""

    category: ClassVar[str]

    def apply(self, scene: Scene) -> Scene:
        """Return the target scene."""
        return scene

    def stylise(self, video: np.ndarray) -> np.ndarray:
        """Apply the style of the edit to the rendered target scene: FHWC uint8 -> FHWC uint8."""
        return video

    def reference_scene(self) -> Scene | None:
        """Return the scene that the reference image shows, or None if the edit needs no reference."""
        return None

    @abstractmethod
    def sample_instruction(self, scene: Scene, sampler: ItemSampler) -> str:
        """Sample a wording of the edit that is unambiguous in `scene`."""

    def caption_target(self, scene: Scene) -> str:
        """Describe the video that results from applying this edit to `scene`."""
        return grammar.caption_scene(self.apply(scene))

    @abstractmethod
    def mistakes(self, scene: Scene) -> Iterator[tuple[str, Edit]]:
        """Yield the variants of this edit with one mistake, each as the kind of mistake and the edit."""


@dataclass(frozen=True, kw_only=True)
class ChangeSprite(Edit):
    """Give sprite `index` the colour, the shape, or both, that the instruction names."""

    category = "local_change"
    index: int
    appearance: Appearance

    def apply(self, scene: Scene) -> Scene:
        sprites = list(scene.sprites)
        sprites[self.index] = replace(sprites[self.index], appearance=self.appearance)
        return replace(scene, sprites=tuple(sprites))

    def sample_instruction(self, scene: Scene, sampler: ItemSampler) -> str:
        old, new = scene.sprites[self.index].appearance, self.appearance
        kind = "recolour" if old.shape == new.shape else "reshape" if old.colour == new.colour else "transform"
        slots = {
            "object": grammar.sample_referring_expression(scene, self.index, sampler),
            "new_object": grammar.with_article(grammar.full_name(new)),
        }
        return grammar.sample_instruction(kind, sampler, **slots, colour=new.colour, shape=new.shape)

    def mistakes(self, scene: Scene) -> Iterator[tuple[str, Edit]]:
        return _vary_appearance(self)


@dataclass(frozen=True, kw_only=True)
class RemoveSprite(Edit):
    """Remove sprite `index`, so that what was behind it becomes visible."""

    category = "local_remove"
    index: int

    def apply(self, scene: Scene) -> Scene:
        return replace(scene, sprites=scene.sprites[: self.index] + scene.sprites[self.index + 1 :])

    def sample_instruction(self, scene: Scene, sampler: ItemSampler) -> str:
        object_phrase = grammar.sample_referring_expression(scene, self.index, sampler)
        return grammar.sample_instruction("remove", sampler, object=object_phrase)

    def mistakes(self, scene: Scene) -> Iterator[tuple[str, Edit]]:
        for index in range(len(scene.sprites)):
            if index != self.index:
                yield "object", replace(self, index=index)


@dataclass(frozen=True, kw_only=True)
class AddSprite(Edit):
    """Add a sprite in front of all others; the instruction names its place (PLACES) and motion (MOTIONS)."""

    category = "local_add"
    SIZE: ClassVar[float] = 0.36  # always the same, because the instruction does not name a size
    appearance: Appearance
    place: str
    motion: str

    @property
    def sprite(self) -> Sprite:
        start, velocity = grammar.PLACES[self.place], grammar.MOTIONS[self.motion]
        return Sprite(appearance=self.appearance, size=self.SIZE, start=start, velocity=velocity)

    def apply(self, scene: Scene) -> Scene:
        return replace(scene, sprites=(*scene.sprites, self.sprite))

    def sample_instruction(self, scene: Scene, sampler: ItemSampler) -> str:
        new_object = grammar.with_article(grammar.full_name(self.appearance))
        return grammar.sample_instruction("add", sampler, new_object=new_object, place=self.place, motion=self.motion)

    def mistakes(self, scene: Scene) -> Iterator[tuple[str, Edit]]:
        yield from _vary_appearance(self)
        yield from (("place", edit) for edit in _variants(self, "place", grammar.PLACES))
        yield from (("motion", edit) for edit in _variants(self, "motion", grammar.MOTIONS))


@dataclass(frozen=True, kw_only=True)
class ChangeBackground(Edit):
    """Replace the background with the one that the instruction describes, and keep the camera motion."""

    category = "background_change"
    background: Background

    def apply(self, scene: Scene) -> Scene:
        return replace(scene, background=replace(self.background, drift=scene.background.drift))

    def sample_instruction(self, scene: Scene, sampler: ItemSampler) -> str:
        background = grammar.describe_background(self.background)
        return grammar.sample_instruction("background", sampler, background=background)

    def mistakes(self, scene: Scene) -> Iterator[tuple[str, Edit]]:
        correct = self.background
        for background in _variants(correct, "texture", TEXTURES):
            yield "texture", replace(self, background=background)
        recoloured = _variants(correct, "base_colour", contrasting_colours(correct.pattern_colour))
        if correct.texture != "plain":
            recoloured += _variants(correct, "pattern_colour", contrasting_colours(correct.base_colour))
        for background in recoloured:
            yield "colour", replace(self, background=background)


@dataclass(frozen=True, kw_only=True)
class Restyle(Edit):
    """Apply a style to the whole video; `style` is a name in STYLES."""

    category = "global_style"
    style: str

    def stylise(self, video: np.ndarray) -> np.ndarray:
        return STYLES[self.style](video)

    def sample_instruction(self, scene: Scene, sampler: ItemSampler) -> str:
        return grammar.sample_instruction(self.style, sampler)

    def caption_target(self, scene: Scene) -> str:
        return grammar.caption_scene(scene, self.style)

    def mistakes(self, scene: Scene) -> Iterator[tuple[str, Edit]]:
        return (("style", edit) for edit in _variants(self, "style", STYLES))


@dataclass(frozen=True, kw_only=True)
class SubjectReference(ChangeSprite):
    """Replace sprite `index` with the object of the reference image, which shows it large on a white background."""

    category = "subject_reference"

    def reference_scene(self) -> Scene:
        white = Background(texture="plain", base_colour="white", pattern_colour="white")
        return Scene(background=white, sprites=(Sprite(appearance=self.appearance, size=0.8, start=(0.0, 0.0)),))

    def sample_instruction(self, scene: Scene, sampler: ItemSampler) -> str:
        object_phrase = grammar.sample_referring_expression(scene, self.index, sampler)
        return grammar.sample_instruction("subject_reference", sampler, object=object_phrase)


@dataclass(frozen=True, kw_only=True)
class BackgroundReference(ChangeBackground):
    """Replace the background with that of the reference image."""

    category = "background_reference"

    def reference_scene(self) -> Scene:
        return Scene(background=self.background, sprites=())

    def sample_instruction(self, scene: Scene, sampler: ItemSampler) -> str:
        return grammar.sample_instruction("background_reference", sampler)


def _vary_appearance(edit: ChangeSprite | AddSprite) -> Iterator[tuple[str, Edit]]:
    for kind, names in (("colour", SPRITE_COLOURS), ("shape", SHAPES), ("pattern", PATTERNS)):
        for appearance in _variants(edit.appearance, kind, names):
            yield kind, replace(edit, appearance=appearance)


def _variants(value: T, field: str, names: Iterable[str]) -> list[T]:
    """List the copies of a value in which one field has another of these names."""
    others = [name for name in names if name != getattr(value, field)]
    return [replace(value, **{field: name}) for name in others]  # type: ignore[arg-type]
