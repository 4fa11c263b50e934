"""Edits: functions from a scene to its target.

An `Edit` is a small frozen value. Applied to a scene it gives the target scene; it has a category, wordings, perhaps a
reference image, and variants with one mistake. The target is determined by the source, the instruction and the
reference, so every pair is exact ground truth. A new kind of edit is one class, its wordings and a function that
samples it (`PROPOSALS` in kiwi.sandbox.pairs).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from kiwi.sandbox import grammar
from kiwi.sandbox.drawing import PATTERNS, SHAPES, TEXTURES
from kiwi.sandbox.palette import SPRITE_COLOURS, figures_for
from kiwi.sandbox.sampling import ItemSampler
from kiwi.sandbox.styles import STYLES
from kiwi.sandbox.world import Appearance, Background, Scene, Sprite


@dataclass(frozen=True, kw_only=True)
class Edit(ABC):
    """Base of all edits; changes nothing."""

    category: ClassVar[str]

    def apply(self, scene: Scene) -> Scene:
        """The target scene."""
        return scene

    def stylise(self, video: np.ndarray) -> np.ndarray:
        """The style applied to the rendered target scene: FHWC uint8 -> FHWC uint8."""
        return video

    def reference(self) -> Scene | None:
        """The scene of the reference image; None if the edit needs no reference."""
        return None

    @abstractmethod
    def instruction(self, scene: Scene, sampler: ItemSampler) -> str:
        """Sample a wording of the edit that is unambiguous in `scene`."""

    def caption(self, scene: Scene) -> str:
        """A description of the target of this edit of `scene`."""
        return grammar.caption(self.apply(scene))

    @abstractmethod
    def mistakes(self, scene: Scene) -> Iterator[tuple[str, Edit]]:
        """The variants of this edit with one mistake: the kind of mistake, and the edit."""


@dataclass(frozen=True, kw_only=True)
class ChangeSprite(Edit):
    """Change the colour, the shape, or both, of sprite `index`, as named in the instruction."""

    category: ClassVar[str] = "local_change"
    index: int
    appearance: Appearance

    def apply(self, scene: Scene) -> Scene:
        sprites = list(scene.sprites)
        sprites[self.index] = replace(sprites[self.index], appearance=self.appearance)
        return replace(scene, sprites=tuple(sprites))

    def instruction(self, scene: Scene, sampler: ItemSampler) -> str:
        old, new = scene.sprites[self.index].appearance, self.appearance
        kind = "recolour" if old.shape == new.shape else "reshape" if old.colour == new.colour else "transform"
        it, a = grammar.referring_expression(scene, self.index, sampler), grammar.with_article(grammar.name(new))
        return grammar.phrase(kind, sampler, it=it, a=a, colour=new.colour, shape=new.shape)

    def mistakes(self, scene: Scene) -> Iterator[tuple[str, Edit]]:
        for wrong, appearance in _appearances_with_mistake(self.appearance):
            yield wrong, replace(self, appearance=appearance)


@dataclass(frozen=True, kw_only=True)
class RemoveSprite(Edit):
    """Remove sprite `index`, which shows what was behind it."""

    category: ClassVar[str] = "local_remove"
    index: int

    def apply(self, scene: Scene) -> Scene:
        return replace(scene, sprites=scene.sprites[: self.index] + scene.sprites[self.index + 1 :])

    def instruction(self, scene: Scene, sampler: ItemSampler) -> str:
        return grammar.phrase("remove", sampler, it=grammar.referring_expression(scene, self.index, sampler))

    def mistakes(self, scene: Scene) -> Iterator[tuple[str, Edit]]:
        for index in range(len(scene.sprites)):
            if index != self.index:
                yield "thing", replace(self, index=index)


@dataclass(frozen=True, kw_only=True)
class AddSprite(Edit):
    """Add a sprite in front of all others, with a place (PLACES) and a motion (MOTIONS) named in the instruction."""

    category: ClassVar[str] = "local_add"
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

    def instruction(self, scene: Scene, sampler: ItemSampler) -> str:
        a = grammar.with_article(grammar.name(self.appearance))
        return grammar.phrase("add", sampler, a=a, place=self.place, motion=self.motion)

    def mistakes(self, scene: Scene) -> Iterator[tuple[str, Edit]]:
        for wrong, appearance in _appearances_with_mistake(self.appearance):
            yield wrong, replace(self, appearance=appearance)
        for place in grammar.PLACES:
            if place != self.place:
                yield "place", replace(self, place=place)
        for motion in grammar.MOTIONS:
            if motion != self.motion:
                yield "motion", replace(self, motion=motion)


@dataclass(frozen=True, kw_only=True)
class ChangeBackground(Edit):
    """Replace the background by one described in the instruction; the camera motion stays."""

    category: ClassVar[str] = "background_change"
    background: Background

    def apply(self, scene: Scene) -> Scene:
        return replace(scene, background=replace(self.background, drift=scene.background.drift))

    def instruction(self, scene: Scene, sampler: ItemSampler) -> str:
        return grammar.phrase("background", sampler, background=grammar.describe(self.background))

    def mistakes(self, scene: Scene) -> Iterator[tuple[str, Edit]]:
        right = self.background
        for texture in TEXTURES:
            if texture != right.texture:
                yield "texture", replace(self, background=replace(right, texture=texture))
        for ground in figures_for(right.figure):
            if ground != right.ground:
                yield "colour", replace(self, background=replace(right, ground=ground))
        for figure in figures_for(right.ground):
            if figure != right.figure and right.texture != "plain":
                yield "colour", replace(self, background=replace(right, figure=figure))


@dataclass(frozen=True, kw_only=True)
class Restyle(Edit):
    """Apply a style to the whole video; `style` is a name in STYLES."""

    category: ClassVar[str] = "global_style"
    style: str

    def stylise(self, video: np.ndarray) -> np.ndarray:
        return STYLES[self.style](video)

    def instruction(self, scene: Scene, sampler: ItemSampler) -> str:
        return grammar.phrase(self.style, sampler)

    def caption(self, scene: Scene) -> str:
        return grammar.caption(scene, self.style)

    def mistakes(self, scene: Scene) -> Iterator[tuple[str, Edit]]:
        for style in STYLES:
            if style != self.style:
                yield "style", replace(self, style=style)


@dataclass(frozen=True, kw_only=True)
class SubjectReference(ChangeSprite):
    """Replace sprite `index` by the object of the reference image, which shows it large and on white."""

    category: ClassVar[str] = "subject_reference"

    def reference(self) -> Scene:
        white = Background(texture="plain", ground="white", figure="white")
        return Scene(background=white, sprites=(Sprite(appearance=self.appearance, size=0.8, start=(0.0, 0.0)),))

    def instruction(self, scene: Scene, sampler: ItemSampler) -> str:
        return grammar.phrase("subject_reference", sampler, it=grammar.referring_expression(scene, self.index, sampler))


@dataclass(frozen=True, kw_only=True)
class BackgroundReference(ChangeBackground):
    """Replace the background by that of the reference image."""

    category: ClassVar[str] = "background_reference"

    def reference(self) -> Scene:
        return Scene(background=self.background, sprites=())

    def instruction(self, scene: Scene, sampler: ItemSampler) -> str:
        return grammar.phrase("background_reference", sampler)


def _appearances_with_mistake(right: Appearance) -> Iterator[tuple[str, Appearance]]:
    for colour in SPRITE_COLOURS:
        if colour != right.colour:
            yield "colour", replace(right, colour=colour)
    for shape in SHAPES:
        if shape != right.shape:
            yield "shape", replace(right, shape=shape)
    for pattern in PATTERNS:
        if pattern != right.pattern:
            yield "pattern", replace(right, pattern=pattern)
