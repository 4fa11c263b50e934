"""Pairs: a video of the world, and what an edit drawn for it makes of it.

What changed is found by comparing the two scenes, for all edits alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from kiwi.errors import InputError
from kiwi.sandbox import grammar
from kiwi.sandbox.drawing import SHAPES
from kiwi.sandbox.edits import (
    AddSprite,
    BackgroundReference,
    ChangeBackground,
    ChangeSprite,
    Edit,
    RemoveSprite,
    Restyle,
    SubjectReference,
)
from kiwi.sandbox.palette import SPRITE_COLOURS, to_lab
from kiwi.sandbox.sampling import Dice, dice, gap, scene_at
from kiwi.sandbox.styles import STYLES
from kiwi.sandbox.world import Drawing, Looks, Scene, draw, render

# Source and target differ by at least this much inside the mask: mean distance in CIELAB. Of less, a half is so near to
# the whole that no score could tell them apart.
VISIBLE = 16.0
# A local edit shows in at least this share of the frame, on average over the frames.
AREA = 0.01
MIN_SIDE = 16
_ATTEMPTS = 64


def _propose_change(scene: Scene, given: Dice) -> Edit:
    index = given.pick(range(len(scene.sprites)))
    old, taken = scene.sprites[index].looks, _taken(scene)

    def may_become(colour: str, shape: str) -> bool:
        return (colour, shape) not in taken and given.may_have(colour, shape)

    recoloured = [replace(old, colour=colour) for colour in SPRITE_COLOURS if may_become(colour, old.shape)]
    reshaped = [replace(old, shape=shape) for shape in SHAPES if may_become(old.colour, shape)]
    transformed = replace(_new_looks(scene, given), pattern=old.pattern)
    choices = [given.pick(some) for some in (recoloured, reshaped) if some]
    return ChangeSprite(index=index, looks=given.pick([*choices, transformed]))


def _propose_addition(scene: Scene, given: Dice) -> Edit:
    looks = _new_looks(scene, given)
    still = [AddSprite(looks=looks, place=place, motion="") for place in grammar.PLACES]
    freedom = {edit: min(gap(edit.sprite, sprite) for sprite in scene.sprites) for edit in still}
    edit = given.pick([e for e in still if freedom[e] >= min(0.9, max(freedom.values()))])
    x, y = edit.sprite.start
    inward = [words for words, (dx, dy) in grammar.MOTIONS.items() if x * dx <= 0 and y * dy <= 0]
    return replace(edit, motion=given.pick(inward))


def _propose_background(scene: Scene, given: Dice) -> Edit:
    # The camera's place is not in the words, so the new texture is seen from the middle.
    return ChangeBackground(background=replace(given.background(subject=True), phase=(0.0, 0.0), drift=(0.0, 0.0)))


def _propose_subject(scene: Scene, given: Dice) -> Edit:
    return SubjectReference(index=given.pick(range(len(scene.sprites))), looks=_new_looks(scene, given))


def _propose_reference_background(scene: Scene, given: Dice) -> Edit:
    return BackgroundReference(background=replace(given.background(subject=True), drift=(0.0, 0.0)))


def _new_looks(scene: Scene, given: Dice) -> Looks:
    """Looks whose colour and shape no sprite of the scene has together."""
    taken = _taken(scene)
    while True:
        looks = given.looks(subject=True)
        if (looks.colour, looks.shape) not in taken:
            return looks


def _taken(scene: Scene) -> set[tuple[str, str]]:
    return {(sprite.looks.colour, sprite.looks.shape) for sprite in scene.sprites}


# The categories of edits (named as OpenVE and RefVIE name them), and what draws an edit of each for a scene.
PROPOSALS: dict[str, Callable[[Scene, Dice], Edit]] = {
    "local_change": _propose_change,
    "local_remove": lambda scene, given: RemoveSprite(index=given.pick(range(len(scene.sprites)))),
    "local_add": _propose_addition,
    "background_change": _propose_background,
    "global_style": lambda scene, given: Restyle(style=given.pick(STYLES)),
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
        new_mask: FHW bool, the part of the mask in which the target shows what the source does not hold.
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
    new_mask: np.ndarray
    instruction: str
    reference: np.ndarray | None
    category: str
    caption: str
    id: str
    scene: Scene
    edit: Edit

    def render_edit(self, edit: Edit) -> np.ndarray:
        """What another edit makes of the source: FHWC uint8."""
        frames, height, width = self.source.shape[:3]
        return edit.stylise(render(edit.apply(self.scene), frames, height, width))

    def with_edit(self, edit: Edit) -> EditPair | None:
        """The item with another edit in the same words, such as another reference; None if it hardly shows."""
        made = _made(self.scene, draw(self.scene, *self.source.shape[:3]), edit)
        if made is None:
            return None
        target, mask, new = made
        reference, caption = _pictured(edit, min(self.source.shape[1:3])), edit.caption(self.scene)
        return replace(self, target=target, mask=mask, new_mask=new, reference=reference, caption=caption, edit=edit)


def make_pair(
    seed: int,
    index: int,
    *,
    frames: int,
    height: int,
    width: int,
    categories: Sequence[str] | None = None,
    level: str = "full",
    split: str = "train",
) -> EditPair:
    """Item `index` of the world `seed`; the same arguments give the same item, to the bit.

    Args:
        frames: length of the videos.
        height, width: in pixels, MIN_SIDE or more; sprites can be told apart from 32 up.
        categories: which kinds of edit, all by default; they take turns by index, so any range is balanced.
        level, split: names in LEVELS and Split (kiwi.sandbox.sampling).

    Raises:
        InputError: an unknown category, level or split, a negative seed or index, a video without frames or below
            MIN_SIDE, frames so long that sprites are specks in them.
    """
    names = check_categories(categories)
    if min(height, width) < MIN_SIDE:
        raise InputError(
            "The video is too small for the world", got=f"{width}x{height}", wanted=f"{MIN_SIDE} pixels up"
        )
    category = names[index % len(names)]
    scene = scene_at(seed, index, level, split)
    before = draw(scene, frames, height, width)
    for attempt in range(_ATTEMPTS):
        given = dice(seed, index, CATEGORIES.index(category), attempt, level=level, split=split)
        edit = PROPOSALS[category](scene, given)
        if (made := _made(scene, before, edit)) is not None:
            break
    else:
        raise InputError(
            f"no {category} of item {index} of world {seed} is large enough to be seen",
            got=f"frames of {width}x{height}",
            wanted="frames nearer to a square",
        )
    target, mask, new = made
    return EditPair(
        source=before.video,
        target=target,
        mask=mask,
        new_mask=new,
        instruction=edit.instruction(scene, given),
        reference=_pictured(edit, min(height, width)),
        category=category,
        caption=edit.caption(scene),
        id=f"{level}-{split}-{seed}-{index:06d}",
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


def _made(scene: Scene, before: Drawing, edit: Edit) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Target, mask and what is new of an edit of a scene; None if it hardly shows."""
    after = draw(edit.apply(scene), *before.video.shape[:3])
    target = edit.stylise(after.video)
    new, old = _only(after, before), _only(before, after)
    if edit.category == "global_style":
        new = np.ones_like(new)
    mask = new | old
    return (target, mask, new) if _shows(before.video, target, mask) else None


def _pictured(edit: Edit, side: int) -> np.ndarray | None:
    """The reference picture of an edit, square; None where the words say everything."""
    pictured = edit.reference()
    return None if pictured is None else render(pictured, 1, side, side)[0]


def _only(one: Drawing, other: Drawing) -> np.ndarray:
    """Where anything is seen that only the first of two scenes holds: FHW bool."""
    region = np.zeros(one.video.shape[:3], bool)
    if one.scene.background != other.scene.background:
        region |= one.background > 0
    for sprite, visible in zip(one.scene.sprites, one.sprites, strict=True):
        if sprite not in other.scene.sprites:
            region |= visible > 0
    return region


def _shows(source: np.ndarray, target: np.ndarray, mask: np.ndarray) -> bool:
    if mask.mean() < AREA:
        return False
    change = np.linalg.norm(to_lab(source[mask]) - to_lab(target[mask]), axis=-1)
    return bool(change.mean() >= VISIBLE)
