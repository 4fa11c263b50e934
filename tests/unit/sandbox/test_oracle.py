"""The oracle's anchors: what must score high, what must score low, and that damage never raises a score."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from kiwi.errors import InputError
from kiwi.sandbox.edits import AddSprite, ChangeSprite
from kiwi.sandbox.oracle import NAMES, judge
from kiwi.sandbox.pairs import CATEGORIES, make_pair
from kiwi.sandbox.palette import SPRITE_COLOURS
from kiwi.sandbox.world import Scene, render

SIZE = {"frames": 5, "height": 32, "width": 32}
PAIRS = [make_pair(5, index, **SIZE, split="test") for index in range(84)]


def uint8(values):
    return np.clip(values + 0.5, 0, 255).astype(np.uint8)


def mixed(pair, share):
    """The target with a share of the source in it."""
    return uint8(share * pair.source.astype(np.float32) + (1 - share) * pair.target)


def shown(pair, scene: Scene):
    return pair.edit.stylise(render(scene, **SIZE))


def mean(scores, name):
    return float(np.mean([getattr(score, name) for score in scores]))


def test_the_exact_target_is_a_five_and_the_unedited_copy_a_one():
    for pair in PAIRS:
        best, copy = judge(pair, pair.target), judge(pair, pair.source)
        assert (best.compliance, best.consistency, best.quality, best.overall) == (5, 5, 5, 5)
        assert (copy.compliance, copy.overall) == (1, 1)


def test_half_an_edit_is_at_most_a_three():
    assert max(judge(pair, mixed(pair, 0.5)).overall for pair in PAIRS) <= 3


def test_the_wrong_colour_is_at_most_a_two():
    pairs = [pair for pair in PAIRS if isinstance(pair.edit, ChangeSprite)]
    assert len(pairs) == 24
    for pair in pairs:
        looks, before = pair.edit.looks, pair.scene.sprites[pair.edit.index].looks
        for colour in set(SPRITE_COLOURS) - {looks.colour, before.colour}:
            wrong = replace(pair.edit, looks=replace(looks, colour=colour))
            assert judge(pair, shown(pair, wrong.apply(pair.scene))).overall <= 2, (pair.id, colour)


def test_the_wrong_place_is_at_most_a_two():
    pairs = [pair for pair in PAIRS if isinstance(pair.edit, AddSprite)]
    assert len(pairs) == 12
    for pair in pairs:
        for place in ("in the top left", "in the bottom right"):
            if place != pair.edit.place:
                wrong = replace(pair.edit, place=place)
                assert judge(pair, shown(pair, wrong.apply(pair.scene))).overall <= 2, pair.id


def test_what_was_to_go_and_stays_beside_the_new_is_not_made():
    """A transformed sprite drawn over the old one: right wherever something new is to be seen."""
    shares = {pair: (pair.mask & ~pair.new).sum() / pair.mask.sum() for pair in PAIRS if not pair.mask.all()}
    pairs = [pair for pair, share in shares.items() if isinstance(pair.edit, ChangeSprite) and share > 0.2]
    assert len(pairs) >= 3
    for pair in pairs:
        both = np.where(pair.new[..., None], pair.target, pair.source)
        assert judge(pair, both).overall <= 3


def test_another_items_edit_is_a_one():
    for pair, other in zip(PAIRS, PAIRS[7:], strict=False):
        assert judge(pair, other.target).overall < 2, pair.id


DAMAGES = {
    "less of the edit": lambda pair, level: mixed(pair, level),
    "noise": lambda pair, level: uint8(
        pair.target + 90 * level * np.random.default_rng(0).standard_normal(pair.target.shape)
    ),
    "blur": lambda pair, level: uint8(gaussian_filter(pair.target.astype(float), (0, 3 * level, 3 * level, 0))),
    "darkness": lambda pair, level: uint8((1 - level) * pair.target),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize("category", CATEGORIES)
def test_scores_fall_with_damage(category, damage):
    pairs = [pair for pair in PAIRS if pair.category == category]
    found = [[judge(pair, damage(pair, level)) for pair in pairs] for level in (0, 0.2, 0.4, 0.6, 0.8, 1)]
    for name in ("compliance", "consistency", "quality", "overall"):
        means = [mean(scores, name) for scores in found]
        # Noise may hide under the threshold of what is noticed: never a rise that could be told.
        assert all(later <= earlier + 0.02 for earlier, later in itertools.pairwise(means)), (name, means)
    assert mean(found[-1], "overall") < 3


def test_harm_outside_the_edit_costs_consistency_alone():
    for pair in (pair for pair in PAIRS if pair.category in ("local_remove", "local_add")):
        left_outside = ~pair.mask & (np.arange(32) < 16)
        spoilt = np.where(left_outside[..., None], 255 - pair.target, pair.target)
        score = judge(pair, spoilt)
        assert score.compliance == 5
        assert score.consistency < 2.5


def test_a_thing_that_vanished_with_the_one_that_should_costs_consistency():
    pairs = [pair for pair in PAIRS if pair.category == "local_remove" and len(pair.scene.sprites) > 1]
    assert len(pairs) >= 5
    for pair in pairs:
        score = judge(pair, render(replace(pair.edit.apply(pair.scene), sprites=()), **SIZE))
        assert score.compliance > 4.5
        assert score.consistency < 3, pair.id


def test_flicker_costs_quality():
    steady, flickering = [], []
    for pair in PAIRS:
        shift = np.array([0, 14, 0, 14, 0])[:, None, None, None]
        steady.append(judge(pair, uint8(pair.target.astype(float) * 0.97)))
        flickering.append(judge(pair, uint8(pair.target.astype(float) * 0.97 - shift)))
    assert mean(flickering, "quality") < mean(steady, "quality") - 1


def test_no_score_is_above_the_first():
    rng = np.random.default_rng(0)
    for pair in PAIRS:
        for share in rng.uniform(0, 1, 3):
            score = judge(pair, mixed(pair, share))
            assert 1 <= score.consistency <= score.compliance <= 5
            assert 1 <= score.quality <= score.compliance


def test_every_category_has_three_published_names():
    assert set(NAMES) == set(CATEGORIES)
    assert all(len(set(names)) == 3 for names in NAMES.values())


@pytest.mark.parametrize("edited", [np.zeros((4, 32, 32, 3), np.uint8), np.zeros((5, 32, 32, 3))])
def test_an_edit_of_another_shape_or_type_is_refused(edited):
    with pytest.raises(InputError, match="cannot be judged"):
        judge(PAIRS[0], edited)
