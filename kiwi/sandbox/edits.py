"""Edits: what turns a scene into its target.

An `Edit` is a small frozen value: applied to a scene it gives the target scene, and it knows its category, its wording,
its reference picture and the edits that it may be mistaken for. Everything that the target shows can be known from the
source, the instruction and the reference, so every pair is exact ground truth. A new kind of edit is one class, its
wordings and a proposal (kiwi.sandbox.pairs).
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
from kiwi.sandbox.sampling import Dice
from kiwi.sandbox.styles import STYLES
from kiwi.sandbox.world import Background, Looks, Scene, Sprite


@dataclass(frozen=True, kw_only=True)
class Edit(ABC):
    """Base of all edits: changes nothing; a kind overrides what it needs."""

    category: ClassVar[str]

    def apply(self, scene: Scene) -> Scene:
        """The target scene."""
        return scene

    def stylise(self, video: np.ndarray) -> np.ndarray:
        """What the edit does to the pixels of the target scene: FHWC uint8 -> FHWC uint8."""
        return video

    def reference(self) -> Scene | None:
        """The scene that the reference picture shows; None where the words say everything."""
        return None

    @abstractmethod
    def instruction(self, scene: Scene, given: Dice) -> str:
        """One wording of the edit, unambiguous in `scene`."""

    def caption(self, scene: Scene) -> str:
        """What the target shows, for this edit of `scene`."""
        return grammar.caption(self.apply(scene))

    @abstractmethod
    def mistakes(self, scene: Scene) -> Iterator[tuple[str, Edit]]:
        """This edit with one thing wrong: what is wrong in it, and the edit that it then is."""


@dataclass(frozen=True, kw_only=True)
class ChangeSprite(Edit):
    """Give sprite `index` other looks, as the words say: a colour, a shape, or both."""

    category: ClassVar[str] = "local_change"
    index: int
    looks: Looks

    def apply(self, scene: Scene) -> Scene:
        sprites = list(scene.sprites)
        sprites[self.index] = replace(sprites[self.index], looks=self.looks)
        return replace(scene, sprites=tuple(sprites))

    def instruction(self, scene: Scene, given: Dice) -> str:
        old, new = scene.sprites[self.index].looks, self.looks
        kind = "recolour" if old.shape == new.shape else "reshape" if old.colour == new.colour else "transform"
        it, a = grammar.refer(scene, self.index, given), grammar.a(grammar.name(new))
        return grammar.phrase(kind, given, it=it, a=a, colour=new.colour, shape=new.shape)

    def mistakes(self, scene: Scene) -> Iterator[tuple[str, Edit]]:
        for wrong, looks in _mistaken_looks(self.looks):
            yield wrong, replace(self, looks=looks)


@dataclass(frozen=True, kw_only=True)
class RemoveSprite(Edit):
    """Take sprite `index` away; what was behind it shows."""

    category: ClassVar[str] = "local_remove"
    index: int

    def apply(self, scene: Scene) -> Scene:
        return replace(scene, sprites=scene.sprites[: self.index] + scene.sprites[self.index + 1 :])

    def instruction(self, scene: Scene, given: Dice) -> str:
        return grammar.phrase("remove", given, it=grammar.refer(scene, self.index, given))

    def mistakes(self, scene: Scene) -> Iterator[tuple[str, Edit]]:
        for index in range(len(scene.sprites)):
            if index != self.index:
                yield "thing", replace(self, index=index)


@dataclass(frozen=True, kw_only=True)
class AddSprite(Edit):
    """Put a sprite in front of all others, at a place (PLACES) and with a motion (MOTIONS) that words give."""

    category: ClassVar[str] = "local_add"
    SIZE: ClassVar[float] = 0.36  # one size for all, because the words do not say it
    looks: Looks
    place: str
    motion: str

    @property
    def sprite(self) -> Sprite:
        start, velocity = grammar.PLACES[self.place], grammar.MOTIONS[self.motion]
        return Sprite(looks=self.looks, size=self.SIZE, start=start, velocity=velocity)

    def apply(self, scene: Scene) -> Scene:
        return replace(scene, sprites=(*scene.sprites, self.sprite))

    def instruction(self, scene: Scene, given: Dice) -> str:
        a = grammar.a(grammar.name(self.looks))
        return grammar.phrase("add", given, a=a, place=self.place, motion=self.motion)

    def mistakes(self, scene: Scene) -> Iterator[tuple[str, Edit]]:
        for wrong, looks in _mistaken_looks(self.looks):
            yield wrong, replace(self, looks=looks)
        for place in grammar.PLACES:
            if place != self.place:
                yield "place", replace(self, place=place)
        for motion in grammar.MOTIONS:
            if motion != self.motion:
                yield "motion", replace(self, motion=motion)


@dataclass(frozen=True, kw_only=True)
class ChangeBackground(Edit):
    """Put another background behind the sprites, as the words say; the camera moves as before."""

    category: ClassVar[str] = "background_change"
    background: Background

    def apply(self, scene: Scene) -> Scene:
        return replace(scene, background=replace(self.background, drift=scene.background.drift))

    def instruction(self, scene: Scene, given: Dice) -> str:
        return grammar.phrase("background", given, background=grammar.describe(self.background))

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
    """Give every pixel another look; `style` is a name in STYLES."""

    category: ClassVar[str] = "global_style"
    style: str

    def stylise(self, video: np.ndarray) -> np.ndarray:
        return STYLES[self.style](video)

    def instruction(self, scene: Scene, given: Dice) -> str:
        return grammar.phrase(self.style, given)

    def caption(self, scene: Scene) -> str:
        return grammar.caption(scene, self.style)

    def mistakes(self, scene: Scene) -> Iterator[tuple[str, Edit]]:
        for style in STYLES:
            if style != self.style:
                yield "style", replace(self, style=style)


@dataclass(frozen=True, kw_only=True)
class SubjectReference(ChangeSprite):
    """Give sprite `index` the looks of an object that only the reference picture shows, large and on white."""

    category: ClassVar[str] = "subject_reference"

    def reference(self) -> Scene:
        white = Background(texture="plain", ground="white", figure="white")
        return Scene(background=white, sprites=(Sprite(looks=self.looks, size=0.8, start=(0.0, 0.0)),))

    def instruction(self, scene: Scene, given: Dice) -> str:
        return grammar.phrase("subject_reference", given, it=grammar.refer(scene, self.index, given))


@dataclass(frozen=True, kw_only=True)
class BackgroundReference(ChangeBackground):
    """Put the background that only the reference picture shows behind the sprites."""

    category: ClassVar[str] = "background_reference"

    def reference(self) -> Scene:
        return Scene(background=self.background, sprites=())

    def instruction(self, scene: Scene, given: Dice) -> str:
        return grammar.phrase("background_reference", given)


def _mistaken_looks(right: Looks) -> Iterator[tuple[str, Looks]]:
    for colour in SPRITE_COLOURS:
        if colour != right.colour:
            yield "colour", replace(right, colour=colour)
    for shape in SHAPES:
        if shape != right.shape:
            yield "shape", replace(right, shape=shape)
    for pattern in PATTERNS:
        if pattern != right.pattern:
            yield "pattern", replace(right, pattern=pattern)
