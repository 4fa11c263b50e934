"""Levels and splits: the complexity of scenes, and what training never shows."""

import numpy as np
import pytest

from kiwi.errors import InputError
from kiwi.sandbox import grammar
from kiwi.sandbox.drawing import SHAPES, TEXTURES
from kiwi.sandbox.edits import ChangeBackground, ChangeSprite, Restyle
from kiwi.sandbox.pairs import CATEGORIES, make_pair
from kiwi.sandbox.palette import BACKGROUND_COLOURS, SPRITE_COLOURS
from kiwi.sandbox.sampling import (
    HELD_OUT_WORDINGS,
    LEVELS,
    SPLITS,
    is_held_out_background,
    is_held_out_object,
    scene_at,
)

SIZE = {"frames": 1, "height": 32, "width": 32}


def pairs(split, level="full", count=210):
    return [make_pair(0, index, **SIZE, level=level, split=split) for index in range(count)]


def contents(pair):
    """The sprites and backgrounds in source, target and reference."""
    scenes = [pair.scene, pair.edit.apply(pair.scene), pair.edit.reference_scene()]
    scenes = [scene for scene in scenes if scene is not None]
    sprites = {s.appearance.kind for scene in scenes for s in scene.sprites}
    subject_white = pair.category == "subject_reference"  # its plain white background is not sampled
    backgrounds = {(s.background.texture, s.background.base_colour) for s in (scenes[:2] if subject_white else scenes)}
    return sprites, backgrounds


def has_wording(pair, held_out):
    """Whether the instruction uses a held-out wording (`held_out`) or a wording of training."""
    for wordings in grammar.WORDINGS.values():
        for wording in wordings[-HELD_OUT_WORDINGS:] if held_out else wordings[:-HELD_OUT_WORDINGS]:
            fixed = [part.split("}")[-1] for part in wording.split("{")]
            text = pair.instruction[0].lower() + pair.instruction[1:]
            fixed[0] = fixed[0][:1].lower() + fixed[0][1:]
            if text.startswith(fixed[0]) and text.endswith(fixed[-1]) and all(part in text for part in fixed):
                return True
    return False


def test_some_objects_and_backgrounds_of_every_kind_are_held_out():
    kinds = [(c, s) for c in SPRITE_COLOURS for s in SHAPES if is_held_out_object(c, s)]
    assert len(kinds) == 8
    assert {colour for colour, _ in kinds} == set(SPRITE_COLOURS)
    assert {shape for _, shape in kinds} == set(SHAPES)
    backgrounds = [(t, c) for t in TEXTURES for c in BACKGROUND_COLOURS if is_held_out_background(t, c)]
    assert len(backgrounds) == 9
    assert {texture for texture, _ in backgrounds} == set(TEXTURES)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("split", ["train", "test", "new_words"])
def test_splits_without_held_out_objects_show_none(split, level):
    for pair in pairs(split, level):
        sprites, backgrounds = contents(pair)
        assert not any(is_held_out_object(*kind) for kind in sprites), pair.id
        assert not any(is_held_out_background(*kind) for kind in backgrounds), pair.id
        assert has_wording(pair, held_out=split == "new_words"), pair.instruction


def test_two_wordings_of_every_kind_are_held_out():
    assert HELD_OUT_WORDINGS == 2
    assert all(len(wordings) - HELD_OUT_WORDINGS >= 4 for wordings in grammar.WORDINGS.values())


def test_scenes_with_held_out_objects_also_have_objects_of_training():
    appearances = [s.appearance for pair in pairs("new_things") for s in pair.scene.sprites]
    assert 0.2 < np.mean([is_held_out_object(*appearance.kind) for appearance in appearances]) < 0.8


@pytest.mark.parametrize("split", ["new_things", "new_both"])
def test_held_out_objects_are_in_every_scene_and_introduced_by_every_edit(split):
    items = pairs(split)
    assert {pair.category for pair in items} == set(CATEGORIES)
    for pair in items:
        assert any(is_held_out_object(*s.appearance.kind) for s in pair.scene.sprites), pair.id
        if isinstance(pair.edit, ChangeSprite):
            assert is_held_out_object(*pair.edit.appearance.kind), pair.id
        if isinstance(pair.edit, ChangeBackground):
            assert is_held_out_background(pair.edit.background.texture, pair.edit.background.base_colour), pair.id
        assert has_wording(pair, held_out=split == "new_both") or isinstance(pair.edit, Restyle), pair.instruction


def test_two_splits_never_share_an_item():
    scenes = [scene_at(0, index, split=split) for split in SPLITS for index in range(200)]
    assert len(set(scenes)) == len(scenes)
    assert len({pair.id for split in SPLITS for pair in pairs(split, count=14)}) == 14 * len(SPLITS)


def test_levels_increase_in_complexity():
    easy, full = ([scene_at(0, index, level=level) for index in range(100)] for level in ("easy", "full"))
    assert {scene.background.texture for scene in easy} == {"plain", "gradient"}
    assert {len(scene.sprites) for scene in easy} == {1, 2}
    assert {sprite.appearance.pattern for scene in easy for sprite in scene.sprites} == {"plain"}
    assert {scene.background.drift for scene in easy} == {(0.0, 0.0)}
    assert {len(scene.sprites) for scene in full} == {1, 2, 3}
    still = [scene.background.drift == (0.0, 0.0) for scene in full]
    assert 0.25 < sum(still) / len(still) < 0.55


@pytest.mark.parametrize(("level", "split", "option"), [("hell", "train", "easy"), ("easy", "dev", "new_both")])
def test_an_unknown_level_or_split_is_rejected_with_a_list_of_the_valid_ones(level, split, option):
    with pytest.raises(InputError, match=option):
        make_pair(0, 0, **SIZE, level=level, split=split)
