"""Pairs of source and target: equal outside the mask, visibly different inside, determined by the editor's inputs."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from kiwi.errors import InputError
from kiwi.sandbox import grammar
from kiwi.sandbox.pairs import CATEGORIES, MIN_CHANGE, EditPair, make_pair
from kiwi.sandbox.palette import BACKGROUND_COLOURS, SPRITE_COLOURS, STYLES, grey, invert, posterise, sepia, to_lab
from kiwi.sandbox.world import draw, render

SIZE = {"frames": 5, "height": 40, "width": 48}


@pytest.fixture(scope="module")
def pairs() -> list[EditPair]:
    """Fifty items of each category."""
    return [make_pair(0, index, **SIZE) for index in range(350)]


@pytest.fixture(scope="module")
def of(pairs: list[EditPair]) -> Callable[[str], list[EditPair]]:
    """The items of one category."""
    return lambda category: [pair for pair in pairs if pair.category == category]


def test_a_pair_is_a_function_of_its_arguments(pairs):
    for index in range(7):
        again = make_pair(0, index, **SIZE)
        assert again.instruction == pairs[index].instruction
        for name in ("source", "target", "mask"):
            assert (getattr(again, name) == getattr(pairs[index], name)).all()
    assert len({pair.id for pair in pairs}) == len(pairs)
    assert make_pair(1, 0, **SIZE).id not in {pair.id for pair in pairs}


def test_shapes_and_types(pairs):
    for pair in pairs[:14]:
        assert pair.source.shape == pair.target.shape == (5, 40, 48, 3)
        assert pair.source.dtype == pair.target.dtype == np.uint8
        assert pair.mask.shape == (5, 40, 48)
        assert pair.mask.dtype == bool
        assert (pair.reference is not None) == pair.category.endswith("reference")
        if pair.reference is not None:
            assert pair.reference.shape == (40, 40, 3)


def test_outside_the_mask_source_and_target_are_bitwise_equal(pairs):
    for pair in pairs:
        assert (pair.source[~pair.mask] == pair.target[~pair.mask]).all(), pair.id


def test_inside_the_mask_the_edit_is_visible(pairs):
    for pair in pairs:
        change = to_lab(pair.source[pair.mask]) - to_lab(pair.target[pair.mask])
        assert np.sqrt(np.square(change).sum(axis=-1)).mean() >= MIN_CHANGE, pair.id
        assert pair.mask.mean() >= 0.01


def test_the_mask_is_not_larger_than_the_change(of):
    for pair in of("local_remove") + of("local_add"):
        changed = (pair.source != pair.target).any(axis=-1)
        assert changed.sum() > 0.75 * pair.mask.sum(), pair.id
    assert all(pair.mask.all() for pair in of("global_style"))


@pytest.mark.parametrize("start", [0, 3, 100])
def test_any_range_of_items_is_balanced(start):
    counts = Counter(make_pair(4, index, frames=1, height=32, width=32).category for index in range(start, start + 14))
    assert counts == dict.fromkeys(CATEGORIES, 2)


def test_categories_can_be_selected():
    selected = ["global_style", "local_add"]
    categories = [make_pair(0, index, **SIZE, categories=selected).category for index in range(4)]
    assert categories == selected * 2


def test_the_target_is_a_rendering_of_the_edited_scene(pairs):
    for pair in pairs[:70]:
        rendered = render(pair.edit.apply(pair.scene), **SIZE)
        assert (pair.source == render(pair.scene, **SIZE)).all()
        assert (pair.target == pair.edit.stylise(rendered)).all()


def test_removing_removes_one_sprite_and_no_other(of):
    for pair in of("local_remove"):
        remaining = pair.edit.apply(pair.scene).sprites
        assert len(remaining) == len(pair.scene.sprites) - 1
        assert pair.scene.sprites[pair.edit.index] not in remaining


def test_an_added_sprite_is_completely_visible_at_the_named_place(of):
    for pair in of("local_add"):
        *existing, added = pair.edit.apply(pair.scene).sprites
        assert tuple(existing) == pair.scene.sprites
        assert f"{grammar.full_name(added.appearance)} {grammar.nearest_place(added.start)}" in pair.instruction
        alone = replace(pair.scene, sprites=(added,))
        edited = draw(pair.edit.apply(pair.scene), **SIZE)
        assert draw(alone, **SIZE).sprite_masks.sum() == pytest.approx(edited.sprite_masks[-1].sum(), rel=1e-5)


def test_a_change_keeps_place_motion_and_pattern_and_names_what_changes(of):
    kinds = Counter()
    for pair in of("local_change"):
        old, new = (scene.sprites[pair.edit.index] for scene in (pair.scene, pair.edit.apply(pair.scene)))
        assert replace(new, appearance=old.appearance) == old
        assert new.appearance.pattern == old.appearance.pattern
        recoloured, reshaped = (getattr(new.appearance, k) != getattr(old.appearance, k) for k in ("colour", "shape"))
        assert not recoloured or new.appearance.colour in pair.instruction
        assert not reshaped or new.appearance.shape in pair.instruction
        kinds[recoloured, reshaped] += 1
    assert set(kinds) == {(True, False), (False, True), (True, True)}


def test_an_edited_sprite_is_the_only_one_of_its_colour_and_shape(of):
    for pair in of("local_change") + of("local_add") + of("subject_reference"):
        sprites = pair.edit.apply(pair.scene).sprites
        appearance = sprites[getattr(pair.edit, "index", -1)].appearance
        assert [s.appearance.kind for s in sprites].count(appearance.kind) == 1


def test_a_described_background_is_centred_and_keeps_the_camera_motion(of):
    for pair in of("background_change"):
        new = pair.edit.apply(pair.scene).background
        assert new.phase == (0.0, 0.0)
        assert new.drift == pair.scene.background.drift
        assert grammar.describe_background(new) in pair.instruction


def test_the_subject_reference_shows_the_new_object_on_white_and_the_instruction_does_not_name_it(of):
    for pair in of("subject_reference"):
        assert pair.reference is not None
        assert (pair.reference[0] == 255).all()
        new = pair.edit.apply(pair.scene).sprites[pair.edit.index].appearance
        own_pixels = np.abs(pair.reference.astype(int) - SPRITE_COLOURS[new.colour]).max(axis=-1) < 8
        assert own_pixels.mean() > 0.08
        assert grammar.full_name(new) not in pair.instruction


def test_the_background_reference_is_what_the_target_shows(of):
    for pair in of("background_reference"):
        assert pair.reference is not None
        visible = pair.mask[0, :, 4:44]  # the background in the central square
        background = pair.edit.apply(pair.scene).background
        colours = [np.array(BACKGROUND_COLOURS[name]) for name in (background.base_colour, background.pattern_colour)]
        exact = np.abs(pair.reference.astype(int)[..., None, :] - colours).max(axis=-1).min(axis=-1) == 0
        assert exact.any()
        target = draw_background_only(pair)[0, :, 4:44]
        np.testing.assert_allclose(target[visible].astype(int), pair.reference[visible].astype(int), atol=1)


def draw_background_only(pair: EditPair) -> np.ndarray:
    return render(replace(pair.edit.apply(pair.scene), sprites=()), **SIZE)


def test_styles_do_what_their_names_say(pairs, of):
    video = pairs[0].source
    assert (grey(video)[..., 0] == grey(video)[..., 2]).all()
    assert tuple(grey(np.uint8([[255, 0, 0]]))[0]) == (76, 76, 76)
    assert (invert(invert(video)) == video).all()
    assert set(np.unique(posterise(np.arange(256, dtype=np.uint8)))) == {0, 127, 255}
    assert tuple(sepia(np.uint8([[100, 100, 100]]))[0]) == (135, 120, 94)
    assert tuple(sepia(np.uint8([[255, 255, 255]]))[0]) == (255, 255, 239)
    assert {pair.edit.style for pair in of("global_style")} == set(STYLES)


@pytest.mark.parametrize("categories", [["local_add", "teleport"], [], ["local_add", "local_add"]])
def test_invalid_categories_are_rejected_with_a_list_of_the_valid_ones(categories):
    with pytest.raises(InputError, match="local_remove", check=lambda error: error.code == "unknown-category"):
        make_pair(0, 0, **SIZE, categories=categories)


def test_all_pairs_can_be_rendered_at_the_smallest_size():
    for index in range(420):
        make_pair(9, index, frames=1, height=32, width=32)
