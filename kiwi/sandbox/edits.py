"""Edits: what turns a scene into its target, and the pairs of videos that this makes.

An `Edit` is a small frozen value: applied to a scene it gives the target scene, and it knows its category,
its wording and its reference picture. Everything that the target shows can be known from the source, the
instruction and the reference, so every pair is exact ground truth. What changed is found by comparing the
two scenes, for all edits alike; a new kind of edit is one class, its wordings and a proposal.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from kiwi.errors import InputError
from kiwi.sandbox import grammar
from kiwi.sandbox.drawing import SHAPES
from kiwi.sandbox.palette import SPRITE_COLOURS
from kiwi.sandbox.styles import STYLES
from kiwi.sandbox.world import (
    Background,
    Drawing,
    Looks,
    Scene,
    Sprite,
    draw,
    gap,
    pick,
    render,
    sample_background,
    sample_looks,
    scene_at,
    stream,
)

# Source and target differ by at least this much inside the mask: mean absolute difference in grey levels of 255.
VISIBLE = 10.0
# A local edit shows in at least this share of the frame, on average over the frames.
AREA = 0.01
MIN_SIDE = 16
_ATTEMPTS = 64


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
    def instruction(self, scene: Scene, rng: np.random.Generator) -> str:
        """One wording of the edit, unambiguous in `scene`."""

    def caption(self, scene: Scene) -> str:
        """What the target shows, for this edit of `scene`."""
        return grammar.caption(self.apply(scene))


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

    def instruction(self, scene: Scene, rng: np.random.Generator) -> str:
        old, new = scene.sprites[self.index].looks, self.looks
        kind = "recolour" if old.shape == new.shape else "reshape" if old.colour == new.colour else "transform"
        it, a = grammar.refer(scene, self.index, rng), grammar.a(grammar.name(new))
        return grammar.phrase(kind, rng, it=it, a=a, colour=new.colour, shape=new.shape)


@dataclass(frozen=True, kw_only=True)
class RemoveSprite(Edit):
    """Take sprite `index` away; what was behind it shows."""

    category: ClassVar[str] = "local_remove"
    index: int

    def apply(self, scene: Scene) -> Scene:
        return replace(scene, sprites=scene.sprites[: self.index] + scene.sprites[self.index + 1 :])

    def instruction(self, scene: Scene, rng: np.random.Generator) -> str:
        return grammar.phrase("remove", rng, it=grammar.refer(scene, self.index, rng))


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

    def instruction(self, scene: Scene, rng: np.random.Generator) -> str:
        a = grammar.a(grammar.name(self.looks))
        return grammar.phrase("add", rng, a=a, place=self.place, motion=self.motion)


@dataclass(frozen=True, kw_only=True)
class ChangeBackground(Edit):
    """Put another background behind the sprites, as the words say; the camera moves as before."""

    category: ClassVar[str] = "background_change"
    background: Background

    def apply(self, scene: Scene) -> Scene:
        return replace(scene, background=replace(self.background, drift=scene.background.drift))

    def instruction(self, scene: Scene, rng: np.random.Generator) -> str:
        return grammar.phrase("background", rng, background=grammar.describe(self.background))


@dataclass(frozen=True, kw_only=True)
class Restyle(Edit):
    """Give every pixel another look; `style` is a name in STYLES."""

    category: ClassVar[str] = "global_style"
    style: str

    def stylise(self, video: np.ndarray) -> np.ndarray:
        return STYLES[self.style](video)

    def instruction(self, scene: Scene, rng: np.random.Generator) -> str:
        return grammar.phrase(self.style, rng)

    def caption(self, scene: Scene) -> str:
        return grammar.caption(scene, self.style)


@dataclass(frozen=True, kw_only=True)
class SubjectReference(ChangeSprite):
    """Give sprite `index` the looks of an object that only the reference picture shows, large and on white."""

    category: ClassVar[str] = "subject_reference"

    def reference(self) -> Scene:
        white = Background(texture="plain", ground="white", figure="white")
        return Scene(background=white, sprites=(Sprite(looks=self.looks, size=0.8, start=(0.0, 0.0)),))

    def instruction(self, scene: Scene, rng: np.random.Generator) -> str:
        return grammar.phrase("subject_reference", rng, it=grammar.refer(scene, self.index, rng))


@dataclass(frozen=True, kw_only=True)
class BackgroundReference(ChangeBackground):
    """Put the background that only the reference picture shows behind the sprites."""

    category: ClassVar[str] = "background_reference"

    def reference(self) -> Scene:
        return Scene(background=self.background, sprites=())

    def instruction(self, scene: Scene, rng: np.random.Generator) -> str:
        return grammar.phrase("background_reference", rng)


def _propose_change(scene: Scene, rng: np.random.Generator) -> Edit:
    index = int(rng.integers(len(scene.sprites)))
    old, taken = scene.sprites[index].looks, _taken(scene)
    recoloured = [replace(old, colour=colour) for colour in SPRITE_COLOURS if (colour, old.shape) not in taken]
    reshaped = [replace(old, shape=shape) for shape in SHAPES if (old.colour, shape) not in taken]
    transformed = replace(_new_looks(scene, rng), pattern=old.pattern)
    return ChangeSprite(index=index, looks=pick(rng, (pick(rng, recoloured), pick(rng, reshaped), transformed)))


def _propose_addition(scene: Scene, rng: np.random.Generator) -> Edit:
    looks = _new_looks(scene, rng)
    still = [AddSprite(looks=looks, place=place, motion="") for place in grammar.PLACES]
    freedom = {edit: min(gap(edit.sprite, sprite) for sprite in scene.sprites) for edit in still}
    edit = pick(rng, [e for e in still if freedom[e] >= min(0.9, max(freedom.values()))])
    x, y = edit.sprite.start
    inward = [words for words, (dx, dy) in grammar.MOTIONS.items() if x * dx <= 0 and y * dy <= 0]
    return replace(edit, motion=pick(rng, inward))


def _propose_background(scene: Scene, rng: np.random.Generator) -> Edit:
    # The camera's place is not in the words, so the new texture is seen from the middle.
    return ChangeBackground(background=replace(sample_background(rng), phase=(0.0, 0.0), drift=(0.0, 0.0)))


def _propose_subject(scene: Scene, rng: np.random.Generator) -> Edit:
    return SubjectReference(index=int(rng.integers(len(scene.sprites))), looks=_new_looks(scene, rng))


def _propose_reference_background(scene: Scene, rng: np.random.Generator) -> Edit:
    return BackgroundReference(background=replace(sample_background(rng), drift=(0.0, 0.0)))


def _new_looks(scene: Scene, rng: np.random.Generator) -> Looks:
    """Looks whose colour and shape no sprite of the scene has together."""
    taken = _taken(scene)
    while True:
        looks = sample_looks(rng)
        if (looks.colour, looks.shape) not in taken:
            return looks


def _taken(scene: Scene) -> set[tuple[str, str]]:
    return {(sprite.looks.colour, sprite.looks.shape) for sprite in scene.sprites}


# The categories of edits (named as OpenVE and RefVIE name them), and what draws an edit of each for a scene.
PROPOSALS: dict[str, Callable[[Scene, np.random.Generator], Edit]] = {
    "local_change": _propose_change,
    "local_remove": lambda scene, rng: RemoveSprite(index=int(rng.integers(len(scene.sprites)))),
    "local_add": _propose_addition,
    "background_change": _propose_background,
    "global_style": lambda scene, rng: Restyle(style=pick(rng, STYLES)),
    "subject_reference": _propose_subject,
    "background_reference": _propose_reference_background,
}
CATEGORIES = tuple(PROPOSALS)


@dataclass(frozen=True, kw_only=True, eq=False)
class EditPair:
    """One item of the world: a video, what an edit makes of it, and what an editor is told.

    Args:
        source, target: FHWC uint8.
        mask: FHW bool, where the edit may show; outside it source and target are equal to the last bit.
        instruction: one wording of the edit.
        reference: HWC uint8, square, as high as the video's short side; None where the words say everything.
        category: one of CATEGORIES.
        caption: what the target shows.
        id: unique in all worlds, fit for file names.
        scene, edit: what the pair was drawn from.
    """

    source: np.ndarray
    target: np.ndarray
    mask: np.ndarray
    instruction: str
    reference: np.ndarray | None
    category: str
    caption: str
    id: str
    scene: Scene
    edit: Edit


def make_pair(
    seed: int, index: int, *, frames: int, height: int, width: int, categories: Sequence[str] | None = None
) -> EditPair:
    """Item `index` of the world `seed`; the same arguments give the same item, to the bit.

    Args:
        frames: length of the videos.
        height, width: in pixels, MIN_SIDE or more; sprites can be told apart from 32 up.
        categories: which kinds of edit, all by default; they take turns by index, so any range is balanced.

    Raises:
        InputError: an unknown category, a negative seed or index, a video without frames or below MIN_SIDE.
    """
    names = check_categories(categories)
    if min(height, width) < MIN_SIDE:
        raise InputError(
            "The video is too small for the world", got=f"{width}x{height}", wanted=f"{MIN_SIDE} pixels up"
        )
    category = names[index % len(names)]
    scene = scene_at(seed, index)
    before = draw(scene, frames, height, width)
    for attempt in range(_ATTEMPTS):
        rng = stream(seed, index, CATEGORIES.index(category), attempt)
        edit = PROPOSALS[category](scene, rng)
        after = draw(edit.apply(scene), frames, height, width)
        target = edit.stylise(after.video)
        mask = np.ones(before.video.shape[:3], bool) if category == "global_style" else _changed(before, after)
        if _shows(before.video, target, mask):
            break
    else:
        raise AssertionError(f"no {category} of item {index} of world {seed} shows at {frames}x{height}x{width}")
    pictured, side = edit.reference(), min(height, width)
    return EditPair(
        source=before.video,
        target=target,
        mask=mask,
        instruction=edit.instruction(scene, rng),
        reference=None if pictured is None else render(pictured, 1, side, side)[0],
        category=category,
        caption=edit.caption(scene),
        id=f"{seed}-{index:06d}",
        scene=scene,
        edit=edit,
    )


def check_categories(categories: Sequence[str] | None) -> tuple[str, ...]:
    """The categories as a tuple, all of them for None.

    Raises:
        InputError: an unknown name, a name twice, or none at all.
    """
    names = CATEGORIES if categories is None else tuple(categories)
    unknown = [name for name in names if name not in PROPOSALS]
    if unknown or not names or len(set(names)) < len(names):
        wanted = f"some of {', '.join(CATEGORIES)}, each once"
        raise InputError("The categories cannot be used", got=", ".join(names) or "none", wanted=wanted)
    return names


def _changed(before: Drawing, after: Drawing) -> np.ndarray:
    """Where anything is seen that only one of the two scenes holds: FHW bool."""
    region = np.zeros(before.video.shape[:3], bool)
    for one, other in ((before, after), (after, before)):
        if one.scene.background != other.scene.background:
            region |= one.background > 0
        for sprite, visible in zip(one.scene.sprites, one.sprites, strict=True):
            if sprite not in other.scene.sprites:
                region |= visible > 0
    return region


def _shows(source: np.ndarray, target: np.ndarray, mask: np.ndarray) -> bool:
    difference = np.abs(source[mask].astype(np.int16) - target[mask])
    return bool(mask.mean() >= AREA and difference.mean() >= VISIBLE)
