"""Answers to questions, compared with the pixels and the scene of the question instead of the code that answers."""

import numpy as np
import pytest

from kiwi.errors import InputError
from kiwi.sandbox import grammar
from kiwi.sandbox.drawing import TEXTURES
from kiwi.sandbox.palette import BACKGROUND_COLOURS, SPRITE_COLOURS
from kiwi.sandbox.questions import TASKS, make_question
from kiwi.sandbox.sampling import scene_at
from kiwi.sandbox.world import Scene, draw, render

SHAPES = [(5, 32, 32), (9, 32, 80), (9, 48, 32)]
PLACES = {place: np.array(position) for place, position in grammar.PLACES.items()}
STEPS = {"to the left": (-1, 0), "to the right": (1, 0), "up": (0, -1), "down": (0, 1)}


def questions(task, shape, count=40):
    frames, height, width = shape
    return [make_question(3, index, frames=frames, height=height, width=width, tasks=[task]) for index in range(count)]


def find_sprite(question):
    """Find the index of the only sprite that the question refers to."""
    scene = question.scene
    matches = [
        index
        for index in range(len(scene.sprites))
        if any(f"the {noun}" in question.text for noun in grammar.referring_expressions(scene, index))
    ]
    assert len(matches) == 1, question.text
    return matches[0]


def tracks(scene, shape):
    """Centre of each sprite's pixels, rendered alone, in each frame: (N, F, 2), x and y, -1..1."""
    return np.array([[_find_centre(alpha) for alpha in _draw_alone(scene, sprite, shape)] for sprite in scene.sprites])


def _draw_alone(scene, sprite, shape):
    return draw(Scene(background=scene.background, sprites=(sprite,)), *shape).sprite_masks[0]


def _find_centre(alpha):
    height, width = alpha.shape
    rows, columns = np.nonzero(alpha > 0.5)
    return (columns.min() + columns.max() + 1) / width - 1, (rows.min() + rows.max() + 1) / height - 1


@pytest.mark.parametrize("shape", SHAPES)
def test_the_located_sprite_is_at_the_answered_place_in_the_first_frame(shape):
    for question in questions("locate", shape):
        centre = tracks(question.scene, shape)[find_sprite(question), 0]
        nearest = min(PLACES, key=lambda place: np.linalg.norm(PLACES[place] - centre))
        assert question.answer.lower() == nearest + "."


@pytest.mark.parametrize("shape", SHAPES)
def test_the_identified_sprite_is_at_the_place_of_the_question(shape):
    for question in questions("identify", shape):
        (place,) = sorted((place for place in PLACES if place in question.text), key=len)[-1:]
        centres = tracks(question.scene, shape)[:, 0]
        nearest = int(np.linalg.norm(centres - PLACES[place], axis=1).argmin())
        assert question.answer.lower().rstrip(".").split(" ", 1)[1] == grammar.full_name(
            question.scene.sprites[nearest].appearance
        )


@pytest.mark.parametrize("shape", SHAPES)
def test_the_moving_sprite_moves_in_the_answered_direction_in_every_frame(shape):
    _, height, width = shape
    for question in questions("move", shape):
        steps = np.diff(tracks(question.scene, shape)[find_sprite(question)], axis=0) * (width, height)
        projections = steps @ STEPS[question.answer.lower().rstrip(".")]
        assert (projections >= 0).all()  # in whole pixels, so a step can be 0
        assert projections.sum() > 0.7 * np.linalg.norm(steps.sum(axis=0))


def test_there_is_no_question_about_invisible_motion():
    with pytest.raises(InputError, match="1 frames", check=lambda error: error.code == "unknown-task"):
        make_question(0, 0, frames=1, height=32, width=32, tasks=["move"])
    assert {make_question(0, index, frames=1, height=32, width=32).task for index in range(20)} == set(TASKS) - {"move"}
    with pytest.raises(InputError, match="300 frames", check=lambda error: error.code == "out-of-range"):
        make_question(0, 0, frames=300, height=32, width=32, tasks=["move"])


def test_the_answered_number_of_sprites_is_in_the_scene():
    for question in questions("count", SHAPES[0]):
        number = ["no objects", "one object", "two objects", "three objects"].index(question.answer.lower().rstrip("."))
        assert number == len(question.scene.sprites)


def test_backgrounds_and_descriptions_name_the_visible_colours():
    for task in ("background", "describe"):
        for question in questions(task, SHAPES[0]):
            background = question.scene.background
            empty = render(Scene(background=background, sprites=()), 1, 32, 32).reshape(-1, 3).astype(int)
            named = [name for name in BACKGROUND_COLOURS if name in question.answer.lower().split("over")[-1]]
            named = [name for name in named if not any(name != longer and name in longer for longer in named)]
            assert len(named) == (1 if background.texture == "plain" else 2), question.answer
            for name in named:
                nearest = np.abs(empty - np.array(BACKGROUND_COLOURS[name])).max(axis=1).min()
                assert nearest < 60, question.answer
        for sprite in question.scene.sprites if task == "describe" else ():
            assert grammar.full_name(sprite.appearance) in question.answer.lower()


def test_images_show_the_answer():
    for question in questions("picture", SHAPES[0]):
        middle = question.image[8:24, 8:24].reshape(-1, 3).astype(int)
        words = question.answer.lower()
        colours = [name for name in SPRITE_COLOURS if f" {name} " in words and "on" not in words.split()]
        for name in colours:
            assert np.abs(middle - np.array(SPRITE_COLOURS[name])).max(axis=1).min() < 30, question.answer


@pytest.mark.parametrize("name", [name for name in TEXTURES if name not in ("plain", "gradient")])
def test_the_pattern_and_base_colours_of_a_texture_are_distinguishable(name):
    x, y = np.meshgrid(np.linspace(-20, 20, 800), np.linspace(-20, 20, 800))
    share = float(np.broadcast_to(TEXTURES[name](x, y, 16.0), x.shape).mean())
    assert 0.2 < share < 0.45


def test_both_ends_of_a_gradient_are_visible():
    backgrounds = [scene_at(0, index, level="easy").background for index in range(200)]
    gradients = [background for background in backgrounds if background.texture == "gradient"]
    assert len(gradients) > 50
    for background in gradients:
        rows = render(Scene(background=background, sprites=()), 1, 32, 32)[0, :, 0].astype(float)
        base = np.array(BACKGROUND_COLOURS[background.base_colour], float)
        pattern = np.array(BACKGROUND_COLOURS[background.pattern_colour], float)
        weights = (rows - base) @ (pattern - base) / np.square(pattern - base).sum()
        assert weights.min() < 0.2
        assert weights.max() > 0.8
        assert weights.argmin() < weights.argmax()  # the base colour, which is named first, is at the top
