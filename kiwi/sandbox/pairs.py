"""Pairs of a sandbox video and its edited version, with the edit that was sampled for it.

The mask is computed from the source and target scenes in the same way for all edits. Controls are pairs with the
instruction or reference of another pair; an editor has to edit them differently.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

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
from kiwi.sandbox.palette import SPRITE_COLOURS, STYLES, to_lab
from kiwi.sandbox.sampling import ItemSampler, item_sampler, relative_distance, scene_at
from kiwi.sandbox.world import Appearance, Drawing, Scene, draw, render

# Minimum mean distance in CIELAB between source and target inside the mask. Below it, half of an edit would be so close
# to all of it that no score could distinguish them.
MIN_CHANGE = 16.0
# Minimum share of the frame that an edit covers, on average over the frames.
MIN_AREA = 0.01
# Minimum height and width of a video in pixels.
MIN_SIDE = 16
_MAX_ATTEMPTS = 64


def _propose_change(scene: Scene, sampler: ItemSampler) -> Edit:
    index = sampler.choose(range(len(scene.sprites)))
    old, existing = scene.sprites[index].appearance, _existing_kinds(scene)

    def is_possible(colour: str, shape: str) -> bool:
        return (colour, shape) not in existing and sampler.allows(colour, shape)

    recoloured = [replace(old, colour=colour) for colour in SPRITE_COLOURS if is_possible(colour, old.shape)]
    reshaped = [replace(old, shape=shape) for shape in SHAPES if is_possible(old.colour, shape)]
    transformed = replace(_sample_new_appearance(scene, sampler), pattern=old.pattern)
    candidates = [sampler.choose(appearances) for appearances in (recoloured, reshaped) if appearances]
    return ChangeSprite(index=index, appearance=sampler.choose([*candidates, transformed]))


def _propose_addition(scene: Scene, sampler: ItemSampler) -> Edit:
    appearance = _sample_new_appearance(scene, sampler)
    candidates = [AddSprite(appearance=appearance, place=place, motion="") for place in grammar.PLACES]
    distances = {edit: min(relative_distance(edit.sprite, sprite) for sprite in scene.sprites) for edit in candidates}
    edit = sampler.choose([edit for edit in candidates if distances[edit] >= min(0.9, max(distances.values()))])
    x, y = edit.sprite.start
    inward = [words for words, (dx, dy) in grammar.MOTIONS.items() if x * dx <= 0 and y * dy <= 0]
    return replace(edit, motion=sampler.choose(inward))


def _propose_background(scene: Scene, sampler: ItemSampler) -> Edit:
    # The instruction does not mention the camera, so the new texture is centred.
    background = sampler.sample_background(subject=True)
    return ChangeBackground(background=replace(background, phase=(0.0, 0.0), drift=(0.0, 0.0)))


def _propose_subject_reference(scene: Scene, sampler: ItemSampler) -> Edit:
    index = sampler.choose(range(len(scene.sprites)))
    return SubjectReference(index=index, appearance=_sample_new_appearance(scene, sampler))


def _propose_background_reference(scene: Scene, sampler: ItemSampler) -> Edit:
    return BackgroundReference(background=replace(sampler.sample_background(subject=True), drift=(0.0, 0.0)))


def _sample_new_appearance(scene: Scene, sampler: ItemSampler) -> Appearance:
    """Sample an appearance with a combination of colour and shape that no sprite of the scene has."""
    existing = _existing_kinds(scene)
    while True:
        appearance = sampler.sample_appearance(subject=True)
        if appearance.kind not in existing:
            return appearance


def _existing_kinds(scene: Scene) -> set[tuple[str, str]]:
    return {sprite.appearance.kind for sprite in scene.sprites}


# Categories of edits, named as in OpenVE and RefVIE, and the functions that sample an edit of a scene.
PROPOSALS: dict[str, Callable[[Scene, ItemSampler], Edit]] = {
    "local_change": _propose_change,
    "local_remove": lambda scene, sampler: RemoveSprite(index=sampler.choose(range(len(scene.sprites)))),
    "local_add": _propose_addition,
    "background_change": _propose_background,
    "global_style": lambda scene, sampler: Restyle(style=sampler.choose(STYLES)),
    "subject_reference": _propose_subject_reference,
    "background_reference": _propose_background_reference,
}
CATEGORIES = tuple(PROPOSALS)


@dataclass(frozen=True, kw_only=True, eq=False)
class EditPair:
    """One item of the sandbox: a source video, its edited version, and the inputs of an editor.

    Args:
        source, target: videos, FHWC uint8.
        mask: where the edit may be visible, FHW bool; outside it, source and target are bitwise equal.
        new_mask: part of the mask where the target shows new content, FHW bool.
        instruction: one wording of the edit.
        reference: square image with the short side of the video, HWC uint8; None if the edit needs no reference.
        category: one of CATEGORIES.
        caption: description of the target.
        id: identifier, unique across seeds and valid as a file name.
        scene, edit: scene of `source`, and edit that turns it into that of `target`.
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
        """Render the result of another edit of the source, FHWC uint8."""
        frames, height, width = self.source.shape[:3]
        return edit.stylise(render(edit.apply(self.scene), frames, height, width))

    def with_edit(self, edit: Edit) -> EditPair | None:
        """Return the item with another edit, such as another reference; None if that edit is hardly visible."""
        rendered = _render_edit(draw(self.scene, *self.source.shape[:3]), edit)
        return None if rendered is None else replace(self, **rendered)


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
    """Render item `index` of a seed; the same arguments give a bitwise identical item.

    Args:
        frames: number of frames of the videos.
        height, width: frame size in pixels, at least MIN_SIDE; sprites are distinguishable from 32 pixels up.
        categories: kinds of edit (default: all); they take turns by index, so every range is balanced.
        level, split: names in LEVELS and SPLITS (kiwi.sandbox.sampling).

    Raises:
        InputError: if a category, level or split is unknown, the seed or index is negative, the video has no frames or
            a side below MIN_SIDE, or the aspect ratio is so extreme that no edit is visible.
    """
    names = check_categories(categories)
    size = f"{width}x{height}"
    if min(height, width) < MIN_SIDE:
        raise InputError(f"{size} is too small", code="out-of-range", expected=f"at least {MIN_SIDE} pixels per side")
    category = names[index % len(names)]
    scene = scene_at(seed, index, level, split)
    source = draw(scene, frames, height, width)
    for attempt in range(_MAX_ATTEMPTS):
        sampler = item_sampler(seed, index, CATEGORIES.index(category), attempt, level=level, split=split)
        edit = PROPOSALS[category](scene, sampler)
        if (rendered := _render_edit(source, edit)) is not None:
            return EditPair(
                source=source.video,
                instruction=edit.sample_instruction(scene, sampler),
                category=category,
                id=f"{level}-{split}-{seed}-{index:06d}",
                scene=scene,
                **rendered,
            )
    problem = f"no {category} edit of item {index} of seed {seed} is visible at {size}"
    raise InputError(problem, code="out-of-range", expected="an aspect ratio closer to a square")


def check_categories(categories: Sequence[str] | None) -> tuple[str, ...]:
    """Return the categories as a tuple; None stands for all.

    Raises:
        InputError: if a category is unknown or repeated, or there is none.
    """
    names = CATEGORIES if categories is None else tuple(categories)
    if not names or set(names) - set(CATEGORIES) or len(set(names)) < len(names):
        got, expected = ", ".join(names) or "none", f"some of {', '.join(CATEGORIES)}, each at most once"
        raise InputError("invalid categories", code="unknown-category", got=got, expected=expected)
    return names


def count_by_category(items: int, categories: Sequence[str] = ()) -> dict[str, int]:
    """Count the first items of any seed by category; `categories` are the kinds of edit, all if empty."""
    names = check_categories(categories or None)
    return {name: len(range(index, items, len(names))) for index, name in enumerate(names)}


def _render_edit(source: Drawing, edit: Edit) -> dict[str, Any] | None:
    """Render an edit to those fields of EditPair that depend on it; None if the edit is hardly visible."""
    edited = draw(edit.apply(source.scene), *source.video.shape[:3])
    target = edit.stylise(edited.video)
    new, old = _find_exclusive_region(edited, source), _find_exclusive_region(source, edited)
    if edit.category == "global_style":
        new = np.ones_like(new)
    if not _is_visible(source.video, target, new | old):
        return None
    scene, side = edit.reference_scene(), min(source.video.shape[1:3])
    return {
        "edit": edit,
        "target": target,
        "mask": new | old,
        "new_mask": new,
        "reference": None if scene is None else render(scene, 1, side, side)[0],
        "caption": edit.caption_target(source.scene),
    }


def _find_exclusive_region(drawing: Drawing, other: Drawing) -> np.ndarray:
    """Mark where something is visible that is in `drawing` but not in `other`: FHW bool."""
    region = np.zeros(drawing.video.shape[:3], bool)
    if drawing.scene.background != other.scene.background:
        region |= drawing.background_mask > 0
    for sprite, visible in zip(drawing.scene.sprites, drawing.sprite_masks, strict=True):
        if sprite not in other.scene.sprites:
            region |= visible > 0
    return region


def _is_visible(source: np.ndarray, target: np.ndarray, mask: np.ndarray) -> bool:
    if mask.mean() < MIN_AREA:
        return False
    change = np.linalg.norm(to_lab(source[mask]) - to_lab(target[mask]), axis=-1)
    return bool(change.mean() >= MIN_CHANGE)


# --- controls -------------------------------------------------------------------------------------------


def swap_instruction(pair: EditPair, donor: EditPair) -> EditPair | None:
    """Return the item with the donor's instruction but its own target, which an editor should now miss.

    None if both instructions mean the same: they refer to the reference alone, or name the same style.
    """
    if isinstance(pair.edit, BackgroundReference) or donor.instruction == pair.instruction:
        return None
    if isinstance(pair.edit, Restyle) and pair.edit == donor.edit:
        return None
    return replace(pair, instruction=donor.instruction)


def swap_reference(pair: EditPair, donor: EditPair) -> EditPair | None:
    """Return the item with the donor's reference and the exact target that follows from it.

    None if there are no references, if both show the same, or if the scene already has an object like the donor's.
    """
    edit, other = pair.edit, donor.edit
    if isinstance(edit, SubjectReference) and isinstance(other, SubjectReference):
        if other.appearance == edit.appearance or other.appearance.kind in _existing_kinds(pair.scene):
            return None
        return pair.with_edit(replace(edit, appearance=other.appearance))
    if isinstance(edit, BackgroundReference) and isinstance(other, BackgroundReference) and edit != other:
        return pair.with_edit(other)
    return None


def make_controls(
    pairs: Sequence[EditPair], swap: Callable[[EditPair, EditPair], EditPair | None]
) -> dict[str, EditPair]:
    """Make the controls, by item id: each item with the next possible donor of its category, in cyclic order.

    Args:
        pairs: items, each of which is also a possible donor for the others.
        swap: function from an item and a donor to the control, such as `swap_instruction`; None if impossible.
    """
    controls: dict[str, EditPair] = {}
    for index, pair in enumerate(pairs):
        others = (*pairs[index + 1 :], *pairs[:index])
        candidates = (swap(pair, donor) for donor in others if donor.category == pair.category)
        if (control := next(filter(None, candidates), None)) is not None:
            controls[pair.id] = control
    return controls
