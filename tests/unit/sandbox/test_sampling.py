"""Levels and splits: how hard the world is, and what training never shows."""

from __future__ import annotations

import numpy as np
import pytest

from kiwi.errors import InputError
from kiwi.sandbox import grammar
from kiwi.sandbox.drawing import SHAPES, TEXTURES
from kiwi.sandbox.edits import ChangeBackground, ChangeSprite, Restyle
from kiwi.sandbox.pairs import CATEGORIES, make_pair
from kiwi.sandbox.palette import BACKGROUND_COLOURS, SPRITE_COLOURS
from kiwi.sandbox.sampling import (
    LEVELS,
    NEW_WORDINGS,
    Split,
    is_new_background,
    is_new_thing,
    scene_at,
)

SIZE = {"frames": 1, "height": 32, "width": 32}


def pairs(split, level="full", count=210):
    return [make_pair(0, index, **SIZE, level=level, split=split) for index in range(count)]


def shown(pair):
    """Everything that source, target and reference show: sprites, backgrounds."""
    scenes = [pair.scene, pair.edit.apply(pair.scene)] + ([pair.edit.reference()] if pair.reference is not None else [])
    sprites = {(s.looks.colour, s.looks.shape) for scene in scenes for s in scene.sprites}
    subject_white = pair.category == "subject_reference"  # its object lies on a white sheet, which is no background
    backgrounds = {(s.background.texture, s.background.ground) for s in (scenes[:2] if subject_white else scenes)}
    return sprites, backgrounds


def words(pair, new):
    """Whether its instruction is in one of the last wordings of its kind (the first otherwise)."""
    for wordings in grammar.WORDINGS.values():
        for wording in wordings[-NEW_WORDINGS:] if new else wordings[:-NEW_WORDINGS]:
            fixed = [part.split("}")[-1] for part in wording.split("{")]
            text = pair.instruction[0].lower() + pair.instruction[1:]
            fixed[0] = fixed[0][:1].lower() + fixed[0][1:]
            if text.startswith(fixed[0]) and text.endswith(fixed[-1]) and all(part in text for part in fixed):
                return True
    return False


def test_a_part_of_everything_is_new():
    things = [(c, s) for c in SPRITE_COLOURS for s in SHAPES if is_new_thing(c, s)]
    assert len(things) == 8
    assert {colour for colour, _ in things} == set(SPRITE_COLOURS)
    assert {shape for _, shape in things} == set(SHAPES)
    grounds = [(t, g) for t in TEXTURES for g in BACKGROUND_COLOURS if is_new_background(t, g)]
    assert len(grounds) == 9
    assert {texture for texture, _ in grounds} == set(TEXTURES)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("split", [Split.train, Split.test, Split.new_words])
def test_what_is_new_is_never_shown_where_it_must_not_be(split, level):
    for pair in pairs(split, level):
        sprites, backgrounds = shown(pair)
        assert not any(is_new_thing(*one) for one in sprites), pair.id
        assert not any(is_new_background(*one) for one in backgrounds), pair.id
        assert words(pair, new=split == Split.new_words), pair.instruction


def test_two_wordings_of_every_kind_are_never_said_in_training():
    assert NEW_WORDINGS == 2
    assert all(len(wordings) - NEW_WORDINGS >= 4 for wordings in grammar.WORDINGS.values())


def test_beside_what_is_new_stand_things_that_training_shows():
    others = [s.looks for pair in pairs(Split.new_things) for s in pair.scene.sprites]
    assert 0.2 < np.mean([is_new_thing(looks.colour, looks.shape) for looks in others]) < 0.8


@pytest.mark.parametrize("split", [Split.new_things, Split.new_both])
def test_what_is_new_is_in_every_scene_and_is_what_edits_bring_in(split):
    found = pairs(split)
    assert {pair.category for pair in found} == set(CATEGORIES)
    for pair in found:
        assert any(is_new_thing(s.looks.colour, s.looks.shape) for s in pair.scene.sprites), pair.id
        if isinstance(pair.edit, ChangeSprite):
            assert is_new_thing(pair.edit.looks.colour, pair.edit.looks.shape), pair.id
        if isinstance(pair.edit, ChangeBackground):
            assert is_new_background(pair.edit.background.texture, pair.edit.background.ground), pair.id
        assert words(pair, new=split == Split.new_both) or isinstance(pair.edit, Restyle), pair.instruction


def test_items_of_two_splits_are_never_the_same():
    scenes = [scene_at(0, index, split=split) for split in Split for index in range(200)]
    assert len(set(scenes)) == len(scenes)
    assert len({pair.id for split in Split for pair in pairs(split, count=14)}) == 14 * len(Split)


def test_levels_rise():
    easy, full = ([scene_at(0, index, level=level) for index in range(100)] for level in ("easy", "full"))
    assert {scene.background.texture for scene in easy} == {"plain", "gradient"}
    assert {len(scene.sprites) for scene in easy} == {1, 2}
    assert {sprite.looks.pattern for scene in easy for sprite in scene.sprites} == {"plain"}
    assert {scene.background.drift for scene in easy} == {(0.0, 0.0)}
    assert {len(scene.sprites) for scene in full} == {1, 2, 3}
    still = [scene.background.drift == (0.0, 0.0) for scene in full]
    assert 0.25 < sum(still) / len(still) < 0.55


@pytest.mark.parametrize(("level", "split", "told"), [("hell", "train", "easy"), ("easy", "dev", "new_both")])
def test_an_unknown_level_or_split_is_told(level, split, told):
    with pytest.raises(InputError, match=told):
        make_pair(0, 0, **SIZE, level=level, split=split)
