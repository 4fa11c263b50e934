"""The oracle: which edits score high, which score low, and that degradation never raises a score."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from kiwi.errors import InputError
from kiwi.sandbox.anchors import (
    ANCHORS,
    DEGRADATION_LEVELS,
    DEGRADATIONS,
    blend,
    check_anchor,
    reconstruction_anchor,
    score_degraded,
)
from kiwi.sandbox.edits import ChangeBackground, ChangeSprite
from kiwi.sandbox.oracle import score_edit
from kiwi.sandbox.pairs import CATEGORIES, make_pair
from kiwi.sandbox.palette import contrasting_colours
from kiwi.sandbox.sampling import LEVELS, relative_distance
from kiwi.sandbox.world import Appearance, Sprite, render

SIZE = {"frames": 5, "height": 32, "width": 32}


@pytest.fixture(scope="module")
def all_pairs():
    """Twelve items of each category."""
    return [make_pair(5, index, **SIZE, split="test") for index in range(84)]


@pytest.mark.parametrize("name", ANCHORS)
def test_the_anchors_hold(name, all_pairs):
    result = check_anchor(all_pairs, ANCHORS[name])
    assert result.passed, result.scores
    several = sum(len(pair.scene.sprites) > 1 for pair in all_pairs if pair.category == "local_remove")
    assert several >= 5
    items = {"colour": 60, "shape": 36, "pattern": 36, "texture": 24, "place": 12, "motion": 12, "style": 12}
    assert result.items == {"object": several, **items}.get(name.removeprefix("wrong "), len(all_pairs))
    # Five other shapes and two other patterns are wrong, and all other textures, places, motions and styles.
    edits = {"shape": 36 * 5, "pattern": 36 * 2, "texture": 24 * 7, "place": 12 * 8, "motion": 12 * 4, "style": 12 * 3}
    if name.removeprefix("wrong ") in edits:
        assert len(result.scores) == edits[name.removeprefix("wrong ")]
    if name == "wrong colour":
        expected = 36 * 7
        for background in (pair.edit.background for pair in all_pairs if isinstance(pair.edit, ChangeBackground)):
            expected += len(contrasting_colours(background.pattern_colour)) - 1
            expected += (background.texture != "plain") * (len(contrasting_colours(background.base_colour)) - 1)
        assert len(result.scores) == expected


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("split", ["test", "new_things"])
def test_the_anchors_hold_at_every_level(level, split):
    pairs = [make_pair(6, index, **SIZE, level=level, split=split) for index in range(14)]
    for name, anchor in ANCHORS.items():
        result = check_anchor(pairs, anchor)
        # In a scene with a single sprite, no other one can be removed.
        assert result.passed or (level, name) == ("single", "wrong object"), (name, result.scores)


def test_the_exact_target_scores_five_in_everything_and_the_unedited_copy_one_overall(all_pairs):
    for pair in all_pairs:
        best, copy = score_edit(pair, pair.target), score_edit(pair, pair.source)
        assert (best.compliance, best.consistency, best.quality, best.overall) == (5, 5, 5, 5)
        assert (copy.compliance, copy.overall) == (1, 1)


APPEARANCE, BACKGROUND = ["colour", "shape", "pattern"], ["texture", "colour"]
MISTAKES = {
    "local_change": APPEARANCE,
    "local_remove": ["object"],
    "local_add": [*APPEARANCE, "place", "motion"],
    "background_change": BACKGROUND,
    "global_style": ["style"],
    "subject_reference": APPEARANCE,
    "background_reference": BACKGROUND,
}


def test_mistakes_are_variants_of_the_edit_in_a_fixed_order(all_pairs):
    for pair in all_pairs:
        mistakes = list(pair.edit.mistakes(pair.scene))
        is_alone = pair.category == "local_remove" and len(pair.scene.sprites) == 1
        assert list(dict(mistakes)) == ([] if is_alone else MISTAKES[pair.category])
        assert len({edit for _, edit in mistakes} | {pair.edit}) == len(mistakes) + 1
        for _, edit in mistakes:
            assert type(edit) is type(pair.edit)
            assert (pair.render_edit(edit) != pair.target).any()


def test_the_closer_to_a_mistake_the_lower_the_score(all_pairs):
    for pair in all_pairs[:28]:
        for kind, edit in dict(pair.edit.mistakes(pair.scene)).items():  # one of each kind
            mistake = pair.render_edit(edit).astype(np.float32)
            blends = [(share * mistake + (1 - share) * pair.target).astype(np.uint8) for share in (0.9, 0.6, 0.4, 0.0)]
            scores = [score_edit(pair, edited).compliance for edited in blends]
            assert all(worse <= better + 0.02 for worse, better in itertools.pairwise(scores)), (pair.id, kind)
            assert scores[0] < scores[-1] - 1.5


def differs_visibly(first, second):
    """Whether more than 3% of the pixels clearly differ."""
    return (np.abs(first.astype(int) - second).max(axis=-1) > 60).mean() > 0.03


ORDERS = {"still": [2] * 5, "backwards": [4, 3, 2, 1, 0], "stops": [0, 1, 2, 2, 2], "half speed": [0, 0, 1, 1, 2]}


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
def test_wrong_motion_is_not_consistent(order, all_pairs):
    scored = 0
    for pair in all_pairs[:56]:
        reordered = pair.target[order]
        # If only the edited object moves, its motion counts for compliance.
        region = ~pair.mask | (pair.mask.mean() > 0.5)
        if differs_visibly(reordered[region], pair.target[region]):
            scored += 1
            assert score_edit(pair, reordered).consistency < 2, pair.id
    assert scored > 10


def with_changed_sprite(pair, **changes):
    """Render the target with changes to a sprite that is not edited; None if there is none."""
    scene = pair.edit.apply(pair.scene)
    unedited = [i for i, sprite in enumerate(scene.sprites) if sprite in pair.scene.sprites]
    if not unedited:
        return None
    sprites = list(scene.sprites)
    sprites[unedited[0]] = replace(sprites[unedited[0]], **changes)
    return pair.edit.stylise(render(replace(scene, sprites=tuple(sprites)), **SIZE))


def test_damage_to_another_object_lowers_consistency_in_every_category(all_pairs):
    scores = {category: [] for category in CATEGORIES}
    for pair in all_pairs:
        damaged = pair.scene.sprites and with_changed_sprite(pair, size=0.15)
        if isinstance(damaged, np.ndarray) and differs_visibly(damaged, pair.target):
            scores[pair.category].append(score_edit(pair, damaged).consistency)
    assert all(len(values) >= 3 and np.mean(values) < 2 for values in scores.values()), scores


def test_an_unrequested_object_lowers_consistency_in_every_category(all_pairs):
    appearance = Appearance(shape="square", colour="purple")
    for category in CATEGORIES:
        scores = []
        for pair in (pair for pair in all_pairs if pair.category == category):
            scene = pair.edit.apply(pair.scene)
            extra = Sprite(appearance=appearance, size=0.3, start=(0.55, 0.55))
            if all(relative_distance(extra, sprite) > 1.2 for sprite in scene.sprites):
                edited = pair.edit.stylise(render(replace(scene, sprites=(*scene.sprites, extra)), **SIZE))
                if differs_visibly(edited, pair.target):  # it does not under every style
                    scores.append(score_edit(pair, edited).consistency)
        assert len(scores) >= 2
        assert np.mean(scores) < 2.2, (category, scores)


def test_an_edit_with_remains_of_the_old_object_or_style_is_incomplete(all_pairs):
    for pair in all_pairs:
        if pair.category == "local_remove":
            sprites = list(pair.scene.sprites)
            sprites[pair.edit.index] = replace(sprites[pair.edit.index], size=sprites[pair.edit.index].size / 2)
            edited = render(replace(pair.scene, sprites=tuple(sprites)), **SIZE)
            assert score_edit(pair, edited).overall < 3, pair.id
        if pair.category == "global_style" and pair.edit.style in ("grey", "invert"):
            objects = (pair.source != render(replace(pair.scene, sprites=()), **SIZE)).any(axis=-1)
            assert score_edit(pair, np.where(objects[..., None], pair.source, pair.target)).overall <= 3, pair.id


@pytest.mark.parametrize("category", CATEGORIES)
def test_an_edit_of_two_thirds_of_the_region_is_incomplete(category, all_pairs):
    scores = []
    for pair in (pair for pair in all_pairs if pair.category == category):
        unedited = np.arange(32) < np.quantile(np.where(pair.mask)[2], 0.3)
        scores.append(score_edit(pair, np.where(unedited[:, None], pair.source, pair.target)).compliance)
    assert np.mean(scores) < 3.5


def test_a_mistake_in_one_frame_costs_two_points(all_pairs):
    for pair in all_pairs[:28]:
        for kind, edit in dict(pair.edit.mistakes(pair.scene)).items():  # one of each kind
            edited = np.concatenate([pair.target[:4], pair.render_edit(edit)[4:]])
            assert score_edit(pair, edited).compliance <= 3, (pair.id, kind)


def test_a_single_frame_is_scored_in_the_same_way():
    for index in range(21):
        pair = make_pair(7, index, frames=1, height=32, width=32, split="test")
        assert score_edit(pair, pair.target).overall == 5
        assert score_edit(pair, pair.source).overall == 1
        assert not any((edited == pair.target).all() for edited in ANCHORS["wrong motion"].make_edits(pair))


def test_an_anchor_outside_its_bounds_fails(all_pairs):
    inverted = reconstruction_anchor(lambda pair: 255 - pair.target)
    assert not check_anchor(all_pairs[:7], inverted).passed
    assert check_anchor(all_pairs[:7], reconstruction_anchor(lambda pair: pair.target)).passed
    assert not check_anchor(all_pairs[:7], replace(ANCHORS["unedited copy"], minimum=2.0)).passed
    assert not check_anchor([], ANCHORS["exact target"]).passed
    # Only the mean is bounded, so one bad edit of many is allowed.
    one_bad = reconstruction_anchor(lambda pair: 255 - pair.target if pair is all_pairs[0] else pair.target)
    assert check_anchor(all_pairs[:14], one_bad).passed


def test_an_old_object_that_stays_behind_the_new_one_is_incomplete(all_pairs):
    """The new sprite is rendered over the old one, which is correct wherever the target has new content."""
    shares = {pair: (pair.mask & ~pair.new_mask).sum() / pair.mask.sum() for pair in all_pairs if not pair.mask.all()}
    pairs = [pair for pair, share in shares.items() if isinstance(pair.edit, ChangeSprite) and share > 0.2]
    assert len(pairs) >= 3
    for pair in pairs:
        edited = np.where(pair.new_mask[..., None], pair.target, pair.source)
        assert score_edit(pair, edited).overall <= 3


def test_the_edit_of_another_item_scores_one(all_pairs):
    for pair, other in zip(all_pairs, all_pairs[7:], strict=False):
        assert score_edit(pair, other.target).overall < 2, pair.id


@pytest.fixture(scope="module")
def degraded(all_pairs):
    return [(pair.category, score_degraded(pair)) for pair in all_pairs[:28]]


@pytest.mark.parametrize("degradation", DEGRADATIONS)
@pytest.mark.parametrize("category", CATEGORIES)
def test_scores_fall_with_degradation(degraded, category, degradation):
    items = [scores for item_category, scores in degraded if item_category == category]
    for name in ("compliance", "consistency", "quality", "overall"):
        means = [np.mean([getattr(item[degradation, level], name) for item in items]) for level in DEGRADATION_LEVELS]
        assert means[0] == 5
        # Slight noise is below the oracle's thresholds, so scores may stay equal but must not rise.
        assert all(later <= earlier + 0.02 for earlier, later in itertools.pairwise(means)), (name, means)
    assert means[-1] < 3


def test_damage_outside_the_edit_lowers_consistency_only(all_pairs):
    for pair in (pair for pair in all_pairs if pair.category in ("local_remove", "local_add")):
        left_outside = ~pair.mask & (np.arange(32) < 16)
        damaged = np.where(left_outside[..., None], 255 - pair.target, pair.target)
        score = score_edit(pair, damaged)
        assert score.compliance == 5
        assert score.consistency < 2.5


def test_removing_more_than_requested_lowers_consistency(all_pairs):
    pairs = [pair for pair in all_pairs if pair.category == "local_remove" and len(pair.scene.sprites) > 1]
    assert len(pairs) >= 5
    for pair in pairs:
        score = score_edit(pair, render(replace(pair.edit.apply(pair.scene), sprites=()), **SIZE))
        assert score.compliance > 4.5
        assert score.consistency < 3, pair.id


def test_static_noise_lowers_quality_most(all_pairs):
    rng = np.random.default_rng(0)
    scores = []
    for pair in all_pairs:
        noisy = pair.target + 18 * rng.standard_normal((1, 32, 32, 1))
        scores.append(score_edit(pair, np.clip(noisy, 0, 255).astype(np.uint8)))
    quality = np.mean([score.quality for score in scores])
    assert quality < min(4, np.mean([score.compliance for score in scores]) - 0.4)


def test_flicker_lowers_quality(all_pairs):
    steady, flickering = [], []
    for pair in all_pairs:
        shift = np.array([0, 14, 0, 14, 0])[:, None, None, None]
        steady.append(score_edit(pair, (pair.target * 0.97).astype(np.uint8)).quality)
        flickering.append(score_edit(pair, np.clip(pair.target * 0.97 - shift, 0, 255).astype(np.uint8)).quality)
    assert np.mean(flickering) < np.mean(steady) - 1


def test_an_edit_with_a_little_of_the_source_left_is_complete(all_pairs):
    """Four fifths of a change count as complete, so that the losses of an autoencoder do not matter."""
    for share, expected in ((0.05, 5.0), (0.12, 4.55), (0.15, 4.15)):
        compliance = np.mean([score_edit(pair, blend(pair, share)).compliance for pair in all_pairs[:42]])
        assert compliance == pytest.approx(expected, abs=0.1)


def test_no_score_exceeds_compliance(all_pairs):
    rng = np.random.default_rng(0)
    for pair in all_pairs:
        for share in rng.uniform(0, 1, 3):
            score = score_edit(pair, blend(pair, share))
            assert 1 <= score.consistency <= score.compliance <= 5
            assert 1 <= score.quality <= score.compliance


@pytest.mark.parametrize("edited", [np.zeros((4, 32, 32, 3), np.uint8), np.zeros((5, 32, 32, 3))])
def test_an_edit_of_another_shape_or_type_is_rejected(edited, all_pairs):
    with pytest.raises(InputError, check=lambda error: error.code == "invalid-pixels"):
        score_edit(all_pairs[0], edited)
