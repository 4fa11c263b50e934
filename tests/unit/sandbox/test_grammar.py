"""The language: expressions that fit one sprite, words that fix a picture."""

from __future__ import annotations

import string

import pytest

from kiwi.sandbox import grammar
from kiwi.sandbox.drawing import PATTERNS, SHAPES
from kiwi.sandbox.palette import SPRITE_COLOURS
from kiwi.sandbox.sampling import NEW_WORDINGS, dice, scene_at
from kiwi.sandbox.world import Background, Looks, Scene, Sprite

WHITE = Background(texture="plain", ground="white", figure="white")


def sprite(shape: str, colour: str, pattern: str = "plain", start: tuple[float, float] = (0.0, 0.0)) -> Sprite:
    return Sprite(looks=Looks(shape=shape, colour=colour, pattern=pattern), size=0.3, start=start)


def understood(scene: Scene, expression: str) -> list[int]:
    """An independent reader: the sprites that an expression fits, words by words."""
    words, _, side = expression.partition(" on the ") if " on the " in expression else expression.partition(" at the ")
    found = list(range(len(scene.sprites)))
    for word in words.split():
        attribute = {"striped": "stripes", "dotted": "dots"}.get(word, word)
        if attribute in PATTERNS:
            found = [i for i in found if scene.sprites[i].looks.pattern == attribute]
        elif attribute in SPRITE_COLOURS:
            found = [i for i in found if scene.sprites[i].looks.colour == attribute]
        elif attribute in SHAPES:
            found = [i for i in found if scene.sprites[i].looks.shape == attribute]
        else:
            assert word == "shape"
    if side:
        axis, sign = {"left": (0, -1), "right": (0, 1), "top": (1, -1), "bottom": (1, 1)}[side]
        found = [max(found, key=lambda i: sign * scene.sprites[i].start[axis])]
    return found


def test_every_expression_fits_its_sprite_alone():
    by_place = 0
    for index in range(400):
        scene = scene_at(1, index)
        for i in range(len(scene.sprites)):
            for expression in grammar.references(scene, i):
                assert understood(scene, expression) == [i], (expression, scene)
                by_place += " on the " in expression or " at the " in expression
    assert by_place > 20  # scenes with twins do occur


def test_colour_and_shape_are_enough_when_they_are_unique():
    scene = Scene(
        background=WHITE, sprites=(sprite("circle", "red", "dots"), sprite("star", "red"), sprite("circle", "blue"))
    )
    assert grammar.references(scene, 0) == ["red circle", "dotted red circle"]
    assert "star" in grammar.references(scene, 1)
    assert "blue shape" in grammar.references(scene, 2)


def test_the_pattern_tells_apart_what_colour_and_shape_do_not():
    scene = Scene(background=WHITE, sprites=(sprite("ring", "red", "dots"), sprite("ring", "red", "stripes")))
    assert grammar.references(scene, 0) == ["dotted red ring"]


def test_twins_are_told_apart_by_their_place():
    scene = Scene(
        background=WHITE,
        sprites=(sprite("ring", "red", start=(-0.5, 0.0)), sprite("ring", "red", start=(0.5, 0.1))),
    )
    assert grammar.references(scene, 0) == ["red ring on the left"]
    assert grammar.references(scene, 1) == ["red ring on the right"]


def test_there_are_several_wordings_of_every_kind_and_each_is_a_sentence():
    train, new = dice(0, 0), dice(0, 0, split="new_words")
    slots = {"it": "the ring", "a": "a star", "colour": "red", "shape": "star"}
    slots |= {"place": "at the top", "motion": "", "background": "plain grey"}
    for kind, wordings in grammar.WORDINGS.items():
        assert len(set(wordings)) == len(wordings) >= 4
        said, unsaid = ({grammar.phrase(kind, given, **slots) for _ in range(200)} for given in (train, new))
        assert (len(said), len(unsaid)) == (len(wordings) - NEW_WORDINGS, NEW_WORDINGS)
        assert not said & unsaid
        for sentence in said | unsaid:
            assert sentence[0] in string.ascii_uppercase
            assert sentence.endswith(".")
            assert "{" not in sentence
            assert "  " not in sentence


def test_names_captions_and_articles():
    assert grammar.name(Looks(shape="ring", colour="orange")) == "orange ring"
    assert grammar.a("orange ring") == "an orange ring"
    assert grammar.describe(Background(texture="dots", ground="brown", figure="beige")) == "beige dots on brown"
    assert grammar.describe(Background(texture="plain", ground="brown", figure="beige")) == "plain brown"
    scene = Scene(
        background=WHITE,
        sprites=(sprite("star", "red", "stripes", (-0.5, -0.5)), sprite("ring", "blue", start=(0.5, 0.0))),
    )
    said = "A blue ring on the right and a striped red star in the top left over plain white"
    assert grammar.caption(scene) == said + "."
    assert grammar.caption(scene, "sepia") == said + ", in sepia."
    assert grammar.caption(Scene(background=WHITE, sprites=())) == "Plain white."


@pytest.mark.parametrize(
    ("position", "words"),
    [((-0.6, -0.4), "in the top left"), ((0.1, 0.1), "in the middle"), ((0.0, 0.7), "at the bottom")],
)
def test_places_have_words(position, words):
    assert grammar.place(position) == words
