"""The language of the sandbox: expressions that match one sprite, descriptions that determine an image."""

import string
from dataclasses import replace

import pytest

from kiwi.sandbox import grammar
from kiwi.sandbox.drawing import PATTERNS, SHAPES
from kiwi.sandbox.palette import SPRITE_COLOURS
from kiwi.sandbox.sampling import HELD_OUT_WORDINGS, item_sampler, scene_at
from kiwi.sandbox.world import Appearance, Background, Scene, Sprite

WHITE = Background(texture="plain", base_colour="white", pattern_colour="white")


def sprite(shape: str, colour: str, pattern: str = "plain", start: tuple[float, float] = (0.0, 0.0)) -> Sprite:
    return Sprite(appearance=Appearance(shape=shape, colour=colour, pattern=pattern), size=0.3, start=start)


def find_matches(scene: Scene, expression: str) -> list[int]:
    """Find the sprites that an expression matches, word by word and without the code of the grammar."""
    words, _, side = expression.partition(" on the ") if " on the " in expression else expression.partition(" at the ")
    matches = list(range(len(scene.sprites)))
    for word in words.split():
        attribute = {"striped": "stripes", "dotted": "dots"}.get(word, word)
        if attribute in PATTERNS:
            matches = [i for i in matches if scene.sprites[i].appearance.pattern == attribute]
        elif attribute in SPRITE_COLOURS:
            matches = [i for i in matches if scene.sprites[i].appearance.colour == attribute]
        elif attribute in SHAPES:
            matches = [i for i in matches if scene.sprites[i].appearance.shape == attribute]
        else:
            assert word == "shape"
    if side:
        axis, sign = {"left": (0, -1), "right": (0, 1), "top": (1, -1), "bottom": (1, 1)}[side]
        matches = [max(matches, key=lambda i: sign * scene.sprites[i].start[axis])]
    return matches


def test_every_expression_matches_its_sprite_only():
    place_count = 0
    for index in range(400):
        scene = scene_at(1, index)
        for i in range(len(scene.sprites)):
            for expression in grammar.referring_expressions(scene, i):
                assert find_matches(scene, expression) == [i], (expression, scene)
                place_count += " on the " in expression or " at the " in expression
    assert place_count > 20  # there are sprites of the same appearance


def test_colour_and_shape_are_enough_when_they_are_unique():
    sprites = (sprite("circle", "red", "dots"), sprite("star", "red"), sprite("circle", "blue"))
    scene = Scene(background=WHITE, sprites=sprites)
    assert grammar.referring_expressions(scene, 0) == ["red circle", "dotted red circle"]
    assert "star" in grammar.referring_expressions(scene, 1)
    assert "blue shape" in grammar.referring_expressions(scene, 2)


def test_the_pattern_distinguishes_sprites_of_the_same_colour_and_shape():
    scene = Scene(background=WHITE, sprites=(sprite("ring", "red", "dots"), sprite("ring", "red", "stripes")))
    assert grammar.referring_expressions(scene, 0) == ["dotted red ring"]


def test_sprites_of_the_same_appearance_are_distinguished_by_place():
    sprites = (sprite("ring", "red", start=(-0.5, 0.0)), sprite("ring", "red", start=(0.5, 0.1)))
    scene = Scene(background=WHITE, sprites=sprites)
    assert grammar.referring_expressions(scene, 0) == ["red ring on the left"]
    assert grammar.referring_expressions(scene, 1) == ["red ring on the right"]


def test_there_are_several_wordings_of_every_kind_and_each_is_a_sentence():
    train, new = item_sampler(0, 0), item_sampler(0, 0, split="new_words")
    slots = {"object": "the ring", "new_object": "a star", "colour": "red", "shape": "star"}
    slots |= {"place": "at the top", "motion": "", "background": "plain grey"}
    for kind, wordings in grammar.WORDINGS.items():
        assert len(set(wordings)) == len(wordings) >= 4
        training, held_out = (
            {grammar.sample_instruction(kind, sampler, **slots) for _ in range(200)} for sampler in (train, new)
        )
        assert (len(training), len(held_out)) == (len(wordings) - HELD_OUT_WORDINGS, HELD_OUT_WORDINGS)
        assert not training & held_out
        for sentence in training | held_out:
            assert sentence[0] in string.ascii_uppercase
            assert sentence.endswith(".")
            assert "{" not in sentence
            assert "  " not in sentence


def test_names_captions_and_articles():
    assert grammar.full_name(Appearance(shape="ring", colour="orange")) == "orange ring"
    assert grammar.with_article("orange ring") == "an orange ring"
    background = Background(texture="dots", base_colour="brown", pattern_colour="beige")
    assert grammar.describe_background(background) == "beige dots on brown"
    assert grammar.describe_background(replace(background, texture="plain")) == "plain brown"
    sprites = (sprite("star", "red", "stripes", (-0.5, -0.5)), sprite("ring", "blue", start=(0.5, 0.0)))
    scene = Scene(background=WHITE, sprites=sprites)
    text = "A blue ring on the right and a striped red star in the top left over plain white"
    assert grammar.caption_scene(scene) == text + "."
    assert grammar.caption_scene(scene, "sepia") == text + ", in sepia."
    assert grammar.caption_scene(Scene(background=WHITE, sprites=())) == "Plain white."


@pytest.mark.parametrize(
    ("position", "words"),
    [((-0.6, -0.4), "in the top left"), ((0.1, 0.1), "in the middle"), ((0.0, 0.7), "at the bottom")],
)
def test_places_have_names(position, words):
    assert grammar.nearest_place(position) == words
