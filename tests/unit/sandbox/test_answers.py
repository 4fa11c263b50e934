"""Answers held against the pixels and the scene that a question was drawn from, not against the code that answers."""

from __future__ import annotations

import numpy as np
import pytest

from kiwi.errors import InputError
from kiwi.sandbox import grammar
from kiwi.sandbox.drawing import TEXTURES, texture
from kiwi.sandbox.palette import BACKGROUND_COLOURS, SPRITE_COLOURS
from kiwi.sandbox.questions import TASKS, make_question
from kiwi.sandbox.sampling import scene_at
from kiwi.sandbox.world import Scene, draw, render

SHAPES = [(5, 32, 32), (9, 32, 80), (9, 48, 32)]
PLACES = {place: np.array(where) for place, where in grammar.PLACES.items()}
STEPS = {"to the left": (-1, 0), "to the right": (1, 0), "up": (0, -1), "down": (0, 1)}


def asked(task, shape, count=40):
    frames, height, width = shape
    return [make_question(3, index, frames=frames, height=height, width=width, tasks=[task]) for index in range(count)]


def only(question):
    """The sprite that the words refer to, no other."""
    scene = question.scene
    fitting = [
        index
        for index in range(len(scene.sprites))
        if any(f"the {noun}" in question.words for noun in grammar.references(scene, index))
    ]
    assert len(fitting) == 1, question.words
    return fitting[0]


def tracks(scene, shape):
    """Middle of each sprite, drawn alone, in each frame, by its pixels: (N, F, 2), x and y, -1..1."""
    return np.array([[_middle(alpha) for alpha in _alone(scene, sprite, shape)] for sprite in scene.sprites])


def _alone(scene, sprite, shape):
    return draw(Scene(background=scene.background, sprites=(sprite,)), *shape).sprites[0]


def _middle(alpha):
    height, width = alpha.shape
    rows, columns = np.nonzero(alpha > 0.5)
    return (columns.min() + columns.max() + 1) / width - 1, (rows.min() + rows.max() + 1) / height - 1


@pytest.mark.parametrize("shape", SHAPES)
def test_what_is_located_is_there_in_the_first_frame(shape):
    for question in asked("locate", shape):
        centre = tracks(question.scene, shape)[only(question), 0]
        nearest = min(PLACES, key=lambda place: np.linalg.norm(PLACES[place] - centre))
        assert question.answer.lower() == nearest + "."


@pytest.mark.parametrize("shape", SHAPES)
def test_what_is_identified_stands_where_the_words_say(shape):
    for question in asked("identify", shape):
        (place,) = sorted((place for place in PLACES if place in question.words), key=len)[-1:]
        centres = tracks(question.scene, shape)[:, 0]
        nearest = int(np.linalg.norm(centres - PLACES[place], axis=1).argmin())
        assert question.answer.lower().rstrip(".").split(" ", 1)[1] == grammar.name(
            question.scene.sprites[nearest].looks
        )


@pytest.mark.parametrize("shape", SHAPES)
def test_what_moves_goes_that_way_in_every_frame(shape):
    _, height, width = shape
    for question in asked("move", shape):
        steps = np.diff(tracks(question.scene, shape)[only(question)], axis=0) * (width, height)
        along = steps @ STEPS[question.answer.lower().rstrip(".")]
        assert (along >= 0).all()  # by whole pixels, of which one frame may make none
        assert along.sum() > 0.7 * np.linalg.norm(steps.sum(axis=0))


def test_motion_is_not_asked_for_where_it_cannot_be_seen():
    with pytest.raises(InputError, match="1 frames"):
        make_question(0, 0, frames=1, height=32, width=32, tasks=["move"])
    assert {make_question(0, index, frames=1, height=32, width=32).task for index in range(20)} == set(TASKS) - {"move"}
    with pytest.raises(InputError, match="goes one way"):
        make_question(0, 0, frames=300, height=32, width=32, tasks=["move"])


def test_what_is_counted_is_there():
    for question in asked("count", SHAPES[0]):
        number = ["no objects", "one object", "two objects", "three objects"].index(question.answer.lower().rstrip("."))
        assert number == len(question.scene.sprites)


def test_backgrounds_and_descriptions_name_the_colours_that_are_seen():
    for task in ("background", "describe"):
        for question in asked(task, SHAPES[0]):
            ground = question.scene.background
            empty = render(Scene(background=ground, sprites=()), 1, 32, 32).reshape(-1, 3).astype(int)
            named = [name for name in BACKGROUND_COLOURS if name in question.answer.lower().split("over")[-1]]
            named = [name for name in named if not any(name != longer and name in longer for longer in named)]
            assert len(named) == (1 if ground.texture == "plain" else 2), question.answer
            for name in named:
                nearest = np.abs(empty - np.array(BACKGROUND_COLOURS[name])).max(axis=1).min()
                assert nearest < 60, question.answer
        for sprite in question.scene.sprites if task == "describe" else ():
            assert grammar.name(sprite.looks) in question.answer.lower()


def test_pictures_show_what_is_answered():
    for question in asked("picture", SHAPES[0]):
        middle = question.image[8:24, 8:24].reshape(-1, 3).astype(int)
        words = question.answer.lower()
        things = [name for name in SPRITE_COLOURS if f" {name} " in words and "on" not in words.split()]
        for name in things:
            assert np.abs(middle - np.array(SPRITE_COLOURS[name])).max(axis=1).min() < 30, question.answer


@pytest.mark.parametrize("name", [name for name in TEXTURES if name not in ("plain", "gradient")])
def test_figure_and_ground_of_a_texture_are_never_taken_for_each_other(name):
    x, y = np.meshgrid(np.linspace(-20, 20, 800), np.linspace(-20, 20, 800))
    share = float(np.broadcast_to(texture(name, x, y, 16.0), x.shape).mean())
    assert 0.2 < share < 0.45


def test_both_ends_of_a_gradient_are_seen():
    backgrounds = [scene_at(0, index, level="easy").background for index in range(200)]
    gradients = [background for background in backgrounds if background.texture == "gradient"]
    assert len(gradients) > 50
    for background in gradients:
        rows = render(Scene(background=background, sprites=()), 1, 32, 32)[0, :, 0].astype(float)
        ground, figure = (np.array(BACKGROUND_COLOURS[name], float) for name in (background.ground, background.figure))
        weights = (rows - ground) @ (figure - ground) / np.square(figure - ground).sum()
        assert weights.min() < 0.2
        assert weights.max() > 0.8
        assert weights.argmin() < weights.argmax()  # from the ground, which is named first, at the top
